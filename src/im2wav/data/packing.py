"""Frames of several clips packed into batches of one fixed size, and taken apart again.

All batches have the same number of rows, the last one filled up with zeros: then an image's embedding does not depend,
to the last bit, on what was decoded beside it, so not on the number of workers or devices either.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from im2wav.data.decoding import Decoded, Decoder, one_thread
from im2wav.data.sources import Source
from im2wav.data.workers import Failed, Workers

End = Decoded | Failed


class Packed(NamedTuple):
    """A batch: rows that belong to clips in runs, and clips that end with it."""

    squares: Tensor  # uint8 [B, 3, S, S]
    runs: list[tuple[int, int]]  # (clip, rows) in order; rows beyond them are padding
    ends: list[tuple[int, End]]  # (clip, how it ended)


def pack(messages: Iterable[tuple[int, np.ndarray | End]], rows: int, size: int) -> Iterator[Packed]:
    """Messages of several clips, mixed -> batches of `rows` squares of side `size`."""
    batch, filled = _empty(rows, size), 0
    for clip, message in messages:
        if not isinstance(message, np.ndarray):
            batch.ends.append((clip, message))
            continue
        while len(message):
            if filled == rows:
                yield batch
                batch, filled = _empty(rows, size), 0
            count = min(len(message), rows - filled)
            batch.squares[filled : filled + count] = torch.from_numpy(message[:count])
            batch.runs.append((clip, count))
            message, filled = message[count:], filled + count
    if batch.runs or batch.ends:
        yield batch


def _empty(rows: int, size: int) -> Packed:
    return Packed(torch.zeros(rows, 3, size, size, dtype=torch.uint8), [], [])


class Unpacker:
    """Collects the embeddings of each clip until it ends; the counterpart of `pack`."""

    def __init__(self, finish: Callable[[int, End, np.ndarray | None], None]):
        self.finish = finish
        self.parts: dict[int, list[np.ndarray]] = {}

    def __call__(self, batch: Packed, embeddings: np.ndarray) -> None:
        """Take a batch apart. embeddings: float16 [B, D]. Calls `finish(clip, end, embeddings [F, D])`."""
        start = 0
        for clip, count in batch.runs:
            self.parts.setdefault(clip, []).append(embeddings[start : start + count].copy())
            start += count
        for clip, end in batch.ends:
            parts = self.parts.pop(clip, [])
            self.finish(clip, end, np.concatenate(parts) if isinstance(end, Decoded) else None)


class PackedFrames(IterableDataset):
    """Decodes sources in processes of its own and packs their frames: an epoch of `Packed` batches.

    A torch DataLoader reads it without workers of its own, which would end together with the first that dies.

    Args:
        sources: by number, which the batches call a clip.
        decoder: how they are read.
        rows: of a batch.
        workers: processes that decode.
        timeout: seconds without a sign of life after which one is taken to hang.
    """

    def __init__(self, sources: dict[int, Source], decoder: Decoder, rows: int, workers: int, timeout: float):
        self.sources, self.decoder, self.rows = sources, decoder, rows
        self.workers = Workers(decoder, min(workers, max(1, len(sources))), timeout, one_thread)

    def __iter__(self) -> Iterator[Packed]:
        return pack(self.workers.run(self.sources.items()), self.rows, self.decoder.size)
