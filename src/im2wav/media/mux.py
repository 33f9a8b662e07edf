"""Writing audio into a copy of a video."""

from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

from im2wav.files import atomic_path
from im2wav.media.reading import MediaError, open_media
from im2wav.media.video import Timeline, video_stream

_FRAME = 1024  # samples in a frame of AAC


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
                _copy(source, frames, origin, target, wav.clamp(-1, 1).float().numpy(), sample_rate)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise MediaError("cannot mux", f"{video}: {error}") from error


def _copy(source: Any, frames: Any, origin: float, target: Any, samples: np.ndarray, sample_rate: int) -> None:
    """Copy the video stream and encode samples [N], interleaved by time so that memory stays bounded."""
    copied = target.add_stream_from_template(frames, opaque=True)
    if frames.codec_context.codec.canonical_name == "hevc":
        copied.codec_context.codec_tag = "hvc1"  # Apple's players show nothing for hev1
    audio = target.add_stream("aac", rate=sample_rate, layout="mono")
    sent = 0

    def send(until: float) -> None:
        nonlocal sent
        while sent < min(len(samples), until * sample_rate):
            part = np.ascontiguousarray(samples[None, sent : sent + _FRAME])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = sample_rate, sent
            target.mux(audio.encode(frame))
            sent += _FRAME

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
    send(float("inf"))
    target.mux(audio.encode(None))
