"""Run `embed` and `sample` on the devices of a Lightning Trainer."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

LONGEST_WAIT = timedelta(days=30)


def predict_trainer(options: Mapping[str, Any], build: Callable[..., Any], **overrides: Any) -> pl.Trainer:
    """A Trainer for prediction, whose processes wait at the end for the slowest one, however long it takes.

    With torch's default timeout of 10 to 30 minutes, such a run would fail.

    Args:
        options: config of the Trainer; its strategy is kept unless that is DDP.
        build: instantiates a config node with overrides.
        overrides: options of the Trainer.
    """
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
    trainer.predict(InferenceModule(process, batches), indices, return_predictions=False)
    trainer.strategy.barrier()
