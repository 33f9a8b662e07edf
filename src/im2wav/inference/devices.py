"""Distribute inference over the devices of a Lightning Trainer."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

# processes wait for the slowest one at the end; torch's default of 10 to 30 minutes would make the run fail
LONGEST_WAIT = timedelta(days=30)


class InferenceModule(pl.LightningModule):
    """Processes batches on the device that the Trainer assigns to this process.

    Args:
        process: called with each batch; writes its results to disk.
        batches: all batches; the Trainer distributes their indices.
        networks: moved to the device first.
    """

    def __init__(self, process: Callable[[Any], object], batches: Sequence[Any], networks: Sequence[nn.Module]):
        super().__init__()
        self.process, self.batches, self.networks = process, batches, list(networks)  # a list: not submodules

    def on_predict_start(self) -> None:
        """Move the networks to the device."""
        for network in self.networks:
            network.to(self.device)

    def predict_step(self, batch: int, batch_idx: int) -> None:
        """Process one batch."""
        self.process(self.batches[batch])


def waiting_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a Trainer whose processes wait for each other as long as necessary.

    Args:
        trainer: options of the Trainer. Strategies other than auto and ddp are not changed.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if trainer["strategy"] not in ("auto", "ddp") or not several or torch.backends.mps.is_available():
        return {}
    return {"strategy": DDPStrategy(timeout=LONGEST_WAIT)}


def distribute(
    trainer: pl.Trainer, process: Callable[[Any], object], batches: Sequence[Any], networks: Sequence[nn.Module]
) -> bool:
    """Process each batch on one of the devices, and wait for all. Returns whether this is the main process."""
    indices: DataLoader = DataLoader(range(len(batches)), batch_size=1, collate_fn=lambda x: x[0])  # type: ignore[arg-type]
    trainer.predict(InferenceModule(process, batches, networks), indices, return_predictions=False)
    trainer.strategy.barrier()
    return trainer.is_global_zero
