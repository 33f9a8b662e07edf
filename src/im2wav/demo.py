"""`python -m im2wav.demo`: embed the shipped pairs, train three small models, evaluate them, and write a page.

Each stage is the command that a user would type. Writes runs/demo/index.html and runs/demo/metrics.json.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, quoted, run, verb

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets" / "pairs"
STAGES, SPLITS = ("vqvae", "low_prior", "up_prior"), ("train", "valid")


def run_stages(cfg: DictConfig, out: Path) -> dict[str, float]:
    """Run all commands; returns the seconds that each took."""
    for made in ("pairs", "evaluation", "own"):  # by an earlier demo
        shutil.rmtree(out / made, ignore_errors=True)
    runs, pairs = [f"paths.runs={quoted(cfg.paths.runs)}", f"seed={cfg.seed}"], quoted(out / "pairs")
    encoder = f"encoder={cfg.encoder.name}"
    sampler = [f"sampler.{k}={v}" for k, v in cfg.sampler.items() if not k.startswith("_")]
    commands = {"embed": ["embed", encoder, f"input={quoted(ASSETS)}", f"out={pairs}", "loudness=-18"]}
    for stage in STAGES:
        commands[stage] = ["train", f"experiment=demo/{stage}", "overwrite=true", *runs, *cfg.demo.overrides]
    for split in SPLITS:
        where = [f"model={quoted(out)}", f"data={pairs}", f"split={split}", f"out={quoted(out / 'evaluation' / split)}"]
        commands[f"evaluate_{split}"] = ["evaluate", *where, "batch_size=64", "resamples_fd=2", *runs, *sampler]
    if cfg.demo.images:
        where = ["run_name=demo", f"input={quoted(cfg.demo.images)}", f"out={quoted(out / 'own')}", "max_failed=1"]
        commands["sample"] = ["sample", encoder, *where, "batch_size=64", *runs, *sampler]
    seconds = {}
    for name, arguments in commands.items():
        start = time.monotonic()
        verb(*arguments)
        seconds[name] = round(time.monotonic() - start, 1)
    return seconds


def read_curves(run_folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Loss curves of a training run, from its newest csv log."""
    from im2wav.files import read_table

    newest = max((run_folder / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime_ns)
    rows = read_table(newest, {"step"})
    points = {n: [(float(r["step"]), float(r[n])) for r in rows if r.get(n)] for n in ("train/loss", "valid/loss")}
    return {name: curve for name, curve in points.items() if curve}


def summarise(reports: Mapping[str, Any], unseen: list[dict[str, str]], labels: Mapping[str, str]) -> dict[str, Any]:
    """The main figures of the two evaluations."""
    rows = reports["train"]["rows"]
    names = {"train": "generated", "shuffled": "shuffled", "draft": "draft", "reconstruction": "reconstruction"}
    codec = {
        level: {key: x["value"] if isinstance(x, dict) else x for key, x in found.items()}
        for level, found in reports["train"]["codec"].items()
    }
    bits = {
        split: {
            f"{level}_prior": {way: found[way]["value"] for way in ("condition", "shuffled", "none") if way in found}
            for level, found in report["priors"].items()
        }
        for split, report in reports.items()
    }
    return {
        **{f"retrieval_{name}": rows[row]["retrieval"]["value"] for name, row in names.items()},
        "sounds": rows["generated"]["retrieval"]["n"],
        "unseen_same_label": sum(labels[row["nearest"]] == row["label"] for row in unseen),
        "unseen_sounds": len(unseen),
        "codec": codec,
        "bits_per_code": bits,
    }


def demo(cfg: DictConfig) -> dict[str, Any]:
    """Run the whole demo; returns the figures."""
    from im2wav.data.pairs import PairsFolder
    from im2wav.evaluation.demo_page import demo_page
    from im2wav.files import read_table, write_atomic

    start, out = time.monotonic(), Path(cfg.paths.runs) / "demo"
    seconds = run_stages(cfg, out)
    folder = PairsFolder(out / "pairs")
    pairs = {pair.id: pair for pair in folder.pairs}
    reports = {split: json.loads((out / "evaluation" / split / "report.json").read_text()) for split in SPLITS}
    rows = {split: read_table(out / "evaluation" / split / "items.csv", {"item", "nearest"}) for split in SPLITS}
    seen = {Path(pair.source).read_bytes() for pair in pairs.values() if pair.split == "train"}
    unseen = [row for row in rows["valid"] if Path(pairs[row["item"]].source).read_bytes() not in seen]
    figures = summarise(reports, unseen, {name: pair.label for name, pair in pairs.items()})
    figures["seconds"] = {**seconds, "total": round(time.monotonic() - start, 1)}
    curves = {stage: read_curves(out / stage) for stage in STAGES}
    page = demo_page(out, folder, figures, reports, {"valid": unseen, "train": rows["train"]}, curves, cfg.demo.images)
    write_atomic(out / "index.html", page)
    write_atomic(out / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    log.info(
        "\nretrieval %.2f (shuffled baseline %.2f): for this fraction of %d generated audio files the nearest training "
        "recording is the image's own\nfigures: %s\nopen the page: %s",
        figures["retrieval_train"],
        figures["retrieval_shuffled"],
        figures["sounds"],
        out / "metrics.json",
        (out / "index.html").resolve(),
    )
    return figures


@command("demo")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(demo, cfg)


if __name__ == "__main__":
    main()
