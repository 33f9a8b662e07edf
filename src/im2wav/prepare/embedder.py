"""The image encoder as a LightningModule for prediction."""

import time
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from im2wav.media.encoder import ImageEncoder
from im2wav.prepare.packing import End, Packed, Unpacker


class HostCopy:
    """Asynchronous copy of a tensor to the CPU.

    On a GPU, it copies to pinned memory and records an event: waiting for the event does not wait for work that is
    queued later, unlike `tensor.cpu()`.
    """

    def __init__(self, tensor: Tensor):
        self.done: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self.host = tensor.cpu()
            return
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.host.copy_(tensor, non_blocking=True)
        self.done = torch.cuda.Event(blocking=True)  # do not spin: the CPU decodes
        self.done.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> np.ndarray:
        """Wait for the copy and return it."""
        if self.done is not None:
            self.done.synchronize()
        return self.host.numpy()


class Embedder(pl.LightningModule):
    """Embed packed frames and pass on each clip when it is complete.

    Args:
        encoder: the image encoder.
        finish: called with the number of each clip, how it ended and its embeddings, float16 [F, D].
        close: called at the end on every device but the first.
        threads: CPU threads of the encoder.
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
        self.began: float | None = None  # time of the first batch, by time.monotonic
        self.running: tuple[Packed, HostCopy] | None = None

    def on_predict_start(self) -> None:
        """Use the same number of threads for any number of devices, because the order of sums depends on it."""
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def transfer_batch_to_device(self, batch: Packed, device: torch.device, dataloader_idx: int) -> Packed:
        """Move the images, from pinned memory on a GPU."""
        return batch._replace(squares=batch.squares.to(device, non_blocking=device.type == "cuda"))

    def predict_step(self, batch: Packed, batch_idx: int) -> None:
        """Start a batch and its copy to the CPU, then unpack the previous batch while the GPU computes."""
        self.began = self.began or time.monotonic()
        embeddings = HostCopy(self.encoder(batch.squares).half())
        self._unpack_previous()
        self.running = batch, embeddings

    def _unpack_previous(self) -> None:
        if self.running is not None:
            batch, embeddings = self.running
            self.running = None
            self.unpack(batch, embeddings.numpy())

    def on_predict_end(self) -> None:
        """Unpack the last batch and wait for the other devices."""
        self._unpack_previous()
        torch.set_num_threads(self.threads_before)
        if self.trainer.global_rank:
            self.close()
        self.trainer.strategy.barrier()
