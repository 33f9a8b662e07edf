"""Parameters, FLOPs and memory of the presets of `family=residual`, as a Markdown table: `python experiments/sizes.py`.

Memory is that of a training step in bf16-mixed with AdamW and EMA, counted on fake tensors, for windows of 4.1 s.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from im2wav.cli import CONF, instantiate, register_resolvers
from im2wav.codec import LEVELS
from im2wav.codec.losses import Bandwidth
from im2wav.data.windows import Batch
from im2wav.training.hardware import step_memory

CARDS = (8, 12, 24, 80)  # GB
FRAMES = 123  # embeddings of a window at 30 frames a second


def random_batch(cfg: Any, batch: int) -> Batch:
    """Windows of noise with their codes and conditions."""
    samples = cfg.data.num_samples
    counts = {"low": cfg.sizes.low_codebooks, "up": cfg.sizes.codebooks}
    codes = {level: torch.zeros(batch, samples // 320, counts[level], dtype=torch.long) for level in LEVELS}
    timing = {name: torch.full((batch,), float(samples)) for name in ("total", "offset", "duration")}
    clip = torch.randn(batch, FRAMES, cfg.encoder.dim)
    dropped = torch.zeros(batch, dtype=torch.bool)
    return Batch(torch.randn(batch, 1, samples) * 0.1, clip, timing, ["x"] * batch, codes, dropped=dropped)


def build(cfg: Any, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The LightningModule of a configuration, and its training step on a random batch."""
    module, inputs = instantiate(cfg.model), random_batch(cfg, batch)
    module.log_parts = lambda *_, **__: None  # there is no trainer
    module.bandwidth = Bandwidth()
    return module, lambda: module.training_step(inputs, 0)


def write_row(*cells: str) -> None:
    """Write a row of a Markdown table."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


def main() -> None:
    """Print the table."""
    register_resolvers()
    cards = ", ".join(map(str, CARDS))
    columns = ["size", "model", "parameters", "FLOPs of a training step, each window", "memory"]
    columns += ["memory of each window", f"windows that fit {cards} GB"]
    write_row(*columns)
    write_row(*["---"] * len(columns))
    for size in ("tiny", "starter", "base", "large"):
        for model in ("vqvae", "low_prior", "up_prior"):
            with initialize_config_dir(CONF, version_base="1.3"):
                cfg = compose("train", [f"model={model}", "family=residual", f"size={size}", "paths.output=x"])
            with torch.device("meta"):
                parameters = sum(p.numel() for p in instantiate(cfg.model.net).parameters())
            flops = instantiate(cfg.model).item_flops(random_batch(cfg, 1))
            found = step_memory(lambda batch, cfg=cfg: build(cfg, batch), precision="bf16-mixed")
            fits = ", ".join(str(found.largest_batch(card * 1e9) or "none") for card in CARDS)
            sizes = [f"{parameters / 1e6:.1f} M", f"{flops / 1e9:.1f} GFLOP", f"{found.fixed / 1e9:.2f} GB"]
            write_row(size, model, *sizes, f"{found.per_window / 1e6:.0f} MB", fits)


if __name__ == "__main__":
    main()
