"""`python -m im2wav.evaluate generated=DIR reference=DIR` (or a model, or ImageHear): figures that can be trusted."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, register_resolvers, run

if TYPE_CHECKING:
    from im2wav.evaluation.figures import Plan, Row
    from im2wav.evaluation.inputs import Inputs
    from im2wav.evaluation.network import Network
    from im2wav.evaluation.sounds import Judged, Reading, SoundSet

log = logging.getLogger(__name__)
register_resolvers()

CODEC_SECONDS = 4.096  # of each sound that a codec alone is judged by: the official window


def check(cfg: DictConfig) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        ValueError: naming what is missing.
    """
    if cfg.benchmark not in (None, "imagehear"):
        raise ValueError(f"benchmark={cfg.benchmark}: expected imagehear")
    if cfg.export not in (None, "av-benchmark"):
        raise ValueError(f"export={cfg.export}: expected av-benchmark")
    if sum(bool(cfg[name]) for name in ("generated", "model_dir", "codec")) != 1:
        raise ValueError(
            "give one of generated=DIR (sounds), model=DIR (which is sampled first) and codec=FILE (a VQ-VAE alone)"
        )
    if cfg.codec and (cfg.benchmark or cfg.export or not cfg.data_dir):
        raise ValueError("codec=FILE needs data=PAIRS, whose sounds it gives back; and no benchmark or export")
    if cfg.model_dir and not (cfg.benchmark or cfg.data_dir):
        raise ValueError("model=DIR needs data=PAIRS (a pairs folder to hear), or benchmark=imagehear images=DIR")
    if cfg.model_dir and cfg.benchmark and not cfg.images:
        raise ValueError("benchmark=imagehear with model=DIR needs images=DIR, the folder of its 101 photographs")
    if cfg.generated and not (cfg.reference or cfg.benchmark or cfg.data_dir):
        raise ValueError("generated=DIR needs reference=DIR (real sounds of the same names), or benchmark=imagehear")
    if cfg.suite in ("paper", "all") and cfg.weights_dir is None:
        raise ValueError(f"suite={cfg.suite} needs weights_dir=DIR; docs/evaluation.md says which files it holds")
    for name in ("resamples", "resamples_fd"):
        if cfg[name] < 2:
            raise ValueError(f"{name}={cfg[name]}: an interval needs at least 2 resamples")


def gather(cfg: DictConfig) -> Inputs:
    """Find what is to be judged; a model is sampled first.

    Raises:
        ValueError: something is missing or does not match.
    """
    from im2wav.data.pairs import PairsFolder
    from im2wav.evaluation import imagehear, inputs
    from im2wav.evaluation.sampling import sample_pictures

    if cfg.codec:
        return inputs.pairs_inputs(PairsFolder(cfg.data_dir), cfg.split, pictures_needed=False)
    if cfg.benchmark:
        found = inputs.imagehear_inputs(Path(cfg.images) if cfg.images else None)
        numbers = {Path(name).stem: count for name, count in imagehear.shares(cfg.per_class).items()}
    elif cfg.data_dir:
        found = inputs.pairs_inputs(PairsFolder(cfg.data_dir), cfg.split)
        numbers = dict.fromkeys(found.pictures, cfg.num_samples)
    else:
        found = inputs.from_folders(
            Path(cfg.generated), Path(cfg.reference) if cfg.reference else None, cfg.paired, cfg.missing
        )
        numbers = {}
    folder = Path(cfg.generated) if cfg.generated else None
    if cfg.model_dir:
        samples = Path(cfg.out) / "sounds"
        sample_pictures(cfg, {name: found.pictures[name] for name in numbers}, numbers, samples)
        inputs.add_generated(found, "draft", samples / "low", list(numbers), cfg.missing)
        folder = samples / "up"
    if folder and numbers:
        inputs.add_generated(found, "generated", folder, list(numbers), cfg.missing)
    if cfg.benchmark and cfg.reference:
        found.reference = inputs.from_folders(Path(cfg.reference), None, False, cfg.missing).sets["generated"]
    if cfg.images and not cfg.benchmark:
        found.pictures = inputs.find_pictures(Path(cfg.images))
    if cfg.labels:
        found.labels = inputs.read_labels(Path(cfg.labels))
    return found


def embeddings(cfg: DictConfig, found: Inputs) -> dict[str, Any]:
    """CLIP embeddings of the pictures of all items, for CS; a video's is the mean of its frames.

    Raises:
        ValueError: items without a picture, or weights that are missing.
    """
    from im2wav.evaluation.pictures import embed_pictures

    items = sorted({target for sounds in found.sets.values() for target in sounds.targets})
    return embed_pictures(found.pictures, items, Path(cfg.weights_dir), cfg.check_weights, cfg.device)


