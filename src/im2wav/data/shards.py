"""Pairs in shards: a few large files instead of two for each clip, for disks and object stores that dislike small ones.

    dataset.json, manifest.csv    as in a pairs folder; without the pairs that have no sound
    shards.json                   how large a chunk is
    wav/index.json                a LitData data set, one record for each row: int16 [samples]
    wav/chunk-0-NUMBER.bin
    clip/index.json, ...          the same of the embeddings: float16 [F, D]

LitData's temporal layout is read by windows: where a record begins stands in index.json, so that a window costs one
read (or one range request) of each array, and the sampler decides the order just as it does for a pairs folder.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from im2wav.data.manifest import COLUMNS, Manifest, Pair
from im2wav.data.pairs import PairsFolder, table_bytes, write_atomic

FIELDS = ("wav", "clip")
RECORD_LIMIT = 2**31  # bytes; LitData keeps offsets within a chunk as uint32


def _litdata() -> Any:
    try:
        import litdata
        import litdata.streaming.temporal
        import litdata.streaming.writer
    except ImportError as error:
        raise ValueError("shards need LitData: pip install 'im2wav[shards]'") from error
    logging.getLogger("litdata").setLevel(logging.WARNING)  # it would tell of each folder that it opens
    return litdata


def open_folder(root: str | Path, chunks: str | None = None) -> PairsFolder:
    """Open a pairs folder, or a folder of shards.

    Args:
        root: the folder with dataset.json and manifest.csv.
        chunks: of shards, where wav/ and clip/ lie if not there: a folder or a URL such as s3://bucket/folder.

    Raises:
        ValueError: neither.
    """
    if chunks or (Path(root) / "wav" / "index.json").is_file():
        return ShardsFolder(root, chunks)
    return PairsFolder(root)


class ShardsFolder(PairsFolder):
    """A folder of shards, read as a pairs folder is."""

    def __init__(self, root: str | Path, chunks: str | None = None):
        super().__init__(root)
        self.chunks = chunks or str(self.root)
        _litdata()
        self._rows = {name: row for row, name in enumerate(self.pairs.strings("id"))}
        self._open: tuple[int, dict[str, Any]] | None = None

    def _field(self, name: str) -> Any:
        if self._open is None or self._open[0] != os.getpid():  # each worker has its own
            lit = _litdata()
            loader = lit.streaming.temporal.TemporalArrayLoader
            fields = {f: lit.StreamingDataset(f"{self.chunks}/{f}", item_loader=loader()) for f in FIELDS}
            self._open = os.getpid(), fields
        return self._open[1][name]

    def _read(self, name: str, pair: Pair, start: int, length: int) -> np.ndarray:
        try:
            return self._field(name).read_window(self._rows[pair.id], start, length)[name]
        except Exception as error:  # whatever the store raises
            where = f"{self.chunks}/{name}"
            raise ValueError(f"{where}: {pair.id!r} cannot be read: {type(error).__name__}: {error}") from error

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """As `PairsFolder.read_wav`; shards hold one channel."""
        samples = self._read("wav", pair, start, length if length >= 0 else pair.samples - start)
        return torch.from_numpy(samples.astype(np.float32) / 32768)

    def read_clip(self, pair: Pair, frames: np.ndarray | None = None) -> Tensor:
        """As `PairsFolder.read_clip`."""
        first, last = (0, pair.frames - 1) if frames is None else (int(frames.min()), int(frames.max()))
        found = self._read("clip", pair, first, last - first + 1)
        return torch.from_numpy((found if frames is None else found[frames - first]).astype(np.float32))


def _record(folder: PairsFolder, field: str, pair: Pair) -> np.ndarray:
    if field == "clip":
        return np.load(folder.root / pair.clip, allow_pickle=False).astype(np.float16)
    path = folder.root / pair.wav
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    if rate != folder.info.sample_rate or len(samples) != pair.samples:
        raise ValueError(f"{path} is not {pair.samples} samples at {folder.info.sample_rate} Hz: embed it again")
    if samples.shape[1] > 1:
        samples = np.round(samples.mean(1, keepdims=True)).astype(np.int16)
    return samples[:, 0]


def plan_chunks(sizes: np.ndarray, limit: int) -> list[range]:
    """Rows of each chunk: as many whole records of these sizes in bytes as fit under the limit, at least one."""
    chunks, start, total = [], 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and total + size > limit:
            chunks.append(range(start, row))
            start, total = row, 0
        total += size
    return [*chunks, range(start, len(sizes))] if len(sizes) else chunks


class ShardWriter:
    """Writes the shards of a pairs folder. Each chunk is there whole or not at all, and its bytes depend on its rows
    alone, so that a run that was stopped goes on and any number of processes may work.

    Args:
        root: the pairs folder.
        out: the folder of shards.
        chunk_mb: size of a chunk.

    Raises:
        ValueError: no pair has a sound, or `out` holds shards of other pairs.
    """

    def __init__(self, root: str | Path, out: str | Path, chunk_mb: float = 64):
        _litdata()
        self.folder, self.out = PairsFolder(root), Path(out)
        self.pairs: Manifest = self.folder.pairs.take(self.folder.pairs.column("samples") > 0)
        if not len(self.pairs):
            raise ValueError(f"data.root={root}: no pair has a sound; there is nothing to train on in it")
        if chunk_mb <= 0 or chunk_mb * 2**20 > RECORD_LIMIT:
            raise ValueError(f"chunk_mb={chunk_mb}: expected a size above 0 and up to {RECORD_LIMIT // 2**20}")
        self.sizes = {
            "wav": 4 + 2 * self.pairs.column("samples"),
            "clip": 4 + 2 * self.folder.info.dim * self.pairs.column("frames"),
        }
        for field, sizes in self.sizes.items():
            if sizes.max() > RECORD_LIMIT:
                row = int(sizes.argmax())
                raise ValueError(f"{self.pairs[row].id!r}: its {field} is larger than a shard can hold (2 GB)")
        self.plan = {field: plan_chunks(sizes, int(chunk_mb * 2**20)) for field, sizes in self.sizes.items()}
        self.manifest = table_bytes(COLUMNS, (vars(pair) for pair in self.pairs))
        self.about = (json.dumps({"chunk_mb": chunk_mb, "format": 1}) + "\n").encode()

    def _where(self, field: str, number: int) -> Path:
        return self.out / field / f"chunk-0-{number}.bin"

    def start(self) -> list[tuple[str, int]]:
        """Write what stands beside the chunks; returns the chunks that are still to be written.

        Raises:
            ValueError: other shards are there.
        """
        for name, content in (("manifest.csv", self.manifest), ("shards.json", self.about)):
            path = self.out / name
            if path.is_file() and path.read_bytes() != content:
                what = "other pairs" if name == "manifest.csv" else "another chunk_mb"
                raise ValueError(f"out={self.out} holds shards of {what}: give another folder, or remove it")
            write_atomic(path, content)
        self.folder.info.write(self.out)
        todo = [(field, number) for field, chunks in self.plan.items() for number in range(len(chunks))]
        return [(field, n) for field, n in todo if not self._about(field, n).is_file()]

    def _about(self, field: str, number: int) -> Path:
        return self._where(field, number).with_suffix(".json")

    def write(self, chunk: tuple[str, int]) -> int:
        """Write one chunk; returns its size in bytes.

        Raises:
            ValueError: a file cannot be read, or the chunk cannot be written.
        """
        lit, (field, number) = _litdata(), chunk
        rows = self.plan[field][number]
        target = self._where(field, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".writing-"))
        try:
            loader = lit.streaming.temporal.TemporalArrayLoader()
            writer = lit.streaming.writer.BinaryWriter(
                str(temporary), chunk_size=len(rows), chunk_index=number, item_loader=loader
            )
            for row in rows:
                writer[row] = {field: _record(self.folder, field, self.pairs[row])}
            writer.done()
            (index,) = temporary.glob("*.index.json")
            about = json.loads(index.read_text())
            about["config"]["chunk_size"] = None  # chunks differ in it
            os.replace(temporary / target.name, target)
            write_atomic(self._about(field, number), json.dumps(about, sort_keys=True).encode())
            return int(about["chunks"][0]["chunk_bytes"])
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
            raise ValueError(f"{target}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def finish(self) -> None:
        """Write the indices: only now the shards can be read."""
        for field, chunks in self.plan.items():
            for left in (self.out / field).glob(".writing-*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            parts = [json.loads(self._about(field, n).read_text()) for n in range(len(chunks))]
            index = {**parts[0], "chunks": [part["chunks"][0] for part in parts]}
            write_atomic(self.out / field / "index.json", json.dumps(index, sort_keys=True).encode())
