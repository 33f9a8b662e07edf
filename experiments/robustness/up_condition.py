"""Bits per code of an up prior, by the image embedding that it gets in the windows of a longer video.

    python experiments/robustness/up_condition.py RUNS PAIRS

RUNS has `vqvae/last.ckpt` and `up_prior/last.ckpt`, PAIRS is a pairs folder of photos with audio. Three of them form a
video of three scenes, whose windows are the first windows of their recordings.
"""

import logging
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from im2wav.checkpoint import load_net
from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import extend_wav
from im2wav.prior import Conditions

SCENES = 3
log = logging.getLogger("up_condition")


def describe(values: list[float]) -> str:
    """Mean and its standard error."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


@torch.inference_mode()
def measure(codec: Any, prior: Any, folder: PairsFolder, pairs: list[Any]) -> None:
    """Log a table row for some pairs."""
    size = prior.context_length * codec.hop_lengths["up"]
    found: dict[str, list[float]] = {"window": [], "video": [], "null": []}
    for first in range(0, len(pairs) - SCENES + 1, SCENES):
        scenes = pairs[first : first + SCENES]
        embeddings = torch.cat([folder.read_clip(pair).mean(0, keepdim=True) for pair in scenes])  # [scenes, D]
        for pair, own in zip(scenes, embeddings, strict=True):
            wav = extend_wav(folder.read_wav(pair)[:size], size, "loop")
            codes = codec.encode(wav[None, None])
            frames = {"window": own[None, None], "video": embeddings[None], "null": torch.zeros_like(own[None, None])}
            for name, clip in frames.items():
                found[name].append(float(prior.bits(codes["up"], Conditions(clip, None, codes["low"]))))
    more = [video - window for video, window in zip(found["video"], found["window"], strict=True)]
    row = [str(len(more)), *map(describe, (*found.values(), more))]
    log.info("| %s | %s |", pairs[0].split, " | ".join(row))


def main() -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs, folder = Path(sys.argv[1]), PairsFolder(sys.argv[2])
    codec: Any = load_net(runs / "vqvae/last.ckpt", "vqvae").eval()
    prior: Any = load_net(runs / "up_prior/last.ckpt", "up_prior").eval()
    log.info("| split | windows | window | video | no image (zeros) | video - window |")
    groups: dict[str, list[Any]] = {}
    for pair in folder.pairs:
        groups.setdefault(pair.split, []).append(pair)
    for pairs in groups.values():
        random.Random(0).shuffle(pairs)
        measure(codec, prior, folder, pairs)


if __name__ == "__main__":
    main()