def judge_all(cfg: DictConfig, found: Inputs, networks: list[Network], reading: Reading) -> dict[str, Judged]:
    """Let the networks hear every set, and of a codec or with a model the references as the codec gives them back."""
    from im2wav.evaluation.sampling import given_back, model_files
    from im2wav.evaluation.sounds import judge

    sets: dict[str, SoundSet] = dict(found.sets)
    if found.reference is not None:
        sets["reference"] = found.reference
        if cfg.codec or (cfg.model_dir and cfg.ceiling):
            name = "generated" if cfg.codec else "ceiling"
            sets[name] = given_back(found.reference, model_files(cfg)["codec"], cfg.device)
    return {name: judge(sounds, networks, reading) for name, sounds in sets.items()}


def rows_of(judged: dict[str, Judged], networks: list[Network], plan: Plan, paired: bool) -> dict[str, Row]:
    """The figures of each set, and beside them the floor, the ceiling and chance."""
    from im2wav.evaluation.figures import floor_row, set_row, shuffled_items

    reference = judged.get("reference")
    rows: dict[str, Row] = {
        name: set_row(judged[name], networks, plan, reference, paired=paired)
        for name in ("generated", "draft")
        if name in judged
    }
    if reference is not None:
        rows["floor"] = floor_row(reference, networks, plan)
        if "ceiling" in judged:
            rows["ceiling"] = set_row(judged["ceiling"], networks, plan, reference, paired=paired)
    other = shuffled_items(judged["generated"].set.targets, plan.seed)
    if other:
        rows["chance"] = set_row(judged["generated"], networks, plan, reference, other.__getitem__, paired)
    return {name: row for name, row in rows.items() if row}


def protocol(cfg: DictConfig, reading: Reading) -> dict[str, Any]:
    """What decides the figures besides sounds and networks."""
    names = ("suite", "benchmark", "seed", "paired", "loudness", "resamples", "resamples_fd")
    facts = {name: cfg[name] for name in names}
    if cfg.benchmark:
        facts["per_class"] = cfg.per_class
    if cfg.model_dir:
        facts["sampler"] = {k: v for k, v in cfg.sampler.items() if not k.startswith("_")}
    return {
        **facts,
        "sample_rate": reading.rate,
        "seconds": round(reading.seconds, 6),
        "shorter_sounds": "repeated",
        "channels": "mean",
        "resampler": "torchaudio, windowed sinc, Hann, 6 zero crossings",
    }


