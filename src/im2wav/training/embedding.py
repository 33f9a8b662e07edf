"""The image encoder as Lightning predicts with it."""

import time
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from im2wav.data.encoder import ImageEncoder
from im2wav.data.packing import End, Packed, Unpacker


class Embedder(pl.LightningModule):
    """Embeds packed frames and hands each clip over when it is complete.

    Args:
        encoder: the image encoder.
        finish: called with each clip's number, how it ended and its embeddings, float16 [F, D].
        close: called on every device but the first once it has no more, before the first goes on.
        threads: CPU threads.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        finish: Callable[[int, End, np.ndarray | None], None],
        close: Callable[[], None],
        threads: int,
    ):
        super().__init__()
        self.encoder, self.close, self.threads = encoder, close, threads
        self.unpack = Unpacker(finish)
        self.began: float | None = None  # when the first batch came, by time.monotonic
        self.running: tuple[Packed, Tensor] | None = None

    def on_predict_start(self) -> None:
        """Take as many threads on two devices as on one, where Lightning divides them: sums depend on their number."""
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def transfer_batch_to_device(self, batch: Packed, device: torch.device, dataloader_idx: int) -> Packed:
        """Move the images alone."""
        if device.type == "cuda":
            return batch._replace(squares=batch.squares.pin_memory().to(device, non_blocking=True))
        return batch

    def predict_step(self, batch: Packed, batch_idx: int) -> None:
        """Start one batch, then take apart the one before: a GPU computes while the next frames are collected."""
        self.began = self.began or time.monotonic()
        embeddings = self.encoder(batch.squares).half()
        self._take_apart()
        self.running = batch, embeddings

    def _take_apart(self) -> None:
        if self.running is not None:
            batch, embeddings = self.running
            self.running = None
            self.unpack(batch, embeddings.cpu().numpy())

    def on_predict_end(self) -> None:
        """Finish the last batch, and wait for the other devices."""
        self._take_apart()
        torch.set_num_threads(self.threads_before)
        if self.trainer.global_rank:
            self.close()
        self.trainer.strategy.barrier()
