"""`python -m im2wav.demo`: audio for photos by the starter model; then train and evaluate three small models.

Each stage is the command that a user would type. Writes runs/demo/index.html and runs/demo/metrics.json.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, quoted, run, run_command

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets" / "pairs"
EXPERIMENTS = {"im2wav": "demo", "residual": "demo_residual"}
STAGES = ("vqvae", "low_prior", "up_prior")
# photos of the shipped pairs, which the starter model has never seen
PHOTOS = (
    "bird_01", "bird_02", "bus_01", "car_passing_01", "cow_04", "crickets_01", "drum_01", "ferry_horn_01", "kitten_01",
    "monkey_01", "running_stream_01", "sheep_03",
)  # fmt: skip


def stage_commands(cfg: DictConfig, out: Path) -> dict[str, list[str]]:
    """Return the command and the arguments of each stage."""
    from im2wav.decoding.sampler import given_sampling  # imports torch

    runs, pairs = [f"paths.runs={quoted(cfg.paths.runs)}", f"seed={cfg.seed}"], quoted(out / "pairs")
    encoder = f"encoder={cfg.encoder.name}"
    sampler = [f"sampler.{k}={v}" for k, v in given_sampling(cfg.sampler).items()]
    starter = ["sample", "pretrained=starter", f"paths.runs={quoted(cfg.paths.runs)}", f"seed={cfg.seed}"]
    commands = {"starter": [*starter, f"input={quoted(out / 'photos')}", f"out={quoted(out / 'starter')}"]}
    if cfg.demo.images:
        own = [f"input={quoted(cfg.demo.images)}", f"out={quoted(out / 'own')}", "max_failed=1"]
        commands["own images"] = [*starter, *own]
    commands |= {"embed": ["embed", encoder, f"input={quoted(ASSETS)}", f"out={pairs}", "loudness=-18"]}
    for stage in STAGES:
        experiment = f"experiment={EXPERIMENTS[cfg.demo.family]}/{stage}"
        commands[stage] = ["train", experiment, "overwrite=true", *runs, *cfg.demo.overrides]
    for split in ("train", "valid"):
        where = [f"model={quoted(out)}", f"data={pairs}", f"split={split}", f"out={quoted(out / 'evaluation' / split)}"]
        commands[f"evaluate_{split}"] = ["evaluate", *where, "batch_size=64", "resamples_fd=2", *runs, *sampler]
    return commands


def demo(cfg: DictConfig) -> dict[str, Any]:
    """Run all stages and return the figures."""
    from im2wav.evaluation.demo_page import write_demo

    start, out, seconds = time.monotonic(), Path(cfg.paths.runs) / "demo", {}
    for made in ("pairs", "evaluation", "own", "photos", "starter"):  # written by an earlier demo
        shutil.rmtree(out / made, ignore_errors=True)
    (out / "photos").mkdir(parents=True)
    for name in PHOTOS:
        shutil.copy(ASSETS / "images" / f"{name}.jpg", out / "photos")
    for name, arguments in stage_commands(cfg, out).items():
        before = time.monotonic()
        run_command(*arguments)
        seconds[name] = round(time.monotonic() - before, 1)
    seconds["total"] = round(time.monotonic() - start, 1)
    figures = write_demo(out, STAGES, cfg.demo.images, seconds)
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
    """Run the command."""
    run(demo, cfg)


if __name__ == "__main__":
    main()
