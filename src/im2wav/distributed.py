"""Run `embed` and `sample` on the devices of a Lightning Trainer, and end its processes on a signal."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.utils.data import DataLoader

from im2wav.system import Interrupted, before_exit

log = logging.getLogger(__name__)
LONGEST_WAIT = timedelta(days=30)
LONGEST_END = 10.0  # s after which a process that ignores SIGTERM is killed


def ignore_slurm_without_srun(num_nodes: int = 1) -> None:
    """Ignore the variables of a SLURM job in a process that `srun` did not start, as in an interactive shell.

    Lightning would wait for the other tasks of the job.

    Raises:
        ValueError: several nodes.
    """
    tasks = os.environ.get("SLURM_NTASKS")
    if tasks is None or os.environ.get("SLURM_STEP_NUM_TASKS") == tasks:
        return
    if num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={num_nodes} in a SLURM job (SLURM_NTASKS={tasks}) without srun: start the command with "
            "srun, or set trainer.num_nodes=1"
        )
    log.info("SLURM_NTASKS=%s without srun: SLURM is ignored, trainer.devices counts", tasks)
    os.environ["SLURM_JOB_NAME"] = "interactive"  # so that Lightning ignores it too


def starts_processes(trainer: pl.Trainer) -> bool:
    """Whether this process starts those of further devices, by running the command again."""
    return isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.num_devices > 1


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let a signal end all processes of a Trainer that started them, instead of Lightning's handler, which records it.

    Lightning's handler also sends tensors between processes, in the middle of whatever they do.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    launcher = trainer.strategy.launcher

    def terminate() -> list[subprocess.Popen]:
        processes = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
        for process in processes:
            process.send_signal(signal.SIGTERM)
        return processes

    before_exit.append(terminate)
    try:
        yield
    except Interrupted:
        for process in terminate():
            try:
                process.wait(LONGEST_END)
            except subprocess.TimeoutExpired:
                process.kill()
        raise
    finally:
        before_exit.remove(terminate)


def wait_for_all(trainer: pl.Trainer) -> None:
    """Barrier that signals can interrupt."""
    if trainer.world_size == 1:
        return
    arrival = dist.all_reduce(torch.zeros(1, device=trainer.strategy.root_device), async_op=True)
    while not arrival.is_completed():
        time.sleep(0.02)
    arrival.wait()


def predict_trainer(options: Mapping[str, Any], build: Callable[..., Any], **overrides: Any) -> pl.Trainer:
    """A Trainer for prediction, whose processes wait at the end for the slowest one, however long it takes.

    With torch's default timeout of 10 to 30 minutes, such a run would fail.

    Args:
        options: config of the Trainer; its strategy is kept unless that is DDP.
        build: instantiates a config node with overrides.
        overrides: options of the Trainer.
    """
    ignore_slurm_without_srun(overrides.get("num_nodes", options.get("num_nodes", 1)))
    trainer = build(options, **overrides)
    if type(trainer.strategy) is not DDPStrategy:
        return trainer
    # Lightning has no option for the timeout of a strategy that it chooses or that has a name
    backend = trainer.strategy.process_group_backend
    patient = DDPStrategy(timeout=LONGEST_WAIT, process_group_backend=backend)
    return build(options, **{**overrides, "strategy": patient})


class InferenceModule(pl.LightningModule):
    """Processes batches: `process` is called with each one, and writes its results to disk."""

    def __init__(self, process: Callable[[Any], object], batches: Sequence[Any]):
        super().__init__()
        self.process, self.batches = process, batches

    def predict_step(self, batch: int, batch_idx: int) -> None:
        """Process one batch, given by its index."""
        self.process(self.batches[batch])


def distribute(trainer: pl.Trainer, process: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """Process each batch on one of the devices of the Trainer, and wait for all."""
    indices: DataLoader = DataLoader(range(len(batches)), batch_size=1, collate_fn=lambda x: x[0])  # type: ignore[arg-type]
    with interruptible(trainer):
        trainer.predict(InferenceModule(process, batches), indices, return_predictions=False)
        wait_for_all(trainer)
