"""Summary of a run at the start, and metrics of stability and speed during training."""

import logging
import resource
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from im2wav.files import file_sha256
from im2wav.report.page import format_duration
from im2wav.training.ema import EMA
from im2wav.training.guard import SkipNonFiniteSteps

log = logging.getLogger(__name__)

MEASURED_FROM, MEASURED_TO = 5, 25  # steps that the time estimate is measured on
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronise(device: str) -> None:
    """Wait for all work on the device, such as cuda:1."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def best_time(work: Callable[[], object], device: str = "cpu", repeats: int = 5, warm_up: int = 2) -> float:
    """Seconds of the fastest of `repeats` runs: on a shared machine the others measure other processes."""

    def once() -> None:
        work()
        synchronise(device)

    for _ in range(warm_up):
        once()
    return min(timeit.repeat(once, number=1, repeat=repeats))


def matmul_peak(dtype: str = "fp32", device: str = "cpu", size: int | None = None) -> float:
    """Floating-point operations per second of a large square matrix product.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"precision {dtype!r}: expected one of {tuple(DTYPES)}")
    n = size or (2048 if device == "cpu" else 8192)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, device)


def run_provenance(root: str | Path) -> dict[str, str | None]:
    """Inputs of a run besides its configuration.

    Returns:
        The commit of the source code, with `+` if it has uncommitted changes, and the hash of the data manifest; None
        outside a git repository, and without a manifest.
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    manifest = Path(root) / "manifest.csv"
    return {"git": commit, "data_sha256": file_sha256(manifest) if manifest.is_file() else None}


class RunMonitor(pl.Callback):
    """Log metrics under `run/`: gradient norm before and after clipping, skipped steps, distance of EMA and training
    weights, codes (or windows) per second, fraction of time spent waiting for data, peak memory, and model FLOPs
    utilisation (MFU) relative to the measured matmul peak of the device.

    Lightning's ThroughputMonitor would synchronise with the GPU in every step, and knows the peak of few devices.

    Args:
        every_n_steps: optimizer steps between logs; None: `trainer.log_every_n_steps`.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.every_n_steps = every_n_steps
        self._end = self._begin = self._since = 0.0
        self._waited = self._worked = 0.0
        self._items = self._seen = self._first = 0
        self._flops: int | None = None  # of a training step over one window
        self._peak = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log a summary of the model and the run."""
        self._end, self._seen, self._first = 0.0, trainer.global_step, trainer.global_step
        if trainer.is_global_zero:
            log.info("\n%s", "\n".join(_summary(trainer, pl_module)))  # start on a new line, after the progress bar

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure the waiting time for data; at the first step, count the FLOPs of an item."""
        if self._flops is None:
            with trainer.precision_plugin.forward_context():  # autocast
                self._flops = pl_module.item_flops(batch)
            device = pl_module.device.type
            dtype = "fp32" if "32" in str(trainer.precision) else "bf16"
            self._peak = matmul_peak(dtype, device, 1024 if device == "cpu" else 8192)
            self._end = 0.0
        self._begin = time.perf_counter()
        if self._end:
            self._waited += self._begin - self._end

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Exclude validation from the waiting time."""
        self._end = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure the time of the step; log every `every_n_steps`."""
        self._end = time.perf_counter()
        self._worked += self._end - self._begin
        self._items += len(batch.wav)
        step = trainer.global_step
        if step == self._seen:  # gradient accumulation: no optimizer step yet
            return
        self._seen = step
        if step - self._first == MEASURED_FROM:
            self._since = self._end
        elif step - self._first == MEASURED_TO and trainer.is_global_zero and trainer.max_steps > 0:
            each = (self._end - self._since) / (MEASURED_TO - MEASURED_FROM)
            left = format_duration(each * (trainer.max_steps - step))
            log.info("%.3g s per step: the remaining %d steps take about %s", each, trainer.max_steps - step, left)
        if step % (self.every_n_steps or trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            pl_module.log_dict({f"run/{k}": v for k, v in self._figures(trainer, pl_module).items()})
            self._waited = self._worked = 0.0
            self._items = 0

    def _figures(self, trainer: pl.Trainer, module: Any) -> dict[str, float]:
        figures: dict[str, float] = {}
        clip = trainer.gradient_clip_val
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SkipNonFiniteSteps):
                norm = callback.norm
                clipped = min(norm, clip) if clip and trainer.gradient_clip_algorithm != "value" else norm
                figures |= {"gradient_norm": norm, "gradient_norm_clipped": float(clipped)}
                figures["skipped_steps"] = float(callback.skipped)
            elif isinstance(callback, EMA):
                figures["ema_distance"] = _relative_distance(callback.averaged.net, module.net)
        seconds = max(self._worked + self._waited, 1e-9)
        items = self._items / seconds * trainer.world_size
        figures |= {"windows_per_second": items, "data_wait_share": self._waited / seconds}
        if hasattr(module.net, "context_length"):
            figures["codes_per_second"] = items * module.net.context_length
        if self._flops and self._peak:
            figures["mfu"] = self._flops * items / trainer.world_size / self._peak
        if module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:  # bytes on macOS, else kB
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return figures | {"memory_gb": peak / 1e9}


@torch.no_grad()
def _relative_distance(averaged: torch.nn.Module, net: torch.nn.Module) -> float:
    """Norm of the difference between averaged and training weights, relative to the norm of the training weights."""
    live = [p.detach() for p in net.parameters()]
    difference = torch._foreach_sub([p.detach() for p in averaged.parameters()], live)
    ratio = torch.nn.utils.get_total_norm(difference) / torch.nn.utils.get_total_norm(live)
    return (ratio.full_tensor() if isinstance(ratio, DTensor) else ratio).item()


def _summary(trainer: pl.Trainer, module: Any) -> list[str]:
    """Lines with the parameters by submodule, memory and steps per epoch."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in module.net.named_children()}
    sizes["own"] = sum(p.numel() for p in module.net.parameters(recurse=False))
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items() if size)
    averaged = any(isinstance(callback, EMA) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
    some = f", {trained / 1e6:.2f} M of them trained" if trained < total else ""
    numbers = (1 + averaged) * total + 3 * trained  # weights and their average; gradients and two moments
    batches, passes = trainer.num_training_batches, trainer.accumulate_grad_batches
    batch = trainer.train_dataloader.dataset.partition.global_batch_size  # type: ignore[union-attr]
    return [
        f"{total / 1e6:.2f} M parameters{some}: {parts}",
        f"memory: {4 * numbers / 1e9:.2f} GB for weights{', average' if averaged else ''}, gradients, moments, "
        "without the activations of a batch (see the table in docs/training.md)",
        f"{-(-batches // passes)} steps per epoch, each of {batch} windows on {trainer.world_size} device(s); "
        f"{trainer.max_steps} steps in total, {trainer.global_step} completed",
    ]
