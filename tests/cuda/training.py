"""Tiny trainings by the real `train`, on the simulated card."""

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch

from conftest import TINY_NET, TINY_ON_ANY_TRAINER, config
from cuda.state import machine

MODELS = ("vqvae", "low_prior", "up_prior")
WINDOW = 1792  # samples: 56 low codes and 224 up codes; `evaluate` needs 0.1 s
COMMON = [
    *TINY_ON_ANY_TRAINER,
    "trainer.log_every_n_steps=50",  # Lightning's default: steps that log synchronise more often
    f"data.num_samples={WINDOW}",
    "data.batch_size=2",
    "data.windows_per_epoch=100",
    "trainer.limit_val_batches=1",
    "callbacks.progress=null",
    "callbacks.dashboard.items=1",
    "callbacks.dashboard.guidance=[3]",
]


class Costs(pl.Callback):
    """Counts what each step costs, from the end of the step before it to its own end.

    Attributes:
        syncs: host synchronisations by step and place.
        operations: by step.
        initial: the parameters before training, on the CPU.
        allocated: bytes on the card after each step.
        losses: of each step, when all is done.
        scales: the loss scale after each step, in fp16.
    """

    def __init__(self) -> None:
        self.syncs: list[Counter[str]] = []
        self.operations: list[int] = []
        self.initial: dict[str, torch.Tensor] = {}
        self.allocated: list[int] = []
        self.losses: list[torch.Tensor] = []
        self.scales: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.initial = {name: p.detach().cpu().clone() for name, p in pl_module.net.named_parameters()}
        machine.syncs.clear()
        machine.operations.clear()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.syncs.append(+machine.syncs)
        self.operations.append(machine.operations.total())
        self.allocated.append(machine.allocated())
        self.losses.append(outputs["loss"].detach().cpu())
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self.scales.append(scaler.get_scale())
        machine.syncs.clear()
        machine.operations.clear()


def train_tiny(model: str, pairs: Path, runs: Path, *overrides: str, run_name: str = "base") -> tuple[Any, Costs]:
    """Train a tiny model.

    Args:
        model: vqvae, low_prior or up_prior.
        pairs: the pairs folder.
        runs: the folder of all runs; the VQ-VAE of the run `base` is the priors' codec.
        overrides: further options of `train`; trainer=gpu among them.
        run_name: where the run goes in `runs`.

    Returns:
        What `train` returns, and what the steps cost.
    """
    from im2wav.train import train

    folder = runs / run_name / model
    options = [f"model={model}", f"data.root={pairs}", f"codec={runs}/base/vqvae/last.ckpt", *COMMON, *TINY_NET[model]]
    spy = f"+callbacks.costs={{_target_: {__name__}.Costs}}"
    with mock.patch("im2wav.training.monitor.matmul_peak", return_value=1e15):  # an 8192 x 8192 product
        result = train(config("train", *options, *overrides, spy, output=folder))
    (costs,) = [c for c in result["trainer"].callbacks if isinstance(c, Costs)]
    return result, costs