def build(
    cfg: DictConfig, found: Inputs, judged: dict[str, Judged], networks: list[Network], plan: Plan, reading: Reading
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What report.json holds, and a row for each generated sound."""
    import torch

    from im2wav.evaluation import items, sounds
    from im2wav.evaluation.writing import warnings_for

    paired = cfg.paired and not (found.reference and cfg.benchmark)
    rows = rows_of(judged, networks, plan, paired)
    facts = protocol(cfg, reading)
    hashes = {n.name: {"sha256": n.sha256, "sample_rate": n.sample_rate, "dim": n.dim} for n in networks}
    report: dict[str, Any] = {
        "im2wav": version("im2wav"),
        "software": {"torch": torch.__version__, "python": platform.python_version()},
        "protocol": facts,
        "protocol_sha256": hashlib.sha256(json.dumps([facts, hashes], sort_keys=True).encode()).hexdigest(),
        "networks": hashes,
        "sets": {name: sounds.describe(one.set) for name, one in judged.items()},
        "unmatched": {"generated": found.unmatched.generated, "reference": found.unmatched.reference},
        "warnings": warnings_for(judged, networks, found, reading),
        "rows": {name: {key: figure.to_dict() for key, figure in row.items()} for name, row in rows.items()},
    }
    tagger = items.tagger_of(networks)
    shown: list[dict[str, Any]] = []
    if tagger is not None:
        shown = items.item_rows(judged["generated"], tagger, plan, judged.get("reference") if paired else None)
        report["classes"] = items.label_rows(shown, judged["generated"], tagger)
        report["confusion"] = items.confusion(judged["generated"], tagger, plan)
    if cfg.codec or cfg.model_dir:
        from im2wav.evaluation.sampling import measure_codes, model_files
        from im2wav.hashing import file_sha256

        files = model_files(cfg)
        report["model"] = {name: file_sha256(path) for name, path in files.items()}
        if cfg.data_dir:
            report |= measure_codes(files, cfg.data_dir, cfg.split, reading.seconds, plan, cfg.device)
    return report, shown


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Judge sounds, print the table and write the report; returns what report.json holds.

    Raises:
        ValueError: options, folders or sounds that cannot be used.
    """
    from im2wav.evaluation import items, sounds, suites, table
    from im2wav.evaluation.figures import Plan
    from im2wav.evaluation.writing import Examples, write_all
    from im2wav.generation.precision import pick_device

    check(cfg)
    cfg.device = pick_device(cfg.device, mps=False)
    start, times = time.monotonic(), {}
    weights = Path(cfg.weights_dir) if cfg.weights_dir else None
    networks = suites.load_networks(cfg.suite, weights, cfg.check_weights) if not cfg.export else []
    found = gather(cfg)
    sets = [*found.sets.values(), *([found.reference] if found.reference else [])]
    seconds = cfg.seconds or (CODEC_SECONDS if cfg.codec else min(s.seconds for s in found.sets["generated"].sounds))
    reading = sounds.Reading(sounds.choose_rate(sets, cfg.resample), seconds, cfg.loudness)
    times["gather"] = round(time.monotonic() - start, 3)
    if cfg.export:
        from im2wav.evaluation.export import av_benchmark

        return av_benchmark(Path(cfg.out), found, reading)
    pictures = any("picture" in network.uses for network in networks)
    plan = Plan(cfg.seed, cfg.resamples, cfg.resamples_fd, found.labels, embeddings(cfg, found) if pictures else None)
    judged = judge_all(cfg, found, networks, reading)
    times["hear"] = round(time.monotonic() - start - times["gather"], 3)
    report, shown = build(cfg, found, judged, networks, plan, reading)
    times["figures"] = round(time.monotonic() - start - sum(times.values()), 3)
    examples = Examples(cfg.examples, items.tagger_of(networks), plan, found.pictures, reading)
    write_all(Path(cfg.out), report, shown, judged, examples, times, start)
    log.info("%s", table.as_text(table.figure_rows(report["rows"])))
    for name, lines in table.model_tables(report):
        log.info("\n%s\n%s", name, table.as_text(lines))
    for warning in report["warnings"]:
        log.warning("mind: %s", warning)
    log.info("figures: %s\nopen the page: %s", Path(cfg.out) / "report.json", (Path(cfg.out) / "report.html").resolve())
    return report


def main_of_sweep(cfg: DictConfig, sweep: Path, job: int, setting: str) -> None:
    """One job of a multirun: its own folder below the sweep's, then the table of all that are done.

    Raises:
        ValueError: as `evaluate`.
    """
    from im2wav.data.pairs import write_atomic
    from im2wav.evaluation import table

    for earlier in sweep.glob("*/setting.txt") if job == 0 else ():  # of another sweep
        earlier.unlink()
    cfg.out = str(sweep / str(job))
    evaluate(cfg)
    write_atomic(Path(cfg.out) / "setting.txt", f"{setting}\n".encode())
    done = sorted((p for p in sweep.iterdir() if (p / "setting.txt").is_file()), key=lambda p: int(p.name))
    reports = {(p / "setting.txt").read_text().strip(): json.loads((p / "report.json").read_text()) for p in done}
    lines = table.sweep_lines(reports)
    write_atomic(sweep / "table.md", table.as_markdown(lines).encode())
    log.info("%d settings so far, %s:\n%s", len(reports), sweep / "table.md", table.as_markdown(lines))


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def hydra_main(cfg: DictConfig) -> None:
    """What Hydra calls."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    about = HydraConfig.get()
    if about.mode == RunMode.MULTIRUN:
        swept = [x for x in about.overrides.task if x.split("=")[0] in sweep_keys()]
        sweep, job = Path(about.sweep.dir), int(about.job.num)
        run(lambda c: main_of_sweep(c, sweep, job, " ".join(swept) or str(job)), cfg)
    else:
        run(evaluate, cfg)


def sweep_keys() -> set[str]:
    """Options that the command line sweeps over: those with several values."""
    return {x.split("=")[0] for x in sys.argv[1:] if "=" in x and "," in x and "=[" not in x}


# `model` and `data` are groups of configs to Hydra, which would look for a config of that name
ALIASES = {"model": "model_dir", "data": "data_dir"}


@one_line
def main() -> None:
    """Entry: `model=DIR` and `data=DIR` are short for `model_dir=DIR` and `data_dir=DIR`."""
    for number, argument in enumerate(sys.argv[1:], 1):
        name, equals, value = argument.partition("=")
        if equals and name in ALIASES:
            sys.argv[number] = f"{ALIASES[name]}={value}"
    hydra_main()


if __name__ == "__main__":
    main()
