"""Reading videos: frames at given times, and the audio track on the same time line.

Times come from the packets of the container, read by PyAV, so that both decoders agree: decord, where it has a wheel
and can decode the file, else PyAV; Pillow for GIF and animated WebP.
"""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from im2wav.media.reading import (
    MediaError,
    check_file,
    describe_streams,
    is_animation,
    media_errors,
    open_media,
    to_rgb,
)

_DECORD_CANNOT = {"av1", "vvc"}  # its FFmpeg is of 2020
_DECORD_FORMATS = ("mov", "matroska")  # mp4, mkv, webm: in others it counts or orders frames wrongly
_REORDERED = 16  # frames of an AVI that may come before one that is shown earlier: H.264 allows 16
_SHORTEST_FRAME = 0.01  # s: shorter durations of GIF frames are shown as 0.1 s, as browsers do


class FrameSource(Protocol):
    """Decodes frames of a video by their index in presentation order."""

    def read(self, wanted: Sequence[int]) -> list[np.ndarray]:
        """Frames uint8 [H, W, 3] of ascending indices; the next call continues after them."""


def video_stream(container: Any, path: str | Path) -> Any:
    """The first video stream that is not a cover image.

    Raises:
        MediaError: there is none, its codec is unknown, or the file is a text or an image.
    """
    if container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe"):
        raise MediaError("unreadable video", f"{path}: it is no video ({container.format.long_name})")
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    for stream in streams:
        if stream.codec_context is not None:  # None: an unknown codec
            return stream
    reason = "unreadable video" if streams else "no video track"
    raise MediaError(reason, f"{path}: it contains {describe_streams(container)}")


class Timeline:
    """When the frames of a video are shown, from the time stamps of its packets.

    Attributes:
        origin: time stamp of the first frame in seconds.
        starts: times of all frames in seconds, ascending, from 0.
        seconds: duration of the video.
    """

    def __init__(self, path: str | Path):
        with media_errors(path, "unreadable video"), open_media(path) as container:
            stream = video_stream(container, path)
            stamps, ends = self._read(container, stream)
            if stamps is None:
                stamps = self._decode(path)
            if not stamps:
                raise MediaError("cut video", f"{path}: it contains no frames")
            base = float(stream.time_base)
            times = np.array(sorted(time for time, _ in stamps)) * base
            lengths = [length for _, length in stamps if length]
            last = (lengths[-1] if lengths else None) or 1 / (float(stream.average_rate or 25) * base)
            self.origin, self.starts = float(times[0]), times - times[0]
            self.seconds = float(self.starts[-1] + last * base)
            expected = (container.duration or 0) / av.time_base
            found = max(ends, default=0.0)  # some formats count the duration from 0, others from the first time stamp
            is_exact = container.format.name.startswith("mov")  # by its index; others may estimate
            if found < expected - (max(0.15, 0.02 * expected) if is_exact else max(0.5, 0.05 * expected)):
                raise MediaError("cut video", f"{path}: {max(0.0, found):.2f} s of {expected:.2f} s could be read")

    @staticmethod
    def _read(container: Any, video: Any) -> tuple[list[tuple[int, int]] | None, list[float]]:
        """Time stamp and duration of the shown frames (None where stamps are missing), and the ends of all streams."""
        stamps: list[tuple[Any, int]] = []
        ends: dict[int, float] = {}
        for packet in container.demux():
            if not packet.size:
                continue
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
            if packet.stream_index == video.index and not packet.is_discard:
                stamps.append((packet.pts, packet.duration or 0))
        return (None if any(time is None for time, _ in stamps) else stamps), list(ends.values())

    @staticmethod
    def _decode(path: str | Path) -> list[tuple[int, int]]:
        """Time stamps of decoded frames, for packets that have none; then the nominal rate gives them."""
        with open_media(path) as container:
            stream = video_stream(container, path)
            count = sum(1 for _ in container.decode(stream))
            step = round(1 / (stream.average_rate or 25) / stream.time_base)
        return [(number * step, step) for number in range(count)]


