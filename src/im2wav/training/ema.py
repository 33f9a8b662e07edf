"""Averaged weights."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(EMAWeightAveraging):
    """An exponential moving average of the weights, which validation and checkpoints use.

    Buffers are the live model's: the codebook keeps averages of its own, and averaging it or its counters again is
    wrong.

    Args:
        decay: of the average at each of its updates; or `official`, 1 - global batch size / 8000 for each step.
        update_every_n_steps: steps between its updates; the official rule takes the decay to this power.

    Raises:
        ValueError: neither a share nor `official`.
    """

    def __init__(self, decay: float | str = 0.999, update_every_n_steps: int = 1):
        if decay != "official" and not (isinstance(decay, float | int) and 0 <= decay < 1):
            raise ValueError(f"callbacks.ema.decay={decay}: expected 0 up to, not including, 1, or official")
        super().__init__(use_buffers=False, update_every_n_steps=update_every_n_steps)
        self.decay = decay

    def resolved(self, global_batch_size: int) -> float:
        """The decay of one update. Source: Im2Wav, train.py, `mu = 1 - (bs * ngpus / 8) / 1000`."""
        if self.decay == "official":
            return (1 - global_batch_size / 8 / 1000) ** self.update_every_n_steps
        return float(self.decay)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average, all weights at once for each update.

        Raises:
            ValueError: the weights are to be sharded.
        """
        if stage != "fit":
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("averages of sharded weights cannot be kept: give callbacks.ema=null with trainer=fsdp")
        size = 0
        if self.decay == "official":
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            each = trainer.world_size * trainer.accumulate_grad_batches
            size = data.global_batch_size or data.batch_size * each
        average = get_ema_multi_avg_fn(self.resolved(size))
        self._average_model = AveragedModel(pl_module, pl_module.device, multi_avg_fn=average, use_buffers=False)

    @property
    def averaged(self) -> Any:
        """The module with the averaged weights."""
        assert self._average_model is not None
        return self._average_model.module
