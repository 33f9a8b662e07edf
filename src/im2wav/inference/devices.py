"""Work that needs no training, shared out over the devices of a Trainer."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

# processes wait for the slowest one at the end; torch's default gives up after 10 to 30 minutes, and the run fails
LONGEST_WAIT = timedelta(days=30)


class Shared(pl.LightningModule):
    """Does pieces of work on the device that the Trainer gives to this process.

    Args:
        work: what is done with a piece.
        pieces: all of them; the Trainer deals out their numbers.
        nets: moved to the device first.
    """

    def __init__(self, work: Callable[[Any], object], pieces: Sequence[Any], nets: Sequence[nn.Module]):
        super().__init__()
        self.work, self.pieces, self.nets = work, pieces, list(nets)  # a plain list: they are no part of this module

    def on_predict_start(self) -> None:
        """Move the nets."""
        for net in self.nets:
            net.to(self.device)

    def predict_step(self, batch: int, batch_idx: int) -> None:
        """Do one piece; what comes of it is on disk."""
        self.work(self.pieces[batch])


def waiting_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Options that let several processes wait for each other as long as the work takes.

    Args:
        trainer: options of the Trainer. With a strategy other than auto and ddp nothing is changed.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if trainer["strategy"] not in ("auto", "ddp") or not several or torch.backends.mps.is_available():
        return {}
    return {"strategy": DDPStrategy(timeout=LONGEST_WAIT)}


def share_out(
    trainer: pl.Trainer, work: Callable[[Any], object], pieces: Sequence[Any], nets: Sequence[nn.Module]
) -> bool:
    """Do each piece once, on one of the trainer's devices. Returns, when all are done, whether this process leads."""
    loader: DataLoader = DataLoader(range(len(pieces)), batch_size=1, collate_fn=_only)  # type: ignore[arg-type]
    trainer.predict(Shared(work, pieces, nets), loader, return_predictions=False)
    trainer.strategy.barrier()
    return trainer.is_global_zero


def _only(numbers: list[int]) -> int:
    (number,) = numbers
    return number
