"""Callback that saves and stops on a signal."""

import logging
import os
import signal
import subprocess
import time
from copy import deepcopy
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from im2wav.system import SIGNALS, stop
from im2wav.training.checkpoints import Checkpoints, is_first_process
from im2wav.training.ema import EMA

log = logging.getLogger(__name__)
BEFORE = "before the first step: nothing to save; the same command starts again"


class StopOnSignal(pl.Callback):
    """On SIGTERM, SIGINT, SIGUSR1 or SIGUSR2, finish the step, save a checkpoint and stop.

    All processes stop at the same step, whichever of them received the signal. A second SIGINT (ctrl-C) stops at once.

    Args:
        requeue: requeue the SLURM job: `auto`: after SIGUSR1 or SIGUSR2, as Lightning does after SIGUSR1; True: after
            SIGTERM too; False: never. `#SBATCH --signal=SIGUSR1@120` sends it two minutes before the time limit.

    Raises:
        ValueError: another value of `requeue`.
    """

    def __init__(self, requeue: bool | str = "auto"):
        if requeue not in (True, False, "auto"):
            raise ValueError(f"callbacks.signals.requeue={requeue}: expected auto, true or false")
        self.requeue = requeue
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._loops: dict[str, Any] | None = None  # progress at the end of the epoch, before its validation

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """With several processes, record signals from now on: one that left alone would block the others."""
        if stage == "fit" and trainer.world_size > 1:
            self._replace_handlers()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record signals; stop if one was recorded during the setup."""
        self._replace_handlers()
        if self._agree(trainer):
            self._stop(trainer, BEFORE)

    def _replace_handlers(self) -> None:
        if self._before:
            return
        try:
            kept = {number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN}
            self._before = {number: signal.signal(number, self._record) for number in SIGNALS - kept}
        except ValueError:  # only the main thread can set handlers; some launchers train in another thread
            self._before = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and time.monotonic() - self._since > 1:
            os._exit(130)
        if not self.received:
            self._since = time.monotonic()
            if is_first_process():  # logging is not safe in a signal handler
                os.write(2, f"\n{signal.Signals(number).name}: finishing the step\n".encode())
        self.received = self.received or number

    def _agree(self, trainer: pl.Trainer) -> bool:
        """Whether any process received a signal; all processes must call this."""
        received = bool(self.received)
        return received if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(received, all=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if any process received a signal; never between the accumulated passes of a step.

        Raises:
            Interrupted: a signal was received; the checkpoint is written.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self._loops = deepcopy(trainer.fit_loop.state_dict()) if trainer.is_last_batch else None
        if self._agree(trainer):
            self._save_and_stop(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Stop a validation likewise; the resumed run repeats it.

        Raises:
            Interrupted: as above.
        """
        if self._loops is None or trainer.sanity_checking or not self._agree(trainer):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.on_validation_epoch_end(trainer, pl_module)
        self._save_and_stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The progress before the validation is out of date."""
        self._loops = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save an interrupted validation as if it had not begun."""
        if self._loops is not None and trainer.validating:
            checkpoint["loops"]["fit_loop"] = self._loops

    def _save_and_stop(self, trainer: pl.Trainer) -> None:
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
        for callback in savers:
            callback.save(trainer)
        step = trainer.global_step
        if savers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = f"saved a checkpoint at step {step}; resume with resume=auto"
        else:
            text = f"stopped after step {step}; nothing is saved, as this run has no checkpoints"
        self._stop(trainer, text)

    def _stop(self, trainer: pl.Trainer, text: str) -> None:
        number = self.received or signal.SIGTERM  # of another process
        previous = self._before.get(number)
        if getattr(previous, "__module__", "").startswith("submitit"):
            log.info(text)
            previous(number, None)  # type: ignore[misc]  # requeues in its own way and exits, or only logs
        if trainer.is_global_zero and self._requeues(number):
            requeue_job()
        stop(number, text)

    def _requeues(self, number: int) -> bool:
        if self.requeue == "auto":
            return number not in (signal.SIGINT, signal.SIGTERM) and "SLURM_JOB_ID" in os.environ
        return bool(self.requeue) and number != signal.SIGINT

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.received = 0


def requeue_job() -> None:
    """Requeue this SLURM job; only a warning outside SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID")
    if not job:
        log.warning("callbacks.signals.requeue=true outside SLURM: nothing to requeue")
    elif subprocess.run(["scontrol", "requeue", job], check=False).returncode:
        log.warning("`scontrol requeue %s` failed: the checkpoint is saved, but the job is not requeued", job)
