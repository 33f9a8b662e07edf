"""Small media files with known content: a tone, a flash, a beep, at known times."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS = 64, 48, 10


def write_video(
    path: Path,
    seconds: float = 1.0,
    codec: str = "mpeg4",
    audio_codec: str | None = "aac",
    rate: int = 44100,
    hertz: float = 1000.0,
    flash: float | None = None,
    starts: tuple[float, float] = (0.0, 0.0),
    fps: int = FPS,
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    stamps: list[float] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write a video with a tone, or, with `flash`, a white frame and a beep at this time on the common clock.

    Args:
        starts: times of the first frame and of the first sample on that clock.
        stamps: times of the frames, for a variable frame rate.
    """
    with av.open(str(path), "w") as container:
        container.metadata.update(tags or {})
        video = container.add_stream(codec, rate=fps, options=options or {})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pixel_format
        video.codec_context.time_base = Fraction(1, 1000 if stamps else fps)
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        audio = None
        if audio_codec:
            audio = container.add_stream(audio_codec, rate=rate)
            audio.layout = "mono"
        times = stamps or [starts[0] + n / fps for n in range(round(seconds * fps))]
        packets = []
        for number, time in enumerate(times):
            is_flash = flash is not None and time <= flash + 1e-6 < time + 1 / fps
            picture = np.full((HEIGHT, WIDTH, 3), 250 if is_flash else 20, np.uint8)
            picture[:, : 1 + number % WIDTH] += 4
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / video.codec_context.time_base), video.codec_context.time_base
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            clock = starts[1] + np.arange(round(seconds * rate)) / rate
            tone = 0.5 * np.sin(2 * np.pi * hertz * clock)
            if flash is not None:
                tone *= (clock >= flash) & (clock < flash + 0.1)
            resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=rate)
            size = audio.codec_context.frame_size or 1024
            for first in range(0, len(tone), size):
                part = np.ascontiguousarray(tone[None, first : first + size].astype(np.float32))
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(starts[1] * rate) + first
                for ready in resampler.resample(frame):
                    packets += audio.encode(ready)
            packets += audio.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        container.mux(packets)
    return path


def write_rotated(path: Path, degrees: int) -> Path:
    """An mp4 whose display matrix turns its frames clockwise, as phones write portrait videos."""
    content = bytearray(write_video(path, audio_codec=None, codec="libx264").read_bytes())
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    start = content.find(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of the box
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
