"""Speed of the data path: embedding videos, loading windows and their memory, and the `evaluate` command."""

import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from im2wav.benchmarks.machine import Row
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.loader import WindowLoader
from im2wav.data.manifest import COLUMNS
from im2wav.data.pairs import DatasetInfo
from im2wav.files import VIDEO_SUFFIXES, list_files, npy_bytes, table_bytes, wav_bytes, write_atomic
from im2wav.media.encoder import resized_centre
from im2wav.media.reading import read_audio
from im2wav.prepare.clip_reader import ClipReader, Decoded
from im2wav.prepare.shard_writer import write_shards
from im2wav.prepare.sources import Source
from im2wav.training.monitor import best_time

ASSETS = Path(__file__).parents[1] / "assets" / "pairs" / "audio"
RATE, SECONDS, DIM, FPS = 16000, 10.0, 512, 30.0  # clips as in VGGSound


def _read_all_frames(path: str | Path, chunk: int = 32) -> int:
    """Decode every frame and the audio track with decord alone, discard them, and return the number of frames.

    The upper bound of any reader that uses decord.
    """
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    for first in range(0, len(reader), chunk):
        reader.get_batch(range(first, min(first + chunk, len(reader)))).asnumpy()
    decord.AudioReader(str(path), mono=True)[:].asnumpy()
    return len(reader)


def _cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Minimum CPU seconds of several runs, which are less affected by other processes than wall-clock time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _decode_video(path: str, reader: ClipReader) -> None:
    """Decode all frames and the audio of a video."""
    for message in reader(Source("a", video=path)):
        if not isinstance(message, np.ndarray | Decoded):
            raise ValueError(f"{path}: {message.reason}, {message.detail}")


def measure_embedding(
    videos: str | None = None,
    size: int = 224,
    encoder: Any = None,
    device: str = "cpu",
    batch_size: int = 8,
    repeats: int = 3,
) -> list[Row]:
    """Benchmark decoding with preprocessing against decord alone on one core, and optionally an encoder.

    Args:
        videos: a folder of videos with audio.
        size: side length of the encoder input.
        encoder: an image encoder.
        device: device of the encoder.
        batch_size: batch size of the encoder.
        repeats: number of repetitions; the best counts.

    Raises:
        ValueError: no folder, or one without videos.
    """
    paths = [str(path) for path in list_files(Path(videos or ""), VIDEO_SUFFIXES)] if videos else []
    if not paths:
        raise ValueError(f"measure.videos={videos} contains no videos: give a folder of videos with audio")
    torch.set_num_threads(1)
    rows, unit, name = [], "frames/core-s", "decord alone, all frames and audio"
    for path in paths:
        frames, limit = _read_all_frames(path), _cpu_seconds(partial(_read_all_frames, path), repeats)
        for fps in (30.0, 8.0):
            reader = ClipReader(partial(resized_centre, size=size), size, fps)
            spent = _cpu_seconds(partial(_decode_video, path, reader), repeats)
            rows.append(Row(f"{Path(path).name[:24]}, {fps:g} fps", frames / spent, unit, frames / limit, name))
    if encoder is not None:
        squares = torch.randint(0, 256, (batch_size, 3, encoder.size, encoder.size), dtype=torch.uint8, device=device)
        seconds = best_time(lambda: encoder.to(device)(squares), device, repeats)
        rows.append(Row(f"encoder, {device}", batch_size / seconds, "images/s"))
    return rows


def _write_pairs(root: Path, clips: int) -> None:
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


def _read_batches(loader: WindowLoader, batches: int) -> None:
    read = 0
    while read < batches:
        for _ in loader:
            read += 1
            if read == batches:
                break


def _read_with_libraries(root: Path, num_samples: int, windows: int) -> None:
    """Read windows with soundfile and numpy only."""
    wavs, clips = sorted((root / "wav").iterdir()), sorted((root / "clip").iterdir())
    frames = int(num_samples / RATE * FPS) + 1
    for i, place in enumerate(np.random.default_rng(0).random(windows).tolist()):
        start = int(place * (SECONDS * RATE - num_samples))
        soundfile.read(wavs[i % len(wavs)], num_samples, start, dtype="float32")
        first = int(start / RATE * FPS)
        np.array(np.load(clips[i % len(clips)], mmap_mode="r")[first : first + frames], dtype=np.float32)


