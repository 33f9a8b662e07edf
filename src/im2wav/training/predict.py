"""Distribute independent work items over the devices of a Trainer."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

# processes wait for the slowest one at the end; the default timeout of torch is 10 to 30 minutes
LONGEST_WAIT = timedelta(days=30)


class Shared(pl.LightningModule):
    """LightningModule that processes work items on the device of this process.

    Args:
        work: function of a work item.
        pieces: all work items; the Trainer distributes their indices.
        nets: networks to move to the device first.
    """

    def __init__(self, work: Callable[[Any], object], pieces: Sequence[Any], nets: Sequence[nn.Module]):
        super().__init__()
        self.work, self.pieces, self.nets = work, pieces, list(nets)  # a plain list: they are not submodules

    def on_predict_start(self) -> None:
        """Move the networks to the device."""
        for net in self.nets:
            net.to(self.device)

    def predict_step(self, batch: int, batch_idx: int) -> None:
        """Process one work item, which writes its result to disk."""
        self.work(self.pieces[batch])


def waiting_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer options with a collective timeout that is long enough for the work.

    Args:
        trainer: options of the Trainer; strategies other than auto and ddp are not changed.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if trainer["strategy"] not in ("auto", "ddp") or not several or torch.backends.mps.is_available():
        return {}
    return {"strategy": DDPStrategy(timeout=LONGEST_WAIT)}


def share_out(
    trainer: pl.Trainer, work: Callable[[Any], object], pieces: Sequence[Any], nets: Sequence[nn.Module]
) -> bool:
    """Process each work item once on one of the devices, then return whether this process has rank 0."""
    loader: DataLoader = DataLoader(range(len(pieces)), batch_size=1, collate_fn=_only)  # type: ignore[arg-type]
    trainer.predict(Shared(work, pieces, nets), loader, return_predictions=False)
    trainer.strategy.barrier()
    return trainer.is_global_zero


def _only(numbers: list[int]) -> int:
    (number,) = numbers
    return number
