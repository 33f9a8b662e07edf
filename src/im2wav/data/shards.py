"""Reading pairs from shards: a few large files instead of two for each clip, for network disks and object stores.

    dataset.json, manifest.csv    as in a pairs folder, without the pairs that have no audio
    shards.json                   size of a chunk
    wav/index.json                a LitData data set with a record for each row: int16 [samples]
    wav/chunk-0-NUMBER.bin
    clip/index.json, ...          the same for the embeddings: float16 [F, D]

LitData's temporal layout is read by windows: index.json contains the offset of each record, so that a window costs one
read (or one range request) of each array, and the sampler decides the order as it does for a pairs folder.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2wav.data.manifest import Pair
from im2wav.data.pairs import PairsFolder

FIELDS = ("wav", "clip")


def import_litdata() -> Any:
    """LitData, with the submodules that shards use. Their reader and writer of one chunk are not public API.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import litdata
        import litdata.streaming.temporal
        import litdata.streaming.writer
    except ImportError as error:
        raise ValueError("shards need LitData: pip install 'im2wav[shards]'") from error
    logging.getLogger("litdata").setLevel(logging.WARNING)  # it logs each folder that it opens
    return litdata


def open_folder(root: str | Path, chunks: str | None = None) -> PairsFolder:
    """Open a pairs folder, or a folder of shards.

    Args:
        root: the folder with dataset.json and manifest.csv.
        chunks: where the wav/ and clip/ of shards are, if not in `root`: a folder or a URL such as s3://bucket/folder.

    Raises:
        ValueError: it is neither.
    """
    if chunks or (Path(root) / "wav" / "index.json").is_file():
        return ShardsFolder(root, chunks)
    return PairsFolder(root)


class ShardsFolder(PairsFolder):
    """A folder of shards, with the interface of a pairs folder."""

    def __init__(self, root: str | Path, chunks: str | None = None):
        super().__init__(root)
        self.chunks = chunks or str(self.root)
        import_litdata()
        self._rows = {name: row for row, name in enumerate(self.pairs.strings("id"))}
        self._open: tuple[int, dict[str, Any]] | None = None

    def _field(self, name: str) -> Any:
        if self._open is None or self._open[0] != os.getpid():  # each worker opens its own
            lit = import_litdata()
            loader = lit.streaming.temporal.TemporalArrayLoader
            fields = {f: lit.StreamingDataset(f"{self.chunks}/{f}", item_loader=loader()) for f in FIELDS}
            self._open = os.getpid(), fields
        return self._open[1][name]

    def _read(self, name: str, pair: Pair, start: int, length: int) -> np.ndarray:
        try:
            return self._field(name).read_window(self._rows[pair.id], start, length)[name]
        except Exception as error:  # depends on the store
            where = f"{self.chunks}/{name}"
            raise ValueError(f"{where}: {pair.id!r} cannot be read: {type(error).__name__}: {error}") from error

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """Like `PairsFolder.read_wav`; shards have one channel."""
        samples = self._read("wav", pair, start, length if length >= 0 else pair.samples - start)
        return torch.from_numpy(samples.astype(np.float32) / 32768)

    def read_clip(self, pair: Pair, frames: np.ndarray | None = None) -> Tensor:
        """Like `PairsFolder.read_clip`."""
        first, last = (0, pair.frames - 1) if frames is None else (int(frames.min()), int(frames.max()))
        found = self._read("clip", pair, first, last - first + 1)
        return torch.from_numpy((found if frames is None else found[frames - first]).astype(np.float32))
