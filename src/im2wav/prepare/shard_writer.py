"""Pairs folder -> shards, in the format that `im2wav.data.pairs` reads.

`litdata.optimize` is not used: it names chunks after its worker processes, so their bytes and number depend on how many
there are, and an interrupted run resumes only with the same number. Here a chunk's bytes depend on its rows alone.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

from im2wav.data.manifest import COLUMNS, Manifest, Pair
from im2wav.data.pairs import CLASSES_FILE, PairsFolder, import_litdata
from im2wav.files import table_bytes, write_atomic
from im2wav.system import report_progress, track_progress

log = logging.getLogger(__name__)
RECORD_LIMIT = 2**31  # bytes; LitData stores offsets within a chunk as uint32


def _record(folder: PairsFolder, field: str, pair: Pair) -> np.ndarray:
    if field == "clip":
        return np.load(folder.clip_path(pair), allow_pickle=False).astype(np.float16)
    path = folder.wav_path(pair)
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


def _write_chunk(folder: PairsFolder, pairs: Manifest, target: Path, rows: range) -> None:
    """Write one chunk, and beside it its part of the index."""
    lit, field, number = import_litdata(), target.parent.name, int(target.stem.rpartition("-")[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as temporary:
            loader = lit.streaming.temporal.TemporalArrayLoader()
            writer = lit.streaming.writer.BinaryWriter(
                temporary, chunk_size=len(rows), chunk_index=number, item_loader=loader
            )
            for row in rows:
                writer[row] = {field: _record(folder, field, pairs[row])}
            writer.done()
            (index,) = Path(temporary).glob("*.index.json")
            about = json.loads(index.read_text())
            about["config"]["chunk_size"] = None  # differs between chunks
            Path(temporary, target.name).replace(target)
        write_atomic(target.with_suffix(".json"), json.dumps(about, sort_keys=True).encode())
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise ValueError(f"{target}: {error}") from error


def _write_indices(chunks: Iterable[Path]) -> None:
    """Write the index of each folder, without which its chunks cannot be read."""
    for folder, paths in groupby(chunks, key=lambda path: path.parent):
        for left in [*folder.glob(".writing-*"), *folder.parent.glob(".writing-*")]:  # of a killed run
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        parts = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        index = {**parts[0], "chunks": [part["chunks"][0] for part in parts]}
        write_atomic(folder / "index.json", json.dumps(index, sort_keys=True).encode())


def _write_tables(folder: PairsFolder, pairs: Manifest, out: Path, chunk_mb: float) -> None:
    """Write the files beside the chunks, or check those of an earlier run."""
    manifest = table_bytes(COLUMNS, (vars(pair) for pair in pairs))
    about = (json.dumps({"chunk_mb": chunk_mb, "format": 1}) + "\n").encode()
    for name, content, other in (("manifest.csv", manifest, "other pairs"), ("shards.json", about, "another chunk_mb")):
        path = out / name
        if path.is_file() and path.read_bytes() != content:
            raise ValueError(f"out={out} contains shards of {other}: choose another folder, or remove it")
        write_atomic(path, content)
    folder.info.write(out)
    if (folder.root / CLASSES_FILE).is_file():
        write_atomic(out / CLASSES_FILE, (folder.root / CLASSES_FILE).read_bytes())


def _progress(chunks: Iterable[Path], out: Path) -> str:
    done = [path.with_suffix(".json").is_file() for path in chunks]
    return f"{sum(done)} of {len(done)} chunks are finished in {out}; the same command writes the rest"


def write_shards(root: str, out: str, chunk_mb: float = 64, num_workers: int = 1, dry_run: bool = False) -> Path:
    """Write the missing shards of a pairs folder to `out`.

    Each chunk is complete or absent, so that an interrupted run resumes, with any number of threads.

    Args:
        root: the pairs folder.
        out: the folder of shards.
        chunk_mb: size of a chunk in MiB.
        num_workers: threads that read and write.
        dry_run: only log how many chunks there would be, and how large.

    Raises:
        ValueError: no pairs folder, other shards in `out`, or a file that cannot be read or written.
    """
    import_litdata()
    if chunk_mb <= 0 or chunk_mb * 2**20 > RECORD_LIMIT:
        raise ValueError(f"chunk_mb={chunk_mb}: must be above 0 and at most {RECORD_LIMIT // 2**20}")
    folder, target = PairsFolder(root), Path(out)
    pairs = folder.pairs.take(folder.pairs.column("samples") > 0)
    if not len(pairs):
        raise ValueError(f"data.root={root}: no pair has audio, so there is nothing to train on")
    chunks: dict[Path, range] = {}
    total, width = 0, {"wav": ("samples", 1), "clip": ("frames", folder.info.dim)}
    for field, (column, values) in width.items():
        sizes = 4 + 2 * values * pairs.column(column)
        if sizes.max() > RECORD_LIMIT:
            name = pairs[int(sizes.argmax())].id
            raise ValueError(f"{name!r}: its {field} is larger than the 2 GB of a shard: exclude it")
        plan = plan_chunks(sizes, int(chunk_mb * 2**20))
        chunks |= {target / field / f"chunk-0-{number}.bin": rows for number, rows in enumerate(plan)}
        total += int(sizes.sum())
    what = f"{len(pairs)} pairs in {len(chunks)} chunks, {total / 1e9:.2f} GB"
    left_out = f"{len(folder.pairs) - len(pairs)} pairs without audio are left out"
    if dry_run:
        log.info("would write %s to %s; %s", what, out, left_out)
        return target
    _write_tables(folder, pairs, target, chunk_mb)
    todo = [path for path in chunks if not path.with_suffix(".json").is_file()]
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:  # threads: the work is reading and writing files
        written = pool.map(lambda path: _write_chunk(folder, pairs, path, chunks[path]), todo)
        with report_progress(lambda: _progress(chunks, target)):
            try:
                for _ in track_progress(written, desc="shard", unit="chunk", total=len(todo)):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    _write_indices(chunks)
    log.info("%s in %s (%d chunks written now); %s", what, out, len(todo), left_out)
    return target
