"""Reading photos, sounds and videos. Whatever cannot be used raises `MediaError` with a short reason."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio.functional
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"})

# rates that recordings have; the native rate of a video's track is found as the nearest of them
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
_PROBE_RATE = 16000


class MediaError(ValueError):
    """A file that cannot be used. `reason` is one or two words, for tables; the message says the rest."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_image(path: str | Path) -> Image.Image:
    """Read a photo as RGB, turned upright as its EXIF data say.

    Raises:
        MediaError: missing, or not an image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise MediaError("missing file", str(path)) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise MediaError("unreadable image", f"{path}: {error}") from error


def read_audio(path: str | Path, sample_rate: int) -> Tensor:
    """Read a sound, mix its channels and resample it: [N] float32.

    The resampler is torchaudio's windowed sinc (Hann, 6 zero crossings).

    Raises:
        MediaError: missing, unreadable or empty, or with values that are not finite.
    """
    if not os.path.exists(path):
        raise MediaError("missing file", str(path))
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError("unreadable audio", f"{path}: {error}") from error
    return _mono(samples.T, rate, sample_rate, path)


def _mono(samples: np.ndarray, rate: int, sample_rate: int, path: str | Path) -> Tensor:
    wav = torch.from_numpy(np.ascontiguousarray(samples)).mean(0)
    if not len(wav):
        raise MediaError("empty audio", f"{path} holds no samples")
    if not wav.isfinite().all():
        raise MediaError("broken audio", f"{path} holds values that are not finite")
    return torchaudio.functional.resample(wav, rate, sample_rate)


def check_loudness(wav: Tensor, threshold: float, path: str | Path) -> None:
    """Refuse a silent sound.

    Raises:
        MediaError: no sample of wav exceeds `threshold` (full scale is 1).
    """
    peak = wav.abs().max().item()
    if peak < threshold or peak == 0:
        raise MediaError("silent audio", f"{path}: peak {peak:.2g} is under {threshold:g}")


def set_loudness(wav: Tensor, level: float, peak: float = 0.99) -> Tensor:
    """Scale wav [N] to an RMS `level` in dB of full scale, or less where its peak would exceed `peak`."""
    gain = 10 ** (level / 20) / wav.square().mean().sqrt()
    return wav * torch.minimum(gain, peak / wav.abs().max())


@contextmanager
def _decord(path: str | Path, reason: str) -> Iterator[Any]:
    """decord, with its errors turned into MediaError. Imported here: it must be opened in the process that reads."""
    import decord

    if not os.path.exists(path):
        raise MediaError("missing file", str(path))
    try:
        yield decord
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise MediaError(reason, f"{path}: {message}") from error


def read_video_audio(path: str | Path, sample_rate: int) -> Tensor:
    """Read the sound track of a video, mix its channels and resample it: [N] float32.

    decord does not tell a track's native rate, so the track is also read at a known one and the lengths compared. Its
    samples are right only where it mixes the channels itself, which for stereo gives (left + right) / sqrt(2).

    Raises:
        MediaError: no sound track, or one that is cut short.
    """
    with _decord(path, "no audio track") as decord:
        native = decord.AudioReader(str(path), mono=True)
        channels, probed = decord.AudioReader(str(path), sample_rate=_PROBE_RATE, mono=False).shape
        samples, seconds = native[:].asnumpy(), native.duration()
    if not samples.shape[1] or not probed:
        raise MediaError("empty audio", f"{path} holds no samples")
    estimate = samples.shape[1] / probed * _PROBE_RATE
    rate = min(_RATES, key=lambda r: abs(r - estimate))
    decoded = samples.shape[1] / rate
    if decoded < seconds - max(0.25, 0.02 * seconds):  # decord gives what it could read of a cut file, silently
        raise MediaError("cut audio", f"{path}: {decoded:.2f} s of {seconds:.2f} s could be read")
    return _mono(samples / (2**0.5 if channels == 2 else 1.0), rate, sample_rate, path)


@contextmanager
def open_video(path: str | Path) -> Iterator[Any]:
    """decord's reader of a video; whatever it raises is turned into MediaError.

    Raises:
        MediaError: unreadable, cut, or without a video stream.
    """
    with _decord(path, "unreadable video") as decord:
        yield decord.VideoReader(str(path), num_threads=1)


def read_frames(path: str | Path, fps: float, chunk: int = 32) -> Iterator[list[Image.Image]]:
    """Frames of a video at the times 0, 1/fps, 2/fps, ..., in chunks so that memory stays bounded.

    At each time the frame is taken that is shown then, by the time stamps: variable frame rates come out right.

    Raises:
        MediaError: unreadable, cut, or without a video stream.
    """
    with open_video(path) as reader:
        stamps = reader.get_frame_timestamp(range(len(reader)))
        starts, end = np.maximum.accumulate(stamps[:, 0]) - stamps[0, 0], float(stamps[-1, 1] - stamps[0, 0])
        times = np.arange(max(1, int(end * fps + 1e-6))) / fps
        shown = np.searchsorted(starts, times + 1e-6, side="right") - 1
        for first in range(0, len(shown), chunk):
            wanted = shown[first : first + chunk]
            unique, where = np.unique(wanted, return_inverse=True)
            frames = reader.get_batch(unique.tolist()).asnumpy()
            yield [Image.fromarray(frames[i]) for i in where]


def read_table(path: Path, required: set[str]) -> list[dict[str, str]]:
    """Rows of a csv file with a header.

    Raises:
        ValueError: the file is missing or lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the first letter
        reader = csv.DictReader(file)
        missing = required - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {reader.fieldnames}")
        return list(reader)
