"""Read a source as a stream of messages: uint8 squares for the encoder, then the audio."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from im2wav.files import wav_bytes
from im2wav.media import reading as media
from im2wav.media.encoder import AnyImage
from im2wav.prepare.sources import Source
from im2wav.prepare.workers import Failed

_TOLERANCE = 0.5  # s by which the durations of audio and video may differ: containers pad both


@dataclass(frozen=True)
class Decoded:
    """Last message of a usable source, after its frames."""

    wav: bytes  # content of a wav file; empty where there is no audio
    samples: int
    sound: str  # hash of the samples
    note: str  # what was corrected


Message = np.ndarray | Decoded | Failed


@dataclass(frozen=True)
class ClipReader:
    """Reads one source. It is pickled and sent to the processes that decode.

    Args:
        crop: image -> encoder input, uint8 [3, S, S].
        size: S.
        fps: frames per second taken from a video.
        sample_rate: of the audio, in Hz.
        silence: audio with a lower peak (full scale is 1) is an error.
        loudness: RMS level in dBFS that audio is scaled to; None: unchanged.
        min_seconds: shorter audio is an error.
        min_frame_change: a video whose frames never differ from the first by more than this (mean over 256 levels) is
            an error.
        chunk: number of frames in memory at a time.
    """

    crop: Callable[[AnyImage], np.ndarray]
    size: int
    fps: float
    sample_rate: int = 16000
    silence: float = 0.001
    loudness: float | None = None
    min_seconds: float = 0.0
    min_frame_change: float = 0.0
    chunk: int = 32

    def __call__(self, source: Source) -> Iterator[Message]:
        """Arrays of squares uint8 [n, 3, S, S], then `Decoded`; or `Failed` at any time."""
        try:
            if source.video:
                yield from self._video(source)
            else:
                square = self.crop(media.read_image(source.path))
                end = self._audio(source, None)
                yield square[None]
                yield end
        except media.MediaError as error:
            yield Failed(error.reason, error.detail)

    def _video(self, source: Source) -> Iterator[Message]:
        video = media.Video(source.path, self.size)
        end = self._audio(source, video.seconds)
        first, change, count = None, 0.0, 0
        for images in video.frames(self.fps, self.chunk):
            squares = np.stack([self.crop(image) for image in images])
            first = squares[0].astype(np.int16) if first is None else first
            if change <= self.min_frame_change:
                change = max(change, *(float(np.abs(square - first).mean()) for square in squares))
            count += len(squares)
            yield squares
        if count > 1 and change <= self.min_frame_change and self.min_frame_change:
            raise media.MediaError("still frame", f"{source.path}: its frames differ by at most {change:.2g} of 255")
        yield end

    def _audio(self, source: Source, seconds: float | None) -> Decoded:
        """The audio of a source whose video lasts `seconds`."""
        path = source.audio or source.video
        if not path:
            return Decoded(b"", 0, "", "")
        read = media.read_audio_and_rate if source.audio else media.read_track_and_rate
        wav, rate = read(path, self.sample_rate)
        notes = [f"resampled: from {rate} Hz"] if rate != self.sample_rate else []
        length = len(wav) / self.sample_rate
        if length < self.min_seconds:
            raise media.MediaError("too short", f"{path}: {length:.2f} s of audio, min_seconds={self.min_seconds:g}")
        if seconds is not None and length > seconds + _TOLERANCE:
            notes.append(f"sound cut: {length:.2f} s to the video's {seconds:.2f} s")
            wav = wav[: max(1, round(seconds * self.sample_rate))]
        elif seconds is not None and length < seconds - _TOLERANCE:
            notes.append(f"sound short: {length:.2f} s of the video's {seconds:.2f} s")
        media.check_loudness(wav, self.silence, path)
        if self.loudness is not None:
            wav = media.set_loudness(wav, self.loudness)
        content = wav_bytes(wav, self.sample_rate)
        return Decoded(content, len(wav), hashlib.blake2b(content, digest_size=8).hexdigest(), "; ".join(notes))


def use_one_thread() -> None:
    """Limit each decoding process to one thread."""
    torch.set_num_threads(1)
