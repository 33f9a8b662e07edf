"""Speed of embedding videos: decoding compared with decord alone, and the image encoder."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from im2wav.benchmarks.row import Row
from im2wav.files import VIDEO_SUFFIXES, list_files
from im2wav.media.crops import resized_centre
from im2wav.media.reading import read_all_frames
from im2wav.prepare.clip_reader import ClipReader, Decoded
from im2wav.prepare.embedder import PackedFrames
from im2wav.prepare.sources import Source
from im2wav.training.timing import best_time

SIZES = ((1280, 720), (340, 256))  # of generated videos: original, and as in many copies of VGGSound


def write_video(path: Path, width: int, height: int, seconds: float = 4.0, fps: int = 30) -> None:
    """Write a video of moving noise with an audio track, as expensive to decode as a real one.

    Raises:
        ValueError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("generating test videos needs PyAV: pip install av, or set measure.videos=DIR") from error
    generator = np.random.default_rng(0)
    small = generator.integers(0, 255, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for i in range(int(seconds * fps)):
            shift = i % 60
            part = small[shift : shift + height // 8, shift : shift + width // 8]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")
            container.mux(video.encode(frame.reformat(width, height, "yuv420p")))
        container.mux(video.encode())
        for start in range(0, int(seconds * 44100), 1024):
            part = generator.normal(0, 0.1, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Minimum CPU seconds of several runs, which are less affected by other processes than wall-clock time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def decode_video(path: str, fps: float, size: int) -> int:
    """Decode all frames and the audio of a video; returns the number of frames."""
    reader = ClipReader(partial(resized_centre, size=size), size, fps)
    count = 0
    for message in reader(Source("a", video=path)):
        if isinstance(message, np.ndarray):
            count += len(message)
        elif not isinstance(message, Decoded):
            raise ValueError(f"{path}: {message.reason}, {message.detail}")
    return count


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
        videos: a folder of videos with audio; None: generate some.
        size: side length of the encoder input.
        encoder: an image encoder.
        device: device of the encoder.
        batch_size: batch size of the encoder.
        repeats: number of repetitions; the best counts.

    Raises:
        ValueError: the folder contains no videos.
    """
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = Path(videos or stack.enter_context(tempfile.TemporaryDirectory()))
        if videos is None:
            for width, height in SIZES:
                write_video(folder / f"{width}x{height}.mp4", width, height)
        paths = [str(path) for path in list_files(folder, VIDEO_SUFFIXES)]
        if not paths:
            raise ValueError(f"measure.videos={videos} contains no videos")
        rows = _measure_decoding_speed(paths, size, repeats)
    if encoder is not None:
        threads = torch.get_num_threads()
        squares = torch.randint(0, 256, (batch_size, 3, encoder.size, encoder.size), dtype=torch.uint8, device=device)
        seconds = best_time(lambda: encoder.to(device)(squares), device, repeats)
        where = "GPU" if device != "cpu" else f"CPU, {threads} thread(s)"
        rows.append(Row(f"encoder, {where}", batch_size / seconds, "images/s"))
    return rows


def _measure_decoding_speed(paths: list[str], size: int, repeats: int) -> list[Row]:
    alone = {path: cpu_seconds(partial(read_all_frames, path), repeats) for path in paths}
    counts = {path: read_all_frames(path) for path in paths}
    frames, name, rows = sum(counts.values()), "decord alone, all frames and audio", []
    limit = frames / sum(alone.values())
    for fps in (30.0, 8.0):
        spent = {path: cpu_seconds(partial(decode_video, path, fps, size), repeats) for path in paths}
        value = frames / sum(spent.values())
        rows.append(Row(f"decoding + preprocessing, {fps:g} fps", value, "frames/core-s", limit, name, 0.85))
        for path in paths:
            part = (counts[path] / spent[path], "frames/core-s", counts[path] / alone[path], name)
            rows.append(Row(f"  {Path(path).name[:24]}, {fps:g} fps", *part))
    sources = {number: Source(str(number), video=path) for number, path in enumerate(paths * 2)}
    packed = PackedFrames(sources, ClipReader(partial(resized_centre, size=size), size, 30.0), 32, 1, 100)
    start, shown = time.perf_counter(), 0
    for batch in packed:
        start = start if shown else time.perf_counter()  # exclude the start of the process
        shown += sum(count for _, count in batch.runs)
    rate = (shown - 32) / (time.perf_counter() - start)
    begun = time.perf_counter()
    for path in paths:
        read_all_frames(path)
    clock = frames / (time.perf_counter() - begun)
    return [*rows, Row("one decoding process, packed, 30 fps", rate, "frames/s", clock, name)]