class Video:
    """A video opened for reading its frames. Create it in the process that reads.

    Args:
        path: the file.
        size: the shorter side that the frames will be scaled to. Frames at least twice as large are scaled to it by
            the decoder, which is twice as fast as scaling them afterwards; None for the original size.
        reader: `pyav` to never use decord.

    Attributes:
        seconds: duration, by its time stamps.
        origin: time stamp of the first frame in seconds; the audio track has the same clock.

    Raises:
        MediaError: unreadable, truncated, or without a video stream.
    """

    def __init__(self, path: str | Path, size: int | None = None, reader: str | None = None):
        check_file(path)
        if is_animation(path):
            self._frames: FrameSource = AnimationFrames(path)
            self.origin, self.starts, self.seconds = 0.0, self._frames.starts, self._frames.seconds
            return
        line = Timeline(path)
        self.origin, self.starts, self.seconds = line.origin, line.starts, line.seconds
        shape = _Shape(path, size)
        frames = PyAVFrames(path, shape, self.origin, self.starts)
        can = shape.rotation == 0 and shape.codec not in _DECORD_CANNOT and shape.format.startswith(_DECORD_FORMATS)
        self._frames = (can and reader != "pyav" and DecordFrames.open(path, shape, self.starts, frames)) or frames

    def frames(self, fps: float, chunk: int = 32) -> Iterator[list[np.ndarray]]:
        """Frames uint8 [H, W, 3] at the times 0, 1/fps, 2/fps, ..., in chunks so that memory stays bounded.

        Each is the frame shown at that time by the time stamps, so variable frame rates are handled correctly.

        Raises:
            MediaError: truncated or damaged.
        """
        times = np.arange(max(1, int(self.seconds * fps + 1e-6))) / fps
        shown = np.searchsorted(self.starts, times + 1e-6, side="right") - 1
        for first in range(0, len(shown), chunk):
            unique, where = np.unique(shown[first : first + chunk], return_inverse=True)
            frames = self._frames.read(unique.tolist())
            yield [frames[i] for i in where]


