"""Checkpoints of a run: atomic files; periodic, best and last ones; which one a run resumes from."""

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
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from im2wav.files import atomic_path

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this is rank 0; known before a process group is."""
    return getattr(rank_zero_only, "rank", 0) == 0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints that are complete or absent, flushed to disk.

    Lightning's own plugin holds the whole file in memory, and its temporary file may be on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            ValueError: the disk is full or the folder is not writable; an existing file stays unchanged.
        """
        try:
            with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # of torch if the disk is full
            raise ValueError(f"cannot write the checkpoint {path}: {error}") from error


def checkpoint_error(path: Path) -> str | None:
    """Return why a training checkpoint is invalid, or None. Reads the whole file to verify its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return "checksum mismatch"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many types of errors for broken files
        return type(error).__name__
    return None if isinstance(checkpoint, Mapping) and "kind" in checkpoint else "not a training checkpoint"


def _periodic(folder: Path) -> dict[Path, int]:
    """Periodic checkpoints of a run and their steps, newest first."""
    steps = {path: int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.ckpt")}
    return dict(sorted(steps.items(), key=lambda item: -item[1]))


def find_newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None if there are none. Log a warning for incomplete files.

    Raises:
        ValueError: all checkpoints are incomplete.
    """
    found = [*_periodic(folder), *folder.glob("last.ckpt")]
    for path in found:
        error = checkpoint_error(path)
        if error is None:
            return path
        log.warning("%s is not complete (%s): trying the previous checkpoint", path, error)
    if found:
        raise ValueError(
            f"resume=auto: none of the {len(found)} checkpoints in {folder} is complete; set ckpt_path=PATH to resume "
            "from another checkpoint, or overwrite=true to start over"
        )
    return None


def find_checkpoint(cfg: DictConfig) -> str | None:
    """Find the checkpoint to resume from; a finished run is never overwritten silently.

    Raises:
        ValueError: the folder of this run already holds another checkpoint, `ckpt_path` does not exist, or
            `resume=auto` finds none that is complete.
    """
    output, replaces = Path(cfg.paths.output), cfg.overwrite or cfg.trainer.fast_dev_run
    last = output / "last.ckpt"
    newest = find_newest_checkpoint(output) if cfg.resume == "auto" and not replaces else None
    if newest is not None:
        log.info("resuming from %s", newest)
        return str(newest)
    path = last if cfg.ckpt_path == "last" else cfg.ckpt_path and Path(cfg.ckpt_path)
    if path and not path.is_file():
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: {path} does not exist")
    ours = path and path.resolve().is_relative_to(output.resolve())
    if last.is_file() and not (replaces or ours) and is_first_process():
        raise ValueError(
            f"{last.parent} already holds a trained model: give resume=auto to "
            "resume it, run_name=NAME to keep it and train another, or overwrite=true to replace it"
        )
    return str(path) if path else None


def check_resume(path: str, module: Any, datamodule: Any) -> dict[str, Any]:
    """Reject a checkpoint of another model, other codes or other embeddings; return its model configuration.

    Raises:
        ValueError: it is one.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        kind, data, config = checkpoint["kind"], checkpoint["data"], checkpoint["config"]
    except Exception as error:  # torch.load raises whatever the broken file provokes
        raise ValueError(f"ckpt_path={path} is not a checkpoint of a training run ({type(error).__name__})") from error
    if kind != module.kind:
        raise ValueError(f"ckpt_path={path} holds a {kind}, expected a {module.kind}")
    codec = getattr(module, "codec_sha256", None)
    if codec != checkpoint.get("codec_sha256"):
        raise ValueError(f"ckpt_path={path} was trained on the codes of another VQ-VAE: give that one as codec=PATH")
    now = datamodule.identity()
    for name in ("encoder", "weights_sha256", "fps") if codec else ():
        if data[name] != now[name]:
            raise ValueError(f"ckpt_path={path} was trained on data with {name}={data[name]}, not {now[name]}")
    fixed = {"decay_everything": False, "optimizer._target_": None}
    for name, default in fixed.items():
        before, now = (OmegaConf.select(OmegaConf.create(c), name, default=default) for c in (config, module.config))
        if before != now and checkpoint.get("optimizer_states"):
            raise ValueError(
                f"ckpt_path={path} was trained with model.{name}={before}, now {now}, which does not fit its optimizer "
                "state: set the same, or begin a new run with the exported weights (ckpt_path=FILE.safetensors)"
            )
    return dict(config)


def _hard_link(path: Path, name: Path) -> None:
    """Create or replace a hard link atomically; copy the file if the file system has no hard links."""
    with atomic_path(name) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


class Checkpoints(Checkpoint):
    """Save `checkpoints/step_N.ckpt` every `every_n_steps`, after epochs and at the end of training.

    `last.ckpt` is the newest checkpoint, `best.ckpt` the one with the best validation metric.

    Args:
        folder: folder of the run.
        every_n_steps: number of optimizer steps between checkpoints; None: none within an epoch.
        every_n_epochs: number of epochs between checkpoints; None: none after epochs.
        keep: number of newest checkpoints to keep; resuming uses an older one if the newest is incomplete.
        milestone_steps: never prune checkpoints at multiples of this number of steps; None: prune all.
        monitor: metric of the best checkpoint; None: no `best.ckpt`.
        mode: `min` or `max`: whether lower or higher is better.

    Raises:
        ValueError: an option is out of range.
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
        """Restore the best value."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip saving at the first step of the run."""
        self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        """Log under the optimizer step: Lightning's counter is one too high after resuming from a checkpoint that was
        saved after the validation at the end of an epoch."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every `every_n_steps` optimizer steps; at the end of an epoch after its validation.

        A run that dies in that validation would otherwise resume after it, and never make it.
        """
        if self._is_due(trainer.global_step) and trainer.global_step != self._saved and not trainer.is_last_batch:
            self.save(trainer)

    def _is_due(self, step: int) -> bool:
        return bool(self.every_n_steps) and step % self.every_n_steps == 0  # type: ignore[operator]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `best.ckpt` if the metric improved."""
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is None or trainer.sanity_checking or trainer.fast_dev_run or not math.isfinite(value):  # type: ignore[attr-defined]
            return
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better:
            self.best = float(value)
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after epochs and at the end of training."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or trainer.global_step >= trainer.max_steps > 0 or epoch == trainer.max_epochs
        due = self._is_due(trainer.global_step) or (self.every_n_epochs and epoch % self.every_n_epochs == 0)
        if trainer.global_step and (last or due):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint; all processes must call this."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = self._saved = trainer.global_step
        path = self.folder / "checkpoints" / f"step_{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _hard_link(path, self.folder / "last.ckpt")
            self._prune(step)
        trainer.strategy.barrier("checkpoint")

    def _prune(self, now: int) -> None:
        for stale in (self.folder / "checkpoints").glob(".writing-*"):  # of a run that was killed while it saved
            stale.unlink()
        ours = []
        for path, step in _periodic(self.folder).items():
            if step > now:  # from a run that this run overwrites
                path.unlink()
            elif not self.milestone_steps or step % self.milestone_steps:
                ours.append(path)
        for path in ours[self.keep :]:
            path.unlink()
