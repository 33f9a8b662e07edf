"""Packing frames of several clips into batches of a fixed size, and unpacking their embeddings.

All batches have the same number of rows, the last one padded with zeros, so that the embedding of an image is
bit-identical whatever the rest of the batch, hence for any number of workers and devices.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from im2wav.prepare.clip_reader import ClipReader, Decoded, use_one_thread
from im2wav.prepare.sources import Source
from im2wav.prepare.workers import Failed, Workers

End = Decoded | Failed


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

    Args:
        finish: called with each clip, how it ended, and its embeddings float16 [F, D], None where it failed.
    """

    def __init__(self, finish: Callable[[int, End, np.ndarray | None], None]):
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
            self.finish(clip, end, np.concatenate(parts) if isinstance(end, Decoded) else None)


class PackedFrames(IterableDataset):
    """Decodes sources in its own processes and packs their frames: an epoch of `Packed` batches.

    Use it in a DataLoader with num_workers=0: DataLoader workers would all end with the first that dies.

    Args:
        sources: by the number that batches use for the clip.
        reader: reads one source.
        rows: rows of a batch.
        num_workers: processes that decode.
        timeout: seconds without a message after which a process is considered hung.
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
        self.workers = Workers(reader, min(num_workers, max(1, len(sources))), timeout, use_one_thread)

    def __iter__(self) -> Iterator[Packed]:
        return pack_frames(self.workers.run(self.sources.items()), self.rows, self.size, self.pinned)