class _Shape:
    """How the frames of a video are shown: rotation, and size in square pixels, scaled down as `Video` describes.

    Attributes:
        codec: name of its codec.
        format: names of the container's format.
        rotation: degrees counter-clockwise: 0, 90, 180 or 270.
        width, height: of the frames that a decoder should give, before rotation.
    """

    def __init__(self, path: str | Path, size: int | None):
        with media_errors(path, "unreadable video"), open_media(path) as container:
            stream = video_stream(container, path)
            stream.codec_context.thread_count = 1
            frame = _first_frame(container, stream, path)
            self.format = str(container.format.name)
            self.codec = str(stream.codec_context.codec.canonical_name)
            self.rotation = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
            aspect = stream.sample_aspect_ratio or Fraction(1)
            width, height = frame.width, frame.height
            self.coded = (width, height)
            if 0 < aspect != 1:
                width = max(1, round(width * aspect))
            if size and min(width, height) >= 2 * size:
                # rounded down, as CLIP's preprocessing rounds the longer side
                width, height = (size * side // min(width, height) for side in (width, height))
            self.width, self.height = width, height


def _first_frame(container: Any, stream: Any, path: str | Path) -> Any:
    for packet in container.demux(stream):
        with suppress(av.FFmpegError):  # streams that were cut begin with frames that cannot be decoded
            for frame in packet.decode():
                return frame
    raise MediaError("unreadable video", f"{path}: no frame could be decoded ({describe_streams(container)})")


class DecordFrames:
    """Frames by decord; those that it cannot decode by `instead`."""

    def __init__(self, reader: Any, error: type[Exception], instead: FrameSource):
        self._reader, self._error, self._instead = reader, error, instead

    @classmethod
    def open(cls, path: str | Path, shape: _Shape, starts: np.ndarray, instead: FrameSource) -> "DecordFrames | None":
        """Open a video; None where there is no decord, or it finds other frames than `starts`, in seconds."""
        try:
            import decord  # in the process that reads
        except ImportError:
            return None
        scaled = {} if (shape.width, shape.height) == shape.coded else {"width": shape.width, "height": shape.height}
        try:
            reader = decord.VideoReader(str(path), num_threads=1, **scaled)
            stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        except (decord.DECORDError, RuntimeError, IndexError):  # DECORDError is a bare Exception
            return None
        agrees = len(stamps) == len(starts) and np.abs(np.sort(stamps) - stamps.min() - starts).max() < 0.002
        return cls(reader, decord.DECORDError, instead) if agrees else None

    def read(self, wanted: Sequence[int]) -> list[np.ndarray]:
        """Frames of ascending indices."""
        if self._reader is not None:
            try:
                return list(self._reader.get_batch(list(wanted)).asnumpy())
            except (self._error, RuntimeError, IndexError):
                self._reader = None
        return self._instead.read(wanted)


class PyAVFrames:
    """Frames by PyAV, decoded one after the other."""

    def __init__(self, path: str | Path, shape: _Shape, origin: float, starts: np.ndarray):
        self.path, self.shape, self.origin, self.starts = path, shape, origin, starts
        self._decoded = self._in_order() if shape.format == "avi" else self._decode()
        self._last: tuple[int, np.ndarray] | None = None  # the latest frame and its index
        self._missing = 0

    def read(self, wanted: Sequence[int]) -> list[np.ndarray]:
        """Frames of ascending indices; a frame that cannot be decoded is replaced by the one before.

        Raises:
            MediaError: more than 5 % of the frames cannot be decoded.
        """
        frames = []
        for number in wanted:
            while self._last is None or self._last[0] < number:
                ahead = next(self._decoded, None)
                if ahead is None:
                    break
                index, frame = ahead
                if index >= number or self._last is None:
                    self._last = (index, self._array(frame))
            if self._last is None:
                raise MediaError("damaged video", f"{self.path}: no frame can be decoded")
            self._missing += self._last[0] != number
            if self._missing > max(2, 0.05 * len(self.starts)):
                raise MediaError("damaged video", f"{self.path}: {self._missing} frames cannot be decoded")
            frames.append(self._last[1])
        return frames

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """Index by time stamp and frame, in presentation order."""
        with media_errors(self.path, "unreadable video"), open_media(self.path) as container:
            stream = video_stream(container, self.path)
            stream.codec_context.thread_count = 1
            count = -1
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:  # counted by `read`, as its frame is missing
                    continue
                for frame in frames:
                    count += 1
                    time = count if frame.time is None else frame.time - self.origin
                    yield (count if frame.time is None else int(np.abs(self.starts - time).argmin())), frame

    def _in_order(self) -> Iterator[tuple[int, Any]]:
        """The same, where packets do not tell the decoder how many frames it must wait for."""
        waiting: list[tuple[int, int, Any]] = []
        for count, (index, frame) in enumerate(self._decode()):
            heapq.heappush(waiting, (index, count, frame))
            if len(waiting) > _REORDERED:
                index, _, first = heapq.heappop(waiting)
                yield index, first
        yield from ((index, frame) for index, _, frame in sorted(waiting))

    def _array(self, frame: Any) -> np.ndarray:
        options = {"width": self.shape.width, "height": self.shape.height, "interpolation": "BICUBIC"}
        array = frame.to_ndarray(format="rgb24", **options)
        return np.ascontiguousarray(np.rot90(array, self.shape.rotation // 90)) if self.shape.rotation else array


class AnimationFrames:
    """Frames of a GIF or an animated WebP, by Pillow."""

    def __init__(self, path: str | Path):
        self.path = path
        with media_errors(path, "unreadable video"):
            self._image = Image.open(path)
            lengths = []
            for number in range(getattr(self._image, "n_frames", 1)):
                self._image.seek(number)
                self._image.load()
                length = self._image.info.get("duration", 100) / 1000
                lengths.append(length if length > _SHORTEST_FRAME else 0.1)
        ends = np.cumsum(lengths)
        self.starts, self.seconds = ends - lengths, float(ends[-1])

    def read(self, wanted: Sequence[int]) -> list[np.ndarray]:
        """Frames of ascending indices."""
        frames = []
        with media_errors(self.path, "damaged video"):
            for number in wanted:
                self._image.seek(number)
                frames.append(np.asarray(to_rgb(self._image)))
        return frames


def read_frames(path: str | Path, fps: float, chunk: int = 32, size: int | None = None) -> Iterator[list[np.ndarray]]:
    """`Video(path, size).frames(fps, chunk)`."""
    yield from Video(path, size).frames(fps, chunk)
