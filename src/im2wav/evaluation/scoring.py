"""The `evaluate` command: network outputs of sets of audio files, and metrics computed from them."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from im2wav import __version__
from im2wav.decoding.linear import pick_device
from im2wav.decoding.sampler import given_sampling
from im2wav.evaluation import summary
from im2wav.evaluation.audio_files import AudioFileSet, Judged, Reading, choose_rate, judge
from im2wav.evaluation.embedding_networks import Vggish, Wav2Clip, embed_images
from im2wav.evaluation.evaluated_model import MakeConfig, measure_codes, model_files, reconstruct
from im2wav.evaluation.evaluation_inputs import Inputs, check_options, gather
from im2wav.evaluation.figures import Plan, Row, real_row, set_row, shuffled_items
from im2wav.evaluation.networks import Network, check_folder
from im2wav.evaluation.taggers import Passt, Yamnet
from im2wav.evaluation.writing import av_benchmark, example_cards, report_page, warnings_for, write_files
from im2wav.files import file_sha256, write_atomic
from im2wav.inference.command import Build
from im2wav.report.page import as_markdown, as_text
from im2wav.report.plots import log_mel

log = logging.getLogger(__name__)

CODEC_SECONDS = 4.096  # duration per reference for codec=FILE: the official window


def is_paired(cfg: Any, found: Inputs) -> bool:
    """Whether each generated audio has a reference of its own."""
    return cfg.paired and not (cfg.mode == "imagehear" and found.reference)


def load_networks(cfg: Any) -> list[Network]:
    """The networks of a suite.

    Raises:
        ValueError: weights that are missing or wrong.
    """
    networks: list[Network] = [Yamnet()] if cfg.suite in ("offline", "all") else []
    if cfg.suite in ("paper", "all"):
        folder = Path(cfg.weights_dir)
        check_folder(folder)
        networks += [make(folder, cfg.check_weights) for make in (Passt, Vggish, Wav2Clip)]
    return networks


def judge_sets(cfg: Any, found: Inputs, networks: Sequence[Network], reading: Reading) -> dict[str, Judged]:
    """Run the networks on all sets, including the codec reconstruction of the references if there is a codec."""
    sets = dict(found.sets)
    if found.reference is not None:
        sets["reference"] = found.reference
        if cfg.mode == "codec" or (cfg.get("model_dir") and cfg.reconstruction):
            name = "generated" if cfg.mode == "codec" else "reconstruction"
            sets[name] = reconstruct(found.reference, model_files(cfg)["codec"], cfg.device)
    searched = found.recordings if is_paired(cfg, found) and len(found.recordings) <= cfg.max_retrieval else ()
    mels = {file.name: log_mel(reading.raw(file, whole=True), reading.rate) for file in searched}
    return {name: judge(one, networks, reading, None if name == "reference" else mels) for name, one in sets.items()}


def figure_table(judged: Mapping[str, Judged], networks: Sequence[Network], plan: Plan, paired: bool) -> dict[str, Row]:
    """The figures of each set, and of the three baselines: real-real, codec reconstruction, shuffled."""
    reference, generated = judged.get("reference"), judged["generated"]
    rows: dict[str, Row] = {
        name: set_row(judged[name], networks, plan, reference, paired=paired)
        for name in ("generated", "draft", "reconstruction")
        if name in judged
    }
    if reference is not None:
        rows["real"] = real_row(reference, networks, plan)
    other = shuffled_items(generated.set.targets, plan.seed)
    if other:
        rows["shuffled"] = set_row(generated, networks, plan, reference, other.__getitem__, paired)
    return {name: rows[name] for name in summary.SETS if rows.get(name)}


def protocol(cfg: Any, reading: Reading) -> dict[str, Any]:
    """What decides the figures besides the audio and the networks."""
    names = ("suite", "seed", "paired", "loudness", "resamples", "resamples_fd")
    facts = {"benchmark": "imagehear" if cfg.mode == "imagehear" else None} | {name: cfg[name] for name in names}
    if cfg.mode == "imagehear":
        facts["per_class"] = cfg.per_class
    if cfg.get("model_dir"):
        facts["sampler"] = given_sampling(cfg.sampler)
    return {
        **facts,
        "sample_rate": reading.rate,
        "seconds": round(reading.seconds, 6),
        "shorter_audio": "repeated",
        "channels": "mean",
        "resampler": "torchaudio, windowed sinc, Hann, 6 zero crossings",
    }


def describe_set(audio: AudioFileSet) -> dict[str, Any]:
    """Number of files, durations and sample rates of a set."""
    seconds = sorted(file.seconds for file in audio.files)
    return {
        "n": len(seconds),
        "items": len(set(audio.targets)),
        "seconds": {"min": seconds[0], "median": seconds[len(seconds) // 2], "max": seconds[-1]},
        "sample_rate": {str(rate): count for rate, count in audio.rates.items()},
    }


def build_report(
    cfg: Any, found: Inputs, judged: Mapping[str, Judged], networks: Sequence[Network], plan: Plan, reading: Reading
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """The content of report.json, a row for each generated file, and the indices of these from best to worst."""
    rows = figure_table(judged, networks, plan, is_paired(cfg, found))
    facts = protocol(cfg, reading)
    hashes = {n.name: {"sha256": n.sha256, "sample_rate": n.sample_rate, "dim": n.dim} for n in networks}
    report: dict[str, Any] = {
        "im2wav": __version__,
        "software": {"torch": torch.__version__, "python": platform.python_version()},
        "protocol": facts,
        "protocol_sha256": hashlib.sha256(json.dumps([facts, hashes], sort_keys=True).encode()).hexdigest(),
        "networks": hashes,
        "sets": {name: describe_set(one.set) for name, one in judged.items()},
        "recordings": len(plan.recordings),
        "unmatched": found.unmatched,
        "warnings": warnings_for(judged, networks, found, reading),
        "rows": {name: {key: figure.to_dict() for key, figure in row.items()} for name, row in rows.items()},
    }
    if cfg.mode == "codec" or cfg.get("model_dir"):
        files = model_files(cfg)
        report["model"] = {name: file_sha256(path) for name, path in files.items()}
        if cfg.get("data_dir"):
            report |= measure_codes(files, cfg.data_dir, cfg.split, reading.seconds, plan, cfg.device)
    taggers = [network for network in networks if "classes" in network.uses]
    if not taggers:
        return report, [], []
    generated, tagger = judged["generated"], taggers[0]
    shown = summary.item_rows(generated, tagger, plan, judged.get("reference") if is_paired(cfg, found) else None)
    report["classes"] = summary.label_rows(shown, generated, tagger)
    report["confusion"] = summary.confusion(generated, tagger, found.labels)
    return report, shown, summary.ranked(shown, generated, tagger, found.labels)


def evaluate_audio(cfg: Any, make_config: MakeConfig, build: Build) -> dict[str, Any]:
    """Evaluate audio, a model or a codec: print the table and write the report.

    Args:
        cfg: the options of a mode, see `im2wav.config_inference`.
        make_config: composes the config of `sample`, which generates the audio of a model.
        build: instantiates a config node.

    Returns:
        The content of report.json; nothing in a process that only generates, on one of several devices.

    Raises:
        ValueError: options, folders or audio that cannot be used.
    """
    check_options(cfg)
    if cfg.mode == "imagehear" and not cfg.generated:
        cfg.model_dir = cfg.model_dir or "starter"
    cfg.device = pick_device(cfg.device, mps=False)
    start = time.monotonic()
    if cfg.get("model_dir") and not cfg.export:
        load_networks(cfg)  # finds wrong weights before the model generates; loaded again when it is released
    found = gather(cfg, make_config, build)
    if found is None:
        return {}
    sets = [*found.sets.values(), *([found.reference] if found.reference else [])]
    seconds = cfg.seconds or (
        CODEC_SECONDS if cfg.mode == "codec" else min(s.seconds for s in found.sets["generated"].files)
    )
    reading = Reading(choose_rate(sets, cfg.resample), seconds, cfg.loudness)
    if cfg.get("export"):
        return av_benchmark(Path(cfg.out), found, reading)
    return evaluate_sets(cfg, found, reading, start)


def evaluate_sets(cfg: Any, found: Inputs, reading: Reading, start: float) -> dict[str, Any]:
    """Evaluate audio that exists, print the table and write the report; `start`: when the command began."""
    times, networks, out = {"gather": time.monotonic() - start}, load_networks(cfg), Path(cfg.out)
    images: dict[str, torch.Tensor] = {}
    if any("image" in network.uses for network in networks):
        targets = sorted({target for one in found.sets.values() for target in one.targets})
        images = embed_images(found.images, targets, Path(cfg.weights_dir), cfg.check_weights, cfg.device)
    judged = judge_sets(cfg, found, networks, reading)
    searched = found.recordings if judged["generated"].nearest else ()
    recordings = {file.name: found.labels.get(file.name, "") for file in searched}
    plan = Plan(cfg.seed, cfg.resamples, cfg.resamples_fd, found.labels, images, recordings)
    times["judge"] = time.monotonic() - start - times["gather"]
    report, shown, order = build_report(cfg, found, judged, networks, plan, reading)
    times["figures"] = time.monotonic() - start - sum(times.values())
    cards = example_cards(judged, shown, order, cfg.examples, found, reading)
    write_files(out, report, shown, report_page(report, shown, judged, cards))
    times["total"] = time.monotonic() - start
    write_atomic(out / "times.json", summary.as_json({name: round(value, 3) for name, value in times.items()}))
    log.info("%s", as_text(summary.figure_rows(report["rows"])))
    for name, rows in summary.model_tables(report):
        log.info("\n%s\n%s", name, as_text(rows))
    for warning in report["warnings"]:
        log.warning("warning: %s", warning)
    log.info("figures: %s\nopen the page: %s", out / "report.json", (out / "report.html").resolve())
    return report


def evaluate_setting(evaluate: Callable[[Any], dict[str, Any]], cfg: Any, sweep: Path, job: int, setting: str) -> None:
    """Evaluate one job of a multirun in its own folder below `sweep`, then write the table of all finished jobs."""
    for earlier in sweep.glob("*/setting.txt") if job == 0 else ():  # from an earlier sweep
        earlier.unlink()
    cfg.out = str(sweep / str(job))
    if not evaluate(cfg):
        return
    (Path(cfg.out) / "setting.txt").write_text(f"{setting}\n")
    done = sorted((p for p in sweep.iterdir() if (p / "setting.txt").is_file()), key=lambda p: int(p.name))
    reports = {(p / "setting.txt").read_text().strip(): json.loads((p / "report.json").read_text()) for p in done}
    table = as_markdown(summary.sweep_lines(reports))
    (sweep / "table.md").write_text(table)
    log.info("%d settings so far, %s:\n%s", len(reports), sweep / "table.md", table)
