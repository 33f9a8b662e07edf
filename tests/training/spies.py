"""Callbacks that look over a training's shoulder; child processes import them too."""

import json
from pathlib import Path

import lightning.pytorch as pl

from im2wav.files import state_sha256


class CodebookHashes(pl.Callback):
    """Writes the hash of all buffers after each step, one file for each process."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (self.folder / f"rank_{trainer.global_rank}.txt").open("a") as file:
            file.write(state_sha256(dict(pl_module.named_buffers())) + "\n")


class Windows(pl.Callback):
    """Writes the clips and offsets of each step's windows, one file for each process."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with (self.folder / f"windows_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([*zip(batch.id, batch.timing["offset"].int().tolist(), strict=True)]) + "\n")
