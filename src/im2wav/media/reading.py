"""Reading images, audio and video. A file that cannot be used raises `MediaError` with a short reason."""

import os
import re
import stat
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

# common sample rates in Hz; the native rate of a video's audio track is the nearest of them
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
_PROBE_RATE = 16000
RESAMPLER = "torchaudio.functional.resample: windowed sinc, Hann, 6 zero crossings, roll-off 0.99"
_DECORD_PREFIX = re.compile(r"^\[[\d:]+\] \S*?:\d+: (Check failed: .*?\) )?(ERROR )?")  # time, line of its source


class MediaError(ValueError):
    """A file that cannot be used. `reason` is one or two words, for tables; `detail` is the rest of the message."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise MediaError("missing file", f"{path}: {error.strerror}") from None
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raise MediaError("empty file", f"{path} has no bytes")


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, rotated by its EXIF orientation.

    Raises:
        MediaError: missing, or not an image.
    """
    _check_file(path)
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise MediaError("unreadable image", f"{path}: {error}") from error


def read_audio(path: str | Path, sample_rate: int) -> Tensor:
    """Read an audio file as mono at a sample rate in Hz: [N] float32.

    Raises:
        MediaError: missing, unreadable or empty, or with non-finite values.
    """
    return read_audio_and_rate(path, sample_rate)[0]


def read_audio_and_rate(path: str | Path, sample_rate: int) -> tuple[Tensor, int]:
    """Like `read_audio`, with the sample rate of the file in Hz."""
    _check_file(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        text = str(error).replace(f"Error opening {str(path)!r}: ", "")
        raise MediaError("unreadable audio", f"{path}: {text}") from error
    return _mono(samples.T, rate, sample_rate, path), rate


def _mono(samples: np.ndarray, rate: int, sample_rate: int, path: str | Path) -> Tensor:
    """Mean of the channels [C, N], resampled by `RESAMPLER`."""
    wav = torch.from_numpy(np.ascontiguousarray(samples)).mean(0)
    if not len(wav):
        raise MediaError("empty audio", f"{path} contains no samples")
    if not wav.isfinite().all():
        raise MediaError("broken audio", f"{path} contains non-finite values")
    return torchaudio.functional.resample(wav, rate, sample_rate)


def check_loudness(wav: Tensor, threshold: float, path: str | Path) -> None:
    """Reject silent audio [N].

    Raises:
        MediaError: the peak is below `threshold` (full scale is 1).
    """
    peak = wav.abs().max().item()
    if peak < threshold or peak == 0:
        raise MediaError("silent audio", f"{path}: peak {peak:.2g} is below {threshold:g}")


def set_loudness(wav: Tensor, level: float, peak: float = 0.99) -> Tensor:
    """Scale wav [N] to an RMS `level` in dBFS, or lower where its peak would exceed `peak`."""
    gain = 10 ** (level / 20) / wav.square().mean().sqrt()
    return wav * torch.minimum(gain, peak / wav.abs().max())


@contextmanager
def _decord(path: str | Path, reason: str) -> Iterator[Any]:
    """Import decord and convert its errors to MediaError. Each reading process must import it itself."""
    import decord

    _check_file(path)
    try:
        yield decord
    except (decord.DECORDError, RuntimeError, IndexError) as error:  # DECORDError is a bare Exception
        # only the first line, without the time: messages must be the same in every run
        message = _DECORD_PREFIX.sub("", (str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
        reason = "no video track" if "cannot find video stream" in message else reason
        raise MediaError(reason, f"{path}: {message}") from error


def read_track_and_rate(path: str | Path, sample_rate: int) -> tuple[Tensor, int]:
    """Read the audio track of a video as mono at a sample rate: [N] float32, and the track's own rate, both in Hz.

    decord does not report the native rate of a track, so the track is also read at a known rate and the lengths are
    compared. Its samples are correct only where it mixes the channels itself, which for stereo gives
    (left + right) / sqrt(2).

    Raises:
        MediaError: no audio track, or a truncated one.
    """
    with _decord(path, "no audio track") as decord:
        channels, probed = decord.AudioReader(str(path), sample_rate=_PROBE_RATE, mono=False).shape
        native = decord.AudioReader(str(path), mono=True)
        samples, seconds = native[:].asnumpy(), native.duration()
        del native  # releases a second copy of all samples
    if not samples.shape[1] or not probed:
        raise MediaError("empty audio", f"{path} contains no samples")
    estimate = samples.shape[1] / probed * _PROBE_RATE
    rate = min(_RATES, key=lambda r: abs(r - estimate))
    decoded = samples.shape[1] / rate
    if decoded < seconds - max(0.25, 0.02 * seconds):  # decord silently returns what it could read of a truncated file
        raise MediaError("cut audio", f"{path}: {decoded:.2f} s of {seconds:.2f} s could be read")
    return _mono(samples / (2**0.5 if channels == 2 else 1.0), rate, sample_rate, path), rate


class Video:
    """A video opened for reading its frames. Create it in the process that reads.

    Args:
        path: the file.
        size: the shorter side that the frames will be scaled to. Frames at least twice as large are scaled to it by
            the decoder, which is twice as fast as scaling them afterwards; None for the original size.

    Attributes:
        seconds: duration, by its time stamps.

    Raises:
        MediaError: unreadable, truncated, or without a video stream.
    """

    def __init__(self, path: str | Path, size: int | None = None):
        self.path = path
        with _decord(path, "unreadable video") as decord:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            stamps = self._reader.get_frame_timestamp(range(len(self._reader)))
            self._starts = np.maximum.accumulate(stamps[:, 0]) - stamps[0, 0]
            self.seconds = float(stamps[-1, 1] - stamps[0, 0])
            height, width = self._reader[0].shape[:2]
            if size and min(height, width) >= 2 * size:
                # rounded down, as CLIP's preprocessing rounds the longer side
                wide, high = (size * side // min(height, width) for side in (width, height))
                self._reader = decord.VideoReader(str(path), num_threads=1, width=wide, height=high)

    def frames(self, fps: float, chunk: int = 32) -> Iterator[list[np.ndarray]]:
        """Frames uint8 [H, W, 3] at the times 0, 1/fps, 2/fps, ..., in chunks so that memory stays bounded.

        Each is the frame shown at that time by the time stamps, so variable frame rates are handled correctly.

        Raises:
            MediaError: truncated.
        """
        times = np.arange(max(1, int(self.seconds * fps + 1e-6))) / fps
        shown = np.searchsorted(self._starts, times + 1e-6, side="right") - 1
        for first in range(0, len(shown), chunk):
            wanted = shown[first : first + chunk]
            unique, where = np.unique(wanted, return_inverse=True)
            with _decord(self.path, "unreadable video"):
                frames = self._reader.get_batch(unique.tolist()).asnumpy()
            yield [frames[i] for i in where]


def read_frames(path: str | Path, fps: float, chunk: int = 32, size: int | None = None) -> Iterator[list[np.ndarray]]:
    """`Video(path, size).frames(fps, chunk)`."""
    yield from Video(path, size).frames(fps, chunk)


def read_all_frames(path: str | Path, chunk: int = 32) -> int:
    """Decode every frame and the whole audio track with decord, discard them, and return the number of frames.

    The upper bound of any reader that uses decord; for benchmarks.
    """
    with _decord(path, "unreadable video") as decord:
        reader = decord.VideoReader(str(path), num_threads=1)
        for first in range(0, len(reader), chunk):
            reader.get_batch(range(first, min(first + chunk, len(reader)))).asnumpy()
        decord.AudioReader(str(path), mono=True)[:].asnumpy()
        return len(reader)
