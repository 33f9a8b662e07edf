"""How fast windows come from disk, by files and by shards, and whether memory stays where it is."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from im2wav.benchmarks.row import Row
from im2wav.clock import best_time
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.loader import WindowLoader
from im2wav.data.manifest import COLUMNS
from im2wav.data.pairs import DatasetInfo
from im2wav.files import npy_bytes, table_bytes, wav_bytes, write_atomic
from im2wav.prepare.shard_writer import ShardWriter

RATE, SECONDS, DIM, FPS = 16000, 10.0, 512, 30.0  # a clip as VGGSound has them


def write_pairs(root: Path, clips: int) -> None:
    """A pairs folder of noise."""
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


def convert_to_shards(root: Path, out: Path) -> None:
    """The same as shards."""
    writer = ShardWriter(root, out)
    for chunk in writer.start():
        writer.write(chunk)
    writer.finish()


def read_batches(loader: WindowLoader, batches: int) -> Callable[[], None]:
    """Reads so many batches."""

    def work() -> None:
        read = 0
        while read < batches:
            for _ in loader:
                read += 1
                if read == batches:
                    break

    return work


def read_with_libraries(root: Path, num_samples: int, windows: int) -> Callable[[], None]:
    """Reads as many windows of sound with soundfile and of embeddings with numpy, and does nothing with them."""
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
    """Memory of this process and of its children that is no file's, in MB; nan where the system does not tell."""
    total = 0
    for pid in ["self", *(child.pid for child in multiprocessing.active_children())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return float("nan")
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return total / 1024


def memory_growth(root: Path, num_samples: int, batches: int) -> float:
    """By how many MB the memory of the loader and its worker grows over so many batches."""
    loader = PairsDataModule(str(root), num_samples=num_samples, batch_size=2, num_workers=1).train_dataloader()
    read_batches(loader, max(batches // 10, 1))()  # caches and pools fill
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
    """Windows per second in one process with one thread.

    Args:
        num_samples: of a window.
        clips: of 10 s, 16 kHz, 30 frames a second.
        batches: of 8 windows, that are timed.
        growth_batches: of 2 windows, that memory is watched over.
        folder: where the clips are written for a while; the system's temporary folder where None.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root, shards = Path(name) / "pairs", Path(name) / "shards"
            write_pairs(root, clips)
            convert_to_shards(root, shards)
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
        Row(f"{what}, pairs folder", files, unit, 300, "promised", bar=1.0, note="files in the page cache"),
        Row(f"{what}, pairs folder", files, unit, plain, reads, note="besides: collating, manifest, drawing"),
        Row(f"{what}, shards", shards_, unit, 300, "promised", bar=1.0),
        Row(f"{what}, shards", shards_, unit, plain, reads),
        Row(f"growth over {growth_batches} batches", grown, "MB", 10, "promised", bar=1.0, at_least=False),
    ]
