"""Speed of loading windows from files and shards, and memory growth."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from im2wav.benchmarks.row import Row
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.loader import WindowLoader
from im2wav.data.manifest import COLUMNS
from im2wav.data.pairs import DatasetInfo
from im2wav.files import npy_bytes, table_bytes, wav_bytes, write_atomic
from im2wav.prepare.shard_writer import write_shards
from im2wav.training.timing import best_time

RATE, SECONDS, DIM, FPS = 16000, 10.0, 512, 30.0  # clips as in VGGSound


def write_pairs(root: Path, clips: int) -> None:
    """Write a pairs folder of noise."""
    generator = torch.Generator().manual_seed(0)
    DatasetInfo("clip_vit_b32", DIM, None, FPS, RATE).write(root)
    samples, frames, rows = int(SECONDS * RATE), int(SECONDS * FPS), []
    for i in range(clips):
        name = f"{i:05d}"
        write_atomic(root / f"wav/{name}.wav", wav_bytes(torch.randn(samples, generator=generator) * 0.1, RATE))
        clip = torch.nn.functional.normalize(torch.randn(frames, DIM, generator=generator), dim=1)
        write_atomic(root / f"clip/{name}.npy", npy_bytes(clip.half().numpy()))
        paths = {"wav": f"wav/{name}.wav", "clip": f"clip/{name}.npy"}
        rows.append({"id": name, "split": "train", "samples": samples, "frames": frames, **paths})
    write_atomic(root / "manifest.csv", table_bytes(COLUMNS, rows))


def read_batches(loader: WindowLoader, batches: int) -> Callable[[], None]:
    """Return a function that reads `batches` batches."""

    def work() -> None:
        read = 0
        while read < batches:
            for _ in loader:
                read += 1
                if read == batches:
                    break

    return work


def read_with_libraries(root: Path, num_samples: int, windows: int) -> Callable[[], None]:
    """Return a function that reads as many windows with soundfile and numpy only."""
    wavs, clips = sorted((root / "wav").iterdir()), sorted((root / "clip").iterdir())
    frames = int(num_samples / RATE * FPS) + 1
    generator = np.random.default_rng(0)
    starts = generator.random(windows)

    def work() -> None:
        for i, place in enumerate(starts.tolist()):
            start = int(place * (SECONDS * RATE - num_samples))
            soundfile.read(wavs[i % len(wavs)], num_samples, start, dtype="float32")
            first = int(start / RATE * FPS)
            np.array(np.load(clips[i % len(clips)], mmap_mode="r")[first : first + frames], dtype=np.float32)

    return work


def anonymous_mb() -> float:
    """Anonymous memory of this process and its children in MB; NaN if unknown."""
    total = 0
    for pid in ["self", *(child.pid for child in multiprocessing.active_children())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return float("nan")
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return total / 1024


def memory_growth(root: Path, num_samples: int, batches: int) -> float:
    """Memory growth of the loader and its worker over `batches` batches, in MB."""
    loader = PairsDataModule(str(root), num_samples=num_samples, batch_size=2, num_workers=1).train_dataloader()
    read_batches(loader, max(batches // 10, 1))()  # fill caches and pools
    before = anonymous_mb()
    read_batches(loader, batches)()
    return anonymous_mb() - before


def measure_loading(
    num_samples: int = 65536,
    clips: int = 256,
    batches: int = 40,
    growth_batches: int = 10_000,
    folder: str | None = None,
) -> list[Row]:
    """Benchmark windows per second in one process with one thread.

    Args:
        num_samples: length of a window.
        clips: number of clips of 10 s, 16 kHz, 30 frames per second.
        batches: number of timed batches of 8 windows.
        growth_batches: number of batches of 2 windows for memory growth.
        folder: where to write the temporary clips; None: the temporary folder of the system.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root, shards = Path(name) / "pairs", Path(name) / "shards"
            write_pairs(root, clips)
            write_shards(str(root), str(shards))
            count = batches * 8
            figures = {}
            for kind, place in (("files", root), ("shards", shards)):
                data = PairsDataModule(str(place), num_samples=num_samples, batch_size=8)
                figures[kind] = count / best_time(read_batches(data.train_dataloader(), batches), repeats=3, warm_up=1)
            plain = count / best_time(read_with_libraries(root, num_samples, count), repeats=3, warm_up=1)
            grown = memory_growth(root, num_samples, growth_batches)
    finally:
        torch.set_num_threads(threads)
    what, unit = f"{num_samples / RATE:g} s windows", "windows/s/core"
    reads, files, shards_ = "soundfile and np.load alone", figures["files"], figures["shards"]
    return [
        Row(f"{what}, pairs folder", files, unit, 300, "target", bar=1.0, note="files in the page cache"),
        Row(f"{what}, pairs folder", files, unit, plain, reads, note="includes collating, manifest and sampling"),
        Row(f"{what}, shards", shards_, unit, 300, "target", bar=1.0),
        Row(f"{what}, shards", shards_, unit, plain, reads),
        Row(f"growth over {growth_batches} batches", grown, "MB", 10, "target", bar=1.0, at_least=False),
    ]
