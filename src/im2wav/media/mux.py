"""Writing audio as AAC: into a copy of a video, into a video of a photo, alone, or piece by piece."""

import io
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from im2wav.files import atomic_path
from im2wav.media.reading import MediaError, open_media
from im2wav.media.video import Timeline, video_stream

_FRAME = 1024  # samples in a frame of AAC
LARGEST_STILL = 1280  # pixels of the longer side of a photo in a video
STILL_FPS = 10  # frames per second of such a video


def mux(video: Path, wav: Tensor, sample_rate: int, out: Path) -> None:
    """Write `out`, an mp4 with the video stream of `video`, copied, and the audio wav [N] as AAC.

    Both begin with the first frame, whatever the time stamps of `video` begin with.

    Raises:
        ValueError: `out` cannot be written.
        MediaError: the video cannot be read, or mp4 cannot contain its format.
    """
    origin = Timeline(video).origin
    with atomic_path(out) as temporary:
        try:
            with open_media(video) as source, av.open(str(temporary), "w", format="mp4") as target:
                frames = video_stream(source, video)
                _copy(source, frames, origin, target, wav, sample_rate)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise MediaError("cannot mux", f"{video}: {error}") from error


def _copy(source: Any, frames: Any, origin: float, target: Any, wav: Tensor, sample_rate: int) -> None:
    """Copy the video stream and encode wav [N], interleaved by time so that memory stays bounded."""
    copied = target.add_stream_from_template(frames, opaque=True)
    if frames.codec_context.codec.canonical_name == "hevc":
        copied.codec_context.codec_tag = "hvc1"  # Apple's players show nothing for hev1
    send = _AudioTrack(target, wav, sample_rate).send
    shift = round(origin / frames.time_base)
    for packet in source.demux(frames):
        if not packet.size:  # the empty packet at the end
            continue
        if packet.dts is not None:
            send(float((packet.dts - shift) * packet.time_base))
            packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = copied
        target.mux(packet)
    send()


class _AudioTrack:
    """Audio [N] as AAC in a file that is being written."""

    def __init__(self, target: Any, wav: Tensor, sample_rate: int):
        self.target, self.rate, self.sent = target, sample_rate, 0
        self.samples = wav.clamp(-1, 1).float().numpy()
        self.stream = target.add_stream("aac", rate=sample_rate, layout="mono")

    def send(self, until: float | None = None) -> None:
        """Encode the samples before a time in seconds; None: all that are left, and the end."""
        end = len(self.samples) if until is None else min(len(self.samples), until * self.rate)
        while self.sent < end:
            part = np.ascontiguousarray(self.samples[None, self.sent : self.sent + _FRAME])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self.rate, self.sent
            self.target.mux(self.stream.encode(frame))
            self.sent += _FRAME
        if until is None:
            self.target.mux(self.stream.encode(None))


class AacStream:
    """Encodes audio as AAC (ADTS) piece by piece, without gaps between the pieces."""

    def __init__(self, sample_rate: int):
        self._buffer = io.BytesIO()
        self._target: Any = av.open(self._buffer, "w", format="adts")
        self._track = _AudioTrack(self._target, torch.empty(0), sample_rate)

    def encode(self, wav: Tensor | None) -> bytes:
        """Encode the next piece [n]: the bytes of all frames that are complete; None for the rest, at the end."""
        track = self._track
        if wav is None:
            track.send()
            self._target.close()
        else:
            track.samples = np.concatenate([track.samples, wav.clamp(-1, 1).float().numpy()])
            track.send(len(track.samples) // _FRAME * _FRAME / track.rate)
        content = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return content


def aac_seconds(content: bytes, sample_rate: int) -> float:
    """Duration of complete AAC (ADTS) frames; each has its length in bytes in its header."""
    place = count = 0
    while place < len(content):
        place += (content[place + 3] & 3) << 11 | content[place + 4] << 3 | content[place + 5] >> 5
        count += 1
    return count * _FRAME / sample_rate


def write_m4a(wav: Tensor, sample_rate: int, out: Path) -> None:
    """Write audio [N] as an .m4a file.

    Raises:
        ValueError: `out` cannot be written.
    """
    with atomic_path(out) as temporary, av.open(str(temporary), "w", format="ipod") as target:
        _AudioTrack(target, wav, sample_rate).send()


def mux_photo(photo: Image.Image, wav: Tensor, sample_rate: int, out: Path) -> None:
    """Write `out`, an mp4 that shows a photo, at most 1280 pixels wide and high, while the audio [N] plays.

    Raises:
        ValueError: `out` cannot be written.
    """
    small = photo.convert("RGB")
    small.thumbnail((LARGEST_STILL, LARGEST_STILL))
    image = np.asarray(small)[: small.height // 2 * 2, : small.width // 2 * 2]  # H.264 wants even sizes
    if not image.size:
        raise ValueError(f"{out}: a photo of {photo.width} x {photo.height} pixels is too small for a video")
    with atomic_path(out) as temporary, av.open(str(temporary), "w", format="mp4") as target:
        video = target.add_stream("libx264", rate=STILL_FPS, options={"tune": "stillimage"})
        video.height, video.width, video.pix_fmt = *image.shape[:2], "yuv420p"
        audio = _AudioTrack(target, wav, sample_rate)
        for number in range(max(1, math.ceil(len(wav) / sample_rate * STILL_FPS))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            target.mux(video.encode(frame))
            audio.send(number / STILL_FPS)
        target.mux(video.encode(None))
        audio.send()
