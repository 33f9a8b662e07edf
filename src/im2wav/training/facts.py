"""What a run says of itself: a summary at the start, and figures of its health and speed while it goes on."""

import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from im2wav.files import file_sha256
from im2wav.report.tables import format_duration
from im2wav.training.ema import EMA
from im2wav.training.guard import SkipBadSteps
from im2wav.training.timing import matmul_peak

log = logging.getLogger(__name__)

MEASURED_FROM, MEASURED_TO = 5, 25  # steps whose time the estimate rests on


def git_hash() -> str | None:
    """Commit of the sources, with `+` where they were changed; None outside a repository."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def origin(root: str | Path) -> dict[str, str | None]:
    """What besides the configuration decides a run: the commit of the sources and the hash of the data's manifest."""
    manifest = Path(root) / "manifest.csv"
    digest = file_sha256(manifest) if manifest.is_file() else None
    return {"git": git_hash(), "data_sha256": digest}


class RunFacts(pl.Callback):
    """Logs under `run/`: gradient norm before and after clipping, skipped steps, distance of the averaged weights,
    codes (or windows) per second, the share of time spent waiting for data, memory, and the share of the device's
    measured matmul peak (MFU).

    Args:
        every_n_steps: updates between two rows; Lightning's `log_every_n_steps` where None.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.every_n_steps = every_n_steps
        self.peak = 0.0
        self._end = self._begin = self._since = 0.0
        self._waited = self._worked = 0.0
        self._items = self._steps = 0
        self._seen = 0
        self._flops: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what will be trained."""
        self._end, self._seen, self._first = 0.0, trainer.global_step, trainer.global_step
        if trainer.is_global_zero:
            log.info("\n%s", "\n".join(summary(trainer, pl_module)))  # on a line of its own beside a progress bar

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock of the data; the first time, count what one item costs."""
        if self._flops is None:
            with trainer.precision_plugin.forward_context():  # autocast
                self._flops = 3 * pl_module.item_flops(batch)
            device = pl_module.device.type
            dtype = "fp32" if "32" in str(trainer.precision) else "bf16"
            self.peak = matmul_peak(dtype, device, 1024 if device == "cpu" else 8192)
            self._end = 0.0
        self._begin = time.perf_counter()
        if self._end:
            self._waited += self._begin - self._end

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validation is no waiting for data."""
        self._end = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock of the step, and log now and then."""
        self._end = time.perf_counter()
        self._worked += self._end - self._begin
        self._items += len(batch.wav)
        step = trainer.global_step
        if step == self._seen:  # within an accumulated step
            return
        self._seen, self._steps = step, self._steps + 1
        if step - self._first == MEASURED_FROM:
            self._since = self._end
        elif step - self._first == MEASURED_TO and trainer.is_global_zero and trainer.max_steps > 0:
            each = (self._end - self._since) / (MEASURED_TO - MEASURED_FROM)
            left = format_duration(each * (trainer.max_steps - step))
            log.info("%.3g s a step: the remaining %d steps take about %s", each, trainer.max_steps - step, left)
        if step % (self.every_n_steps or trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            pl_module.log_dict({f"run/{k}": v for k, v in self._figures(trainer, pl_module).items()})
            self._waited = self._worked = 0.0
            self._items = 0

    def _figures(self, trainer: pl.Trainer, module: Any) -> dict[str, float]:
        figures: dict[str, float] = {}
        clip = trainer.gradient_clip_val
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SkipBadSteps):
                norm = callback.norm
                clipped = min(norm, clip) if clip and trainer.gradient_clip_algorithm != "value" else norm
                figures |= {"gradient_norm": norm, "gradient_norm_clipped": float(clipped)}
                figures["skipped_steps"] = float(callback.skipped)
            elif isinstance(callback, EMA):
                figures["ema_distance"] = distance(callback.averaged.net, module.net)
        seconds = max(self._worked + self._waited, 1e-9)
        items = self._items / seconds * trainer.world_size
        figures |= {"windows_per_second": items, "data_wait_share": self._waited / seconds}
        if hasattr(module.net, "context_length"):
            figures["codes_per_second"] = items * module.net.context_length
        if self._flops and self.peak:
            figures["mfu"] = self._flops * items / trainer.world_size / self.peak
        if module.device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        else:
            figures["memory_gb"] = resident() / 1e9
        return figures


def resident() -> int:
    """Bytes of main memory that this process holds; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.is_file() else 0


@torch.no_grad()
def distance(averaged: torch.nn.Module, net: torch.nn.Module) -> float:
    """How far the averaged weights are from the live ones, relative to the live ones' norm."""
    live = [p.detach() for p in net.parameters()]
    apart = torch._foreach_sub([p.detach() for p in averaged.parameters()], live)
    ratio = torch.nn.utils.get_total_norm(apart) / torch.nn.utils.get_total_norm(live)
    return (ratio.full_tensor() if isinstance(ratio, DTensor) else ratio).item()


def summary(trainer: pl.Trainer, module: Any) -> list[str]:
    """Parameters by part, memory, steps in an epoch."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in module.net.named_children()}
    sizes["own"] = sum(p.numel() for p in module.net.parameters(recurse=False))
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items() if size)
    averaged = any(isinstance(callback, EMA) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    copies = 4 + averaged  # weights, gradients, two moments, the average
    batches, passes = trainer.num_training_batches, trainer.accumulate_grad_batches
    batch = trainer.train_dataloader.dataset.share.global_batch_size  # type: ignore[union-attr]
    return [
        f"{total / 1e6:.2f} M parameters: {parts}",
        f"memory: {copies * 4 * total / 1e9:.2f} GB for weights{', average' if averaged else ''}, gradients, moments, "
        "besides the activations of a batch (docs/training.md has a table)",
        f"{-(-batches // passes)} steps in an epoch, of {batch} windows each on {trainer.world_size} device(s); "
        f"{trainer.max_steps} steps in all, {trainer.global_step} made",
    ]
