"""Checkpoints: written whole or not at all, the newest, the best and periodic ones, the rest pruned."""

import logging
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

log = logging.getLogger(__name__)


class WholeFiles(TorchCheckpointIO):
    """Writes under another name, waits until the bytes are on disk, and renames: no reader ever meets half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            OSError: the disk is full or the folder cannot be written; what was there stays.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".writing")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            temporary.unlink(missing_ok=True)
            raise OSError(f"cannot write the checkpoint {path}: {error}") from error


def complaint(path: Path) -> str | None:
    """What is wrong with a checkpoint of ours; None where it is whole. Reads all of it: each part has a checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return "a checksum does not fit"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever the broken file provokes
        return type(error).__name__
    return None if isinstance(checkpoint, Mapping) and "kind" in checkpoint else "not of a training run"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _periodic(folder: Path) -> list[Path]:
    """All checkpoints of a run by step, the newest first."""
    return sorted((folder / "checkpoints").glob("step_*.ckpt"), key=_step, reverse=True)


def newest_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None where it has none at all. Incomplete ones are named in a warning.

    Raises:
        ValueError: there are checkpoints, and all are broken.
    """
    found = _periodic(folder) + [path for path in (folder / "last.ckpt",) if path.is_file()]
    for path in found:
        wrong = complaint(path)
        if wrong is None:
            return path
        log.warning("%s is not complete (%s): going on from the one before it", path, wrong)
    if found:
        raise ValueError(
            f"resume=auto: none of the {len(found)} checkpoints in {folder} is complete; give ckpt_path=PATH to begin "
            "with another, or overwrite=true to begin anew"
        )
    return None


def link(path: Path, name: Path) -> None:
    """Give a file a second name in one step, without a second copy where the file system can."""
    temporary = name.with_name(name.name + ".writing")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # still there where both names already were the same file


class Checkpoints(Checkpoint):
    """Saves `checkpoints/step_N.ckpt` every some steps, at the end of epochs and at the end of training.

    `last.ckpt` is the newest of them, `best.ckpt` the one with the best validation metric.

    Args:
        folder: of the run.
        every_n_steps: updates between two checkpoints; None for none within an epoch.
        every_n_epochs: epochs between two; None for none at the end of epochs.
        keep: how many of the newest stay; the one before the newest serves where the newest is broken.
        milestone_steps: checkpoints at multiples of it are never pruned; None for no such ones.
        monitor: the metric that decides which is best; None for no `best.ckpt`.
        mode: whether the best is the least (`min`) or the largest (`max`).

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | None = 1000,
        every_n_epochs: int | None = 1,
        keep: int = 2,
        milestone_steps: int | None = None,
        monitor: str | None = "valid/loss",
        mode: str = "min",
    ):
        if keep < 1 or mode not in ("min", "max"):
            raise ValueError(f"callbacks.checkpoint: keep={keep}, mode={mode}: expected keep >= 1, mode min or max")
        self.folder = Path(folder)
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.keep, self.milestone_steps = keep, milestone_steps
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self._saved = 0

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is not worth saving: the step that the run begins with."""
        self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        """Log under the optimiser's own step: Lightning counts one too many after a checkpoint that was made behind a
        validation at the end of an epoch."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every `every_n_steps` updates."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._saved:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `best.ckpt` where the metric is better than ever."""
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is None or trainer.sanity_checking or trainer.fast_dev_run or not math.isfinite(value):  # type: ignore[attr-defined]
            return
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better:
            self.best = float(value)
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch, and at the end of all."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or trainer.global_step >= trainer.max_steps > 0 or epoch == trainer.max_epochs
        if trainer.global_step and (last or (self.every_n_epochs and epoch % self.every_n_epochs == 0)):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save now; called on all processes."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = self._saved = trainer.global_step
        path = self.folder / "checkpoints" / f"step_{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            link(path, self.folder / "last.ckpt")
            self._prune(step)
        trainer.strategy.barrier("checkpoint")

    def _prune(self, now: int) -> None:
        ours = []
        for path in _periodic(self.folder):
            if _step(path) > now:  # of a run that this one replaces
                path.unlink()
            elif not self.milestone_steps or _step(path) % self.milestone_steps:
                ours.append(path)
        for path in ours[self.keep :]:
            path.unlink()
