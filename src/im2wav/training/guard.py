"""Callbacks that skip non-finite steps and show the loss."""

import csv
import logging
import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.optim import Optimizer

from im2wav.system import track_progress

log = logging.getLogger(__name__)


class SkipNonFiniteSteps(pl.Callback):
    """Skip optimizer steps with a NaN or infinite loss or gradient: weights and optimizer state stay unchanged.

    Skipped steps and the ids of their items are written to `skipped_steps.csv` in the folder of the run. In fp16, some
    overflows are normal: each reduces the loss scale.

    Args:
        folder: folder of the run.
        max_in_row: number of consecutive skipped steps after which training stops with an error.

    Attributes:
        skipped: number of skipped steps.
        norm: gradient norm of the last step before clipping.
        loss: training loss of the last batch, for the progress bar.
    """

    def __init__(self, folder: str, max_in_row: int = 20):
        self.path = Path(folder) / "skipped_steps.csv"
        self.max_in_row = max_in_row
        self.skipped = self.in_row = 0
        self.norm = self.loss = 0.0
        self._ids: list[str] = []
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Both counts."""
        return {"skipped": self.skipped, "in_row": self.in_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both counts."""
        self.skipped, self.in_row = state_dict["skipped"], state_dict["in_row"]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        """Remember the ids of the items."""
        self._ids += batch.id

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss; reading its value here would synchronise with the GPU."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop non-finite gradients.

        Raises:
            ValueError: too many consecutive steps were skipped.
        """
        norm: Any = pl_module.gradient_norm  # over all shards
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss = torch.stack(self._losses).sum().to(norm)
        non_finite = ~(loss.isfinite() & norm.isfinite())
        if trainer.world_size > 1:  # all processes skip the same steps
            non_finite = non_finite.to(norm)
            dist.all_reduce(non_finite, dist.ReduceOp.MAX)
        last: Any = pl_module.last_loss
        shown = loss if last is None else last.to(norm)
        # the only synchronisation with the GPU in a step
        total, self.norm, skip, self.loss = torch.stack([loss, norm, non_finite.to(norm), shown]).tolist()
        ids, self._ids = self._ids, []
        self._losses.clear()
        if not skip:
            self.in_row = 0
            return
        self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
        optimizer.zero_grad(set_to_none=True)  # the optimizer skips parameters without a gradient
        self._write(trainer, total, ids)
        if self.in_row >= self.max_in_row:
            raise ValueError(
                f"training stopped at step {trainer.global_step}: {self.in_row} consecutive steps had a NaN or "
                f"infinite loss or gradient. Their items are listed in {self.path}. Check these files, lower "
                "model.optimizer.lr, or use trainer.precision=bf16-mixed (or 32-true) instead of fp16; "
                "resume=auto resumes from the last checkpoint"
            )

    def _write(self, trainer: pl.Trainer, loss: float, ids: list[str]) -> None:
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(everyone, ids)
            ids = [name for part in everyone for name in part]
        if not trainer.is_global_zero:
            return
        log.warning("step %d skipped: loss %s, gradient norm %s", trainer.global_step, loss, self.norm)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "loss", "gradient_norm", "ids"])
            writer.writerow([trainer.global_step, loss, self.norm, " ".join(ids)])


class ProgressBar(TQDMProgressBar):
    """Progress bar with the training loss that `SkipNonFiniteSteps` read; lines in the log without a terminal.

    `log(..., prog_bar=True)` would synchronise with the GPU in every step.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the bar by lines where stdout is no terminal."""
        super().setup(trainer, pl_module, stage)
        self._writes_lines = trainer.is_global_zero and self.refresh_rate > 0 and not sys.stdout.isatty()
        if self._writes_lines:
            self.disable()

    def _count(self, desc: str, unit: str, total: float, initial: int = 0) -> Any:
        return track_progress(
            desc=desc,
            unit=unit,
            total=int(total) if 0 < total < math.inf else None,
            initial=initial,
            hidden=None if self._writes_lines else True,
        )

    def on_train_start(self, *arguments: Any) -> None:
        """Begin to count steps, from those of a resumed run on."""
        super().on_train_start(*arguments)
        self._steps = self._count("train", "step", self.trainer.max_steps, self.trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._writes_lines:
            loss = self.get_metrics(trainer, pl_module).get("train/loss")
            self._steps.set_postfix_str("" if loss is None else f"train/loss {loss:.4g}", refresh=False)
            self._steps.update(trainer.global_step - self._steps.n)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count batches."""
        super().on_validation_start(trainer, pl_module)
        self._batches = self._count("validation", "batch", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """Count the batch."""
        super().on_validation_batch_end(*arguments)
        self._batches.update()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count batches."""
        super().on_test_start(trainer, pl_module)
        self._batches = self._count("test", "batch", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *arguments: Any) -> None:
        """Count the batch."""
        super().on_test_batch_end(*arguments)
        self._batches.update()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Add `train/loss`."""
        losses = [c.loss for c in trainer.callbacks if isinstance(c, SkipNonFiniteSteps)]  # type: ignore[attr-defined]
        return super().get_metrics(trainer, pl_module) | ({"train/loss": losses[0]} if losses else {})
