"""The `evaluate` command: network outputs of sets of audio files, and metrics computed from them."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from im2wav.decoding.linear import pick_device
from im2wav.evaluation import audio_files, items, summary
from im2wav.evaluation.audio_files import Judged, Reading
from im2wav.evaluation.evaluation_inputs import Inputs, check_options, gather
from im2wav.evaluation.export import av_benchmark
from im2wav.evaluation.figures import Plan, Row, real_row, set_row, shuffled_items
from im2wav.evaluation.generate_items import measure_codes, model_files, reconstruct
from im2wav.evaluation.images import embed_images
from im2wav.evaluation.network import Network
from im2wav.evaluation.retrieval import nearest
from im2wav.evaluation.suites import load_networks
from im2wav.evaluation.writing import Examples, warnings_for, write_files
from im2wav.files import file_sha256
from im2wav.media.reading import read_audio
from im2wav.report.page import as_markdown, as_text
from im2wav.report.plots import log_mel

log = logging.getLogger(__name__)

CODEC_SECONDS = 4.096  # duration per reference for codec=FILE: the official window


def is_paired(cfg: Any, found: Inputs) -> bool:
    """Whether each generated audio has a reference of its own."""
    return cfg.paired and not (cfg.mode == "imagehear" and found.reference)


def judge_sets(cfg: Any, found: Inputs, networks: Sequence[Network], reading: Reading) -> dict[str, Judged]:
    """Run the networks on all sets, including the codec reconstruction of the references if there is a codec."""
    sets = dict(found.sets)
    if found.reference is not None:
        sets["reference"] = found.reference
        if cfg.mode == "codec" or (cfg.get("model_dir") and cfg.reconstruction):
            name = "generated" if cfg.mode == "codec" else "reconstruction"
            sets[name] = reconstruct(found.reference, model_files(cfg)["codec"], cfg.device)
    searched = found.recordings if is_paired(cfg, found) and len(found.recordings) <= cfg.max_retrieval else ()
    judged = {
        name: audio_files.judge(one, networks, reading, bool(searched) and name != "reference")
        for name, one in sets.items()
    }
    if not searched:
        return judged
    mels = [log_mel(_whole(file, reading), reading.rate) for file in searched]
    for name, one in judged.items():
        if one.mels is not None:
            judged[name] = replace(one, nearest=[searched[i].name for i in nearest(one.mels, mels)])
    return judged


def _whole(file: audio_files.AudioFile, reading: Reading) -> torch.Tensor:
    """Complete recording [N], repeated if it is shorter than the evaluated duration."""
    wav = read_audio(file.path, reading.rate)
    return reading.raw(file) if len(wav) < round(reading.seconds * reading.rate) else wav


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
        facts["sampler"] = {k: v for k, v in cfg.sampler.items() if not k.startswith("_")}
    return {
        **facts,
        "sample_rate": reading.rate,
        "seconds": round(reading.seconds, 6),
        "shorter_audio": "repeated",
        "channels": "mean",
        "resampler": "torchaudio, windowed sinc, Hann, 6 zero crossings",
    }


def build_report(
    cfg: Any, found: Inputs, judged: Mapping[str, Judged], networks: Sequence[Network], plan: Plan, reading: Reading
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of report.json, and a row for each generated audio file."""
    paired = is_paired(cfg, found)
    rows = figure_table(judged, networks, plan, paired)
    facts = protocol(cfg, reading)
    hashes = {n.name: {"sha256": n.sha256, "sample_rate": n.sample_rate, "dim": n.dim} for n in networks}
    report: dict[str, Any] = {
        "im2wav": version("im2wav"),
        "software": {"torch": torch.__version__, "python": platform.python_version()},
        "protocol": facts,
        "protocol_sha256": hashlib.sha256(json.dumps([facts, hashes], sort_keys=True).encode()).hexdigest(),
        "networks": hashes,
        "sets": {name: audio_files.describe_set(one.set) for name, one in judged.items()},
        "recordings": len(plan.recordings),
        "unmatched": {"generated": found.unmatched.generated, "reference": found.unmatched.reference},
        "warnings": warnings_for(judged, networks, found, reading),
        "rows": {name: {key: figure.to_dict() for key, figure in row.items()} for name, row in rows.items()},
    }
    generated, tagger = judged["generated"], items.tagger_of(networks)
    shown: list[dict[str, Any]] = []
    if tagger is not None:
        shown = items.item_rows(generated, tagger, plan, judged.get("reference") if paired else None)
        report["classes"] = items.label_rows(shown, generated, tagger)
        report["confusion"] = items.confusion(generated, tagger, plan)
    if cfg.mode == "codec" or cfg.get("model_dir"):
        files = model_files(cfg)
        report["model"] = {name: file_sha256(path) for name, path in files.items()}
        if cfg.get("data_dir"):
            report |= measure_codes(files, cfg.data_dir, cfg.split, reading.seconds, plan, cfg.device)
    return report, shown


