"""One input -> squares of bytes for the encoder and a finished sound, as a stream of messages."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from im2wav.data import media
from im2wav.data.crops import Picture
from im2wav.data.pairs import wav_bytes
from im2wav.data.sources import Source
from im2wav.data.workers import Failed

_TOLERANCE = 0.5  # s by which sound and picture may differ: containers pad both


@dataclass(frozen=True)
class Decoded:
    """The end of an input that can be used; all its frames came before."""

    wav: bytes  # of a wav file; empty where there is no sound
    samples: int
    sound: str  # hash of the samples
    note: str  # what was mended


Message = np.ndarray | Decoded | Failed


@dataclass(frozen=True)
class Decoder:
    """How inputs are read. It travels to the processes that decode.

    Args:
        crop: what the encoder sees of a picture, uint8 [3, S, S].
        size: S.
        fps: frames a second that are taken of a video.
        sample_rate: of the sounds, in Hz.
        silence: a sound whose peak is lower (full scale is 1) cannot be used.
        loudness: RMS level in dB of full scale that sounds are brought to; None: as they are.
        min_seconds: a shorter sound cannot be used.
        still: a video whose picture never changes by more than this (mean over 256 levels) cannot be used.
        chunk: frames that are held at a time.
    """

    crop: Callable[[Picture], np.ndarray]
    size: int
    fps: float
    sample_rate: int = 16000
    silence: float = 0.001
    loudness: float | None = None
    min_seconds: float = 0.0
    still: float = 0.0
    chunk: int = 32

    def __call__(self, source: Source) -> Iterator[Message]:
        """Arrays of squares uint8 [n, 3, S, S], then `Decoded`; or, at any time, `Failed`."""
        try:
            if source.video:
                yield from self._video(source)
            else:
                square = self.crop(media.read_image(source.path))
                end = self._sound(source, None)
                yield square[None]
                yield end
        except media.MediaError as error:
            yield Failed(error.reason, error.detail)

    def _video(self, source: Source) -> Iterator[Message]:
        video = media.Video(source.path, self.size)
        end = self._sound(source, video.seconds)
        first, change, count = None, 0.0, 0
        for images in video.frames(self.fps, self.chunk):
            squares = np.stack([self.crop(image) for image in images])
            first = squares[0].astype(np.int16) if first is None else first
            if change <= self.still:
                change = max(change, *(float(np.abs(square - first).mean()) for square in squares))
            count += len(squares)
            yield squares
        if count > 1 and change <= self.still and self.still:
            raise media.MediaError("still frame", f"{source.path}: its picture changes by {change:.2g} of 255 at most")
        yield end

    def _sound(self, source: Source, seconds: float | None) -> Decoded:
        """The finished sound of an input whose video lasts `seconds`.

        Raises:
            MediaError: it cannot be used.
        """
        path = source.audio or source.video
        if not path:
            return Decoded(b"", 0, "", "")
        read = media.read_sound if source.audio else media.read_track
        wav, rate = read(path, self.sample_rate)
        notes = [f"resampled: from {rate} Hz"] if rate != self.sample_rate else []
        length = len(wav) / self.sample_rate
        if length < self.min_seconds:
            raise media.MediaError("too short", f"{path}: {length:.2f} s of sound, at least {self.min_seconds:g} asked")
        if seconds is not None and length > seconds + _TOLERANCE:
            notes.append(f"sound cut: {length:.2f} s to the video's {seconds:.2f} s")
            wav = wav[: max(1, round(seconds * self.sample_rate))]
        elif seconds is not None and length < seconds - _TOLERANCE:
            notes.append(f"sound short: {length:.2f} s of the video's {seconds:.2f} s")
        media.check_loudness(wav, self.silence, path)
        if self.loudness is not None:
            wav = media.set_loudness(wav, self.loudness)
        return self._finished(wav, "; ".join(notes))

    def _finished(self, wav: Tensor, note: str) -> Decoded:
        content = wav_bytes(wav, self.sample_rate)
        return Decoded(content, len(wav), hashlib.blake2b(content, digest_size=8).hexdigest(), note)


def one_thread() -> None:
    """Decoders work side by side: each keeps to one core."""
    torch.set_num_threads(1)
