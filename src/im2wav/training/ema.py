"""Exponential moving average (EMA) of the weights."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from im2wav.training.sharding import full_state, load_full_state, local_tensors


class EMA(pl.Callback):
    """Keep an exponential moving average (EMA) of the weights for validation and checkpoints.

    The average is always fp32: bf16 has 8 significant bits, so updates with decay 0.999 would round to zero. Updates do
    not synchronise with the GPU. For sharded weights (trainer=fsdp) the average is sharded in the same way, so that
    updates need no communication.

    Buffers are copied from the module: the codebook is already an EMA and must not be averaged again.

    Checkpoints contain the averaged weights in `state_dict` and the training weights in `current_model_state`.

    Args:
        decay: decay per update, 0 <= decay < 1; or `official`: 1 - global batch size / 8000 per step.
        update_every_n_steps: number of optimizer steps between updates; `official` raises the decay to this power.
        warmup: use at most (1 + n) / (10 + n) after n updates, so that the average of a short training does not hold
            the weights that it began with. Source: `num_updates` of TensorFlow's ExponentialMovingAverage. Without
            effect for `official`.

    Raises:
        ValueError: `decay` is neither in range nor `official`, or `update_every_n_steps` < 1.
    """

    def __init__(self, decay: float | str = 0.999, update_every_n_steps: int = 1, warmup: bool = True):
        if decay != "official" and not (isinstance(decay, float | int) and 0 <= decay < 1):
            raise ValueError(f"callbacks.ema.decay={decay}: must be >= 0 and < 1, or official")
        if update_every_n_steps < 1:
            raise ValueError(f"callbacks.ema.update_every_n_steps={update_every_n_steps}: must be >= 1")
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.warmup = warmup and decay != "official"
        self.num_updates = 0
        self._latest_update_step = 0
        self._step_decay = 0.0
        self._averaged: Any = None
        self._live: list[Tensor] = []

    def resolved(self, global_batch_size: int) -> float:
        """Return the decay per update. Source: Im2Wav, train.py, `mu = 1 - (bs * ngpus / 8) / 1000`."""
        if self.decay == "official":
            return (1 - global_batch_size / 8 / 1000) ** self.update_every_n_steps
        return float(self.decay)

    @property
    def averaged(self) -> Any:
        """Module with the averaged weights."""
        assert self._averaged is not None
        return self._averaged

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module before the strategy moves, shards or converts its weights."""
        if stage != "fit":
            return
        size = 0
        if self.decay == "official":
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            each = trainer.world_size * trainer.accumulate_grad_batches
            size = data.global_batch_size or data.batch_size * each
        self._step_decay = self.resolved(size)
        mesh = pl_module._device_mesh  # process groups cannot be copied
        self._averaged = deepcopy(pl_module, {id(mesh): mesh}).float().requires_grad_(False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Shard the average like the weights, or move it to the device; Lightning does this after `setup`."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self.averaged.shard(pl_module.device_mesh["data_parallel"])
        self.averaged.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after every `update_every_n_steps`-th optimizer step; the first update is a copy."""
        step = trainer.global_step
        if step <= self._latest_update_step or (step - 1) % self.update_every_n_steps:
            return
        average, live = (local_tensors(module.parameters()) for module in (self.averaged, pl_module))
        if self.num_updates:
            highest = (1 + self.num_updates) / (10 + self.num_updates) if self.warmup else 1.0
            torch._foreach_lerp_(average, [value.float() for value in live], 1 - min(self._step_decay, highest))
        else:
            torch._foreach_copy_(average, live)
        for buffer, value in zip(self.averaged.buffers(), pl_module.buffers(), strict=True):
            buffer.copy_(value)
        self.num_updates += 1
        self._latest_update_step = step

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with the averaged weights. Keeps a copy of the training weights: swapping would round the average if
        the training weights have a lower precision."""
        if self._averaged is not None:
            self._live = [value.clone() for value in _values(pl_module)]
            torch._foreach_copy_(_values(pl_module), _values(self.averaged))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the training weights."""
        if self._live:
            torch._foreach_copy_(_values(pl_module), self._live)
            self._live = []

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the averaged weights to the module."""
        torch._foreach_copy_(_values(pl_module), _values(self.averaged))

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the latest update."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the latest update."""
        self._latest_update_step = state_dict["latest_update_step"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averaged weights in `state_dict`, the training weights in `current_model_state`."""
        if self._averaged is None:
            return
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = full_state(self.averaged)
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.num_updates)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load both. A checkpoint without an average initialises it from its weights."""
        if self._averaged is None:
            return
        averaged: Mapping[str, Tensor] = checkpoint["state_dict"]
        load_full_state(self.averaged, averaged)
        if "current_model_state" in checkpoint:
            self.num_updates = int(checkpoint["averaging_state"]["n_averaged"])
            load_full_state(pl_module, checkpoint["current_model_state"])


def _values(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return local_tensors([*module.parameters(), *module.buffers()])