def evaluate_audio(cfg: Any) -> dict[str, Any]:
    """Evaluate audio, a model or a codec: print the table and write the report.

    Args:
        cfg: the options of a mode, see `im2wav.config_inference`.

    Returns:
        The content of report.json.

    Raises:
        ValueError: options, folders or audio that cannot be used.
    """
    check_options(cfg)
    cfg.device = pick_device(cfg.device, mps=False)
    start, times, out = time.monotonic(), {}, Path(cfg.out)
    weights = Path(cfg.weights_dir) if cfg.weights_dir else None
    networks = load_networks(cfg.suite, weights, cfg.check_weights) if not cfg.get("export") else []
    found = gather(cfg)
    sets = [*found.sets.values(), *([found.reference] if found.reference else [])]
    seconds = cfg.seconds or (
        CODEC_SECONDS if cfg.mode == "codec" else min(s.seconds for s in found.sets["generated"].files)
    )
    reading = Reading(audio_files.choose_rate(sets, cfg.resample), seconds, cfg.loudness)
    times["gather"] = round(time.monotonic() - start, 3)
    if cfg.get("export"):
        return av_benchmark(out, found, reading)
    images = None
    if any("image" in network.uses for network in networks):
        targets = sorted({target for one in found.sets.values() for target in one.targets})
        images = embed_images(found.images, targets, Path(cfg.weights_dir), cfg.check_weights, cfg.device)
    judged = judge_sets(cfg, found, networks, reading)
    searched = found.recordings if judged["generated"].nearest else ()
    recordings = {file.name: found.labels.get(file.name, "") for file in searched}
    plan = Plan(cfg.seed, cfg.resamples, cfg.resamples_fd, found.labels, images, recordings)
    times["judge"] = round(time.monotonic() - start - times["gather"], 3)
    report, shown = build_report(cfg, found, judged, networks, plan, reading)
    times["figures"] = round(time.monotonic() - start - sum(times.values()), 3)
    examples = Examples(cfg.examples, items.tagger_of(networks), plan, found.images, reading)
    write_files(out, report, shown, judged, examples, times, start)
    log.info("%s", as_text(summary.figure_rows(report["rows"])))
    for name, rows in summary.model_tables(report):
        log.info("\n%s\n%s", name, as_text(rows))
    for warning in report["warnings"]:
        log.warning("warning: %s", warning)
    log.info("figures: %s\nopen the page: %s", out / "report.json", (out / "report.html").resolve())
    return report


def evaluate_setting(cfg: Any, sweep: Path, job: int, setting: str) -> None:
    """Evaluate one job of a multirun in its own folder below `sweep`, then write the table of all finished jobs.

    Raises:
        ValueError: see `evaluate_audio`.
    """
    for earlier in sweep.glob("*/setting.txt") if job == 0 else ():  # from an earlier sweep
        earlier.unlink()
    cfg.out = str(sweep / str(job))
    evaluate_audio(cfg)
    (Path(cfg.out) / "setting.txt").write_text(f"{setting}\n")
    done = sorted((p for p in sweep.iterdir() if (p / "setting.txt").is_file()), key=lambda p: int(p.name))
    reports = {(p / "setting.txt").read_text().strip(): json.loads((p / "report.json").read_text()) for p in done}
    table = as_markdown(summary.sweep_lines(reports))
    (sweep / "table.md").write_text(table)
    log.info("%d settings so far, %s:\n%s", len(reports), sweep / "table.md", table)