def _anonymous_mb() -> float:
    """Anonymous memory of this process and its children in MB; NaN if unknown."""
    total = 0
    for pid in ["self", *(child.pid for child in multiprocessing.active_children())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return float("nan")
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return total / 1024


def _memory_growth(root: Path, num_samples: int, batches: int) -> float:
    """Memory growth of the loader and its worker over `batches` batches, in MB."""
    loader = PairsDataModule(str(root), num_samples=num_samples, batch_size=2, num_workers=1).train_dataloader()
    _read_batches(loader, max(batches // 10, 1))  # fill caches and pools
    before = _anonymous_mb()
    _read_batches(loader, batches)
    return _anonymous_mb() - before


def measure_loading(
    num_samples: int = 65536,
    clips: int = 256,
    batches: int = 40,
    growth_batches: int = 10_000,
    folder: str | None = None,
) -> list[Row]:
    """Benchmark windows per second in one process; set `threads=1` to measure one core.

    Args:
        num_samples: length of a window.
        clips: number of clips of 10 s, 16 kHz, 30 frames per second.
        batches: number of timed batches of 8 windows.
        growth_batches: number of batches of 2 windows for memory growth.
        folder: where to write the temporary clips; None: the temporary folder of the system.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, shards = Path(name) / "pairs", Path(name) / "shards"
        _write_pairs(root, clips)
        write_shards(str(root), str(shards))
        work = {"soundfile and np.load alone": partial(_read_with_libraries, root, num_samples, batches * 8)}
        for kind, place in (("pairs folder", root), ("shards", shards)):
            loader = PairsDataModule(str(place), num_samples=num_samples, batch_size=8).train_dataloader()
            work[kind] = partial(_read_batches, loader, batches)
        rates = {kind: batches * 8 / best_time(part, repeats=3, warm_up=1) for kind, part in work.items()}
        grown = _memory_growth(root, num_samples, growth_batches)
    what, (reads, *kinds) = f"{num_samples / RATE:g} s windows", rates
    note = "files in the page cache; includes collating, manifest and sampling"
    rows = [Row(f"{what}, {kind}", rates[kind], "windows/s/core", rates[reads], reads, note) for kind in kinds]
    return [*rows, Row(f"growth over {growth_batches} batches", grown, "MB")]


def measure_evaluation(num_files: int = 3600, seconds: float = 4.096) -> list[Row]:
    """Benchmark `python -m im2wav.evaluate` on as many files as ImageHear has, and as many references.

    The files are windows of the demo recordings; the generated ones have noise added.

    Args:
        num_files: number of files in each folder.
        seconds: duration of each file.

    Raises:
        ValueError: the evaluation failed.
    """
    recordings = [read_audio(path, RATE) for path in sorted(ASSETS.iterdir())]
    samples, generator = round(seconds * RATE), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(num_files):
            wav = recordings[number % len(recordings)]
            start = int(torch.randint(max(1, len(wav) - samples), (), generator=generator))
            window = wav[start:].repeat(-(-samples // len(wav[start:])))[:samples]
            noise = 0.02 * torch.randn(samples, generator=generator)
            write_atomic(folder / f"reference/{number:05d}.wav", wav_bytes(window, RATE))
            write_atomic(folder / f"generated/{number:05d}.wav", wav_bytes(window + noise, RATE))
        options = [f"generated={folder}/generated", f"reference={folder}/reference", f"out={folder}/out"]
        begun = time.perf_counter()
        command = [sys.executable, "-m", "im2wav.evaluate", *options]
        run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        taken, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        *_, last = ["", *run.stderr.splitlines()]
        raise ValueError(f"the evaluation failed: {last[-300:]}")
    # at least the memory of this process when it starts the child; kB, on macOS bytes
    peak = used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return [
        Row(f"{num_files} files of {seconds:g} s and {num_files} references", taken / 60, "min"),
        Row("CPU time of all cores", (used.ru_utime + used.ru_stime) / 60, "min"),
        Row("peak memory", peak, "GB"),
    ]
