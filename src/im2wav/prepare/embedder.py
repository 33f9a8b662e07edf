"""Frames of several clips packed into batches of a fixed size, the image encoder as a LightningModule, and unpacking.

All batches have the same number of rows, the last one padded with zeros, so that the embedding of an image is
bit-identical whatever the rest of the batch, hence for any number of workers and devices.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from im2wav.distributed import wait_for_all
from im2wav.media.encoder import ImageEncoder
from im2wav.prepare.clip_reader import ClipReader, Decoded, End, Workers
from im2wav.prepare.sources import Source

Finish = Callable[[int, End, np.ndarray | None], None]


class Packed(NamedTuple):
    """A batch: consecutive rows belong to a clip, and some clips end with it."""

    squares: Tensor  # uint8 [B, 3, S, S]
    runs: list[tuple[int, int]]  # (clip, number of rows) in order; the remaining rows are padding
    ends: list[tuple[int, End]]  # (clip, how it ended)


def pack_frames(
    messages: Iterable[tuple[int, np.ndarray | End]], rows: int, size: int, pinned: bool = False
) -> Iterator[Packed]:
    """Interleaved messages of several clips -> batches of `rows` squares of side `size`."""

    def empty() -> Packed:  # pinned memory comes from PyTorch's cache: only the first few batches allocate
        return Packed(torch.zeros(rows, 3, size, size, dtype=torch.uint8, pin_memory=pinned), [], [])

    batch, filled = empty(), 0
    for clip, message in messages:
        if not isinstance(message, np.ndarray):
            batch.ends.append((clip, message))
            continue
        while len(message):
            if filled == rows:
                yield batch
                batch, filled = empty(), 0
            count = min(len(message), rows - filled)
            batch.squares[filled : filled + count] = torch.from_numpy(message[:count])
            batch.runs.append((clip, count))
            message, filled = message[count:], filled + count
    if batch.runs or batch.ends:
        yield batch


class Unpacker:
    """Collects the embeddings of each clip until it ends; the inverse of `pack_frames`.

    `finish` is called with each clip, how it ended, and its embeddings float16 [F, D], None where it failed or has no
    image.
    """

    def __init__(self, finish: Finish):
        self.finish = finish
        self.parts: dict[int, list[np.ndarray]] = {}

    def __call__(self, batch: Packed, embeddings: np.ndarray) -> None:
        """Unpack the embeddings float16 [B, D] of a batch. They are copied."""
        start = 0
        for clip, count in batch.runs:
            self.parts.setdefault(clip, []).append(embeddings[start : start + count].copy())
            start += count
        for clip, end in batch.ends:
            parts = self.parts.pop(clip, [])
            self.finish(clip, end, np.concatenate(parts) if parts and isinstance(end, Decoded) else None)


class PackedFrames(IterableDataset):
    """Decodes sources in its own processes and packs their frames: an epoch of `Packed` batches.

    Use it in a DataLoader with num_workers=0: DataLoader workers would all end with the first that dies.

    Args:
        sources: by the number that batches use for the clip.
        reader: reads one source.
        rows: rows of a batch.
        num_workers, timeout: see `Workers`.
        pinned: whether batches are in pinned memory, from which a GPU copies asynchronously.
    """

    def __init__(
        self,
        sources: dict[int, Source],
        reader: ClipReader,
        rows: int,
        num_workers: int,
        timeout: float,
        pinned: bool = False,
    ):
        self.sources, self.size, self.rows, self.pinned = sources, reader.size, rows, pinned
        self.workers = Workers(reader, min(num_workers, max(1, len(sources))), timeout)

    def __iter__(self) -> Iterator[Packed]:
        return pack_frames(self.workers.run(self.sources.items()), self.rows, self.size, self.pinned)


class HostCopy:
    """Asynchronous copy of a tensor to the CPU, which does not wait for work that is queued later, as `cpu()` does."""

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
        finish: see `Unpacker`.
        close: called at the end on every device but the first.
        threads: CPU threads of the encoder.
        on_batch: called after each batch, so that progress is shown within long clips.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        finish: Finish,
        close: Callable[[], None],
        threads: int,
        on_batch: Callable[[], object] = lambda: None,
    ):
        super().__init__()
        self.encoder, self.close, self.threads, self.on_batch = encoder, close, threads, on_batch
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
        self.on_batch()

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
        wait_for_all(self.trainer)
