"""Pairs folder -> shards, in the format that `im2wav.data.pairs` reads.

`litdata.optimize` is not used: it names chunks after its worker processes, so their bytes and number depend on how many
there are, and an interrupted run resumes only with the same number. Here a chunk's bytes depend on its rows alone.
"""

import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from im2wav.data.manifest import COLUMNS, Manifest, Pair
from im2wav.data.pairs import PairsFolder, import_litdata
from im2wav.files import table_bytes, write_atomic

log = logging.getLogger(__name__)
RECORD_LIMIT = 2**31  # bytes; LitData stores offsets within a chunk as uint32


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
    """Rows of each chunk: as many records of these sizes in bytes as fit the limit, at least one."""
    chunks, start, total = [], 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and total + size > limit:
            chunks.append(range(start, row))
            start, total = row, 0
        total += size
    return [*chunks, range(start, len(sizes))] if len(sizes) else chunks


class ShardWriter:
    """Writes the shards of a pairs folder. Each chunk is complete or absent and its bytes depend on its rows alone, so
    an interrupted run resumes, and any number of threads or processes gives the same files.

    Args:
        root: the pairs folder.
        out: the folder of shards.
        chunk_mb: size of a chunk in MiB.

    Raises:
        ValueError: no pair has audio, or a size is out of range.
    """

    def __init__(self, root: str | Path, out: str | Path, chunk_mb: float = 64):
        import_litdata()
        self.folder, self.out = PairsFolder(root), Path(out)
        self.pairs: Manifest = self.folder.pairs.take(self.folder.pairs.column("samples") > 0)
        if not len(self.pairs):
            raise ValueError(f"data.root={root}: no pair has audio, so there is nothing to train on")
        if chunk_mb <= 0 or chunk_mb * 2**20 > RECORD_LIMIT:
            raise ValueError(f"chunk_mb={chunk_mb}: must be above 0 and at most {RECORD_LIMIT // 2**20}")
        self.sizes = {
            "wav": 4 + 2 * self.pairs.column("samples"),
            "clip": 4 + 2 * self.folder.info.dim * self.pairs.column("frames"),
        }
        for field, sizes in self.sizes.items():
            if sizes.max() > RECORD_LIMIT:
                row = int(sizes.argmax())
                raise ValueError(f"{self.pairs[row].id!r}: its {field} is larger than the 2 GB of a shard: exclude it")
        self.plan = {field: plan_chunks(sizes, int(chunk_mb * 2**20)) for field, sizes in self.sizes.items()}
        self.manifest = table_bytes(COLUMNS, (vars(pair) for pair in self.pairs))
        self.about = (json.dumps({"chunk_mb": chunk_mb, "format": 1}) + "\n").encode()

    def _where(self, field: str, number: int) -> Path:
        return self.out / field / f"chunk-0-{number}.bin"

    def start(self) -> list[tuple[str, int]]:
        """Write the files beside the chunks; returns the chunks that are missing, as (field, number).

        Raises:
            ValueError: `out` contains other shards.
        """
        for name, content in (("manifest.csv", self.manifest), ("shards.json", self.about)):
            path = self.out / name
            if path.is_file() and path.read_bytes() != content:
                what = "other pairs" if name == "manifest.csv" else "another chunk_mb"
                raise ValueError(f"out={self.out} contains shards of {what}: choose another folder, or remove it")
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
        lit, (field, number) = import_litdata(), chunk
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
            about["config"]["chunk_size"] = None  # differs between chunks
            os.replace(temporary / target.name, target)
            write_atomic(self._about(field, number), json.dumps(about, sort_keys=True).encode())
            return int(about["chunks"][0]["chunk_bytes"])
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
            raise ValueError(f"{target}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def finish(self) -> None:
        """Write the indices, without which the shards cannot be read."""
        for field, chunks in self.plan.items():
            for left in (self.out / field).glob(".writing-*"):  # of a killed run
                shutil.rmtree(left, ignore_errors=True)
            parts = [json.loads(self._about(field, n).read_text()) for n in range(len(chunks))]
            index = {**parts[0], "chunks": [part["chunks"][0] for part in parts]}
            write_atomic(self.out / field / "index.json", json.dumps(index, sort_keys=True).encode())


def write_shards(root: str, out: str, chunk_mb: float, num_workers: int, dry_run: bool = False) -> Path:
    """Write the missing shards of a pairs folder.

    Args:
        root: the pairs folder.
        out: the folder of shards.
        chunk_mb: size of a chunk in MiB.
        num_workers: threads that read and write.
        dry_run: only log how many chunks there would be, and how large.

    Raises:
        ValueError: no pairs folder, other shards in `out`, or a file that cannot be read or written.
    """
    writer = ShardWriter(root, out, chunk_mb)
    total = sum(int(sizes.sum()) for sizes in writer.sizes.values())
    without = len(writer.folder.pairs) - len(writer.pairs)
    chunks = sum(map(len, writer.plan.values()))
    about = f"{len(writer.pairs)} pairs in {chunks} chunks, {total / 1e9:.2f} GB"
    if dry_run:
        log.info("would write %s to %s; %d pairs without audio are left out", about, out, without)
        return Path(out)
    todo = writer.start()
    progress = tqdm(desc="shard", total=len(todo), unit="chunk", disable=None)
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:  # threads: the work is reading and writing files
        try:
            for _ in pool.map(writer.write, todo):
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress.close()
    writer.finish()
    log.info("%s in %s (%d chunks written now); %d pairs without audio are left out", about, out, len(todo), without)
    return Path(out)
