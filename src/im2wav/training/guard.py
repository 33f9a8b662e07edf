"""What keeps a run alive at night: steps without a number are skipped, a signal to stop is obeyed between two steps."""

import csv
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from im2wav.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)


class SkipBadSteps(pl.Callback):
    """Skips a step whose loss or gradient is NaN or infinite: no weight and no moment of the optimiser moves.

    The skipped step and the ids of its items go to `skipped_steps.csv` in the run's folder. In fp16 some overflows are
    normal: the loss scale falls after each.

    Args:
        folder: of the run.
        max_in_row: so many skipped steps one after the other end the training.

    Attributes:
        skipped: steps skipped so far.
        norm: of the last gradients, before clipping.
    """

    def __init__(self, folder: str, max_in_row: int = 20):
        self.path = Path(folder) / "skipped_steps.csv"
        self.max_in_row = max_in_row
        self.skipped = self.in_row = 0
        self.norm = 0.0
        self._ids: list[str] = []
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Both counts."""
        return {"skipped": self.skipped, "in_row": self.in_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.skipped, self.in_row = state_dict["skipped"], state_dict["in_row"]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        """Remember whose items these are."""
        self._ids += batch.id

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss; looking at it here would make a GPU wait."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of a bad step.

        Raises:
            ValueError: too many in a row.
        """
        norm: Any = pl_module.gradient_norm  # of all shards, where the weights are sharded
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss = torch.stack(self._losses).sum().to(norm)
        bad = ~(loss.isfinite() & norm.isfinite())
        if trainer.world_size > 1:  # all processes skip the same steps
            bad = bad.to(norm)
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        # the one moment of a step at which the host waits for the device
        total, self.norm, is_bad = torch.stack([loss, norm, bad.to(norm)]).tolist()
        ids, self._ids = self._ids, []
        self._losses.clear()
        if not is_bad:
            self.in_row = 0
            return
        self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
        optimizer.zero_grad(set_to_none=True)  # the optimiser passes over parameters without a gradient
        self._write(trainer, total, ids)
        if self.in_row >= self.max_in_row:
            raise ValueError(
                f"training stopped at step {trainer.global_step}: {self.in_row} steps in a row had a NaN or infinite "
                f"loss or gradient. The items of each are in {self.path}. Look at those files, lower "
                "model.optimizer.lr, or use trainer.precision=bf16-mixed (or 32-true) instead of fp16; "
                "resume=auto goes on from the last checkpoint"
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


class StopOnSignal(pl.Callback):
    """On SIGTERM or SIGUSR1 finishes the step, saves, and ends the training; on all processes at the same step.

    Args:
        requeue: hand the SLURM job back to the queue afterwards. With `#SBATCH --signal=SIGUSR1@120` the signal comes
            two minutes before the time is over.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, requeue: bool = False):
        self.requeue = requeue
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers save in the middle of a step."""
        try:
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        except ValueError:  # only the main thread may; some launchers train in another one
            self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop once a process was told to; between passes of one step nobody stops.

        Raises:
            SIGTERMException: after the checkpoint is written.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        told = self.received is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if not told:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save(trainer)
        log.info("told to stop: saved at step %d, go on with resume=auto", trainer.global_step)
        if self.requeue and trainer.is_global_zero:
            requeue_job(os.environ)
        raise SIGTERMException

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def requeue_job(environment: Any, call: Any = subprocess.run) -> Sequence[str] | None:
    """Ask SLURM to queue this job again; returns the command, None outside SLURM."""
    job = environment.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{environment['SLURM_ARRAY_TASK_ID']}" if job else environment.get("SLURM_JOB_ID")
    if not job:
        log.warning("callbacks.signals.requeue=true outside SLURM: nothing to requeue")
        return None
    command = [shutil.which("scontrol") or "scontrol", "requeue", job]
    if call(command, check=False).returncode:
        log.warning("`%s` failed: the job was saved, but is not queued again", " ".join(command))
    return command
