"""How long a video lasts, and a new sound put into it."""

from pathlib import Path

import numpy as np
from torch import Tensor

from im2wav.data.media import MediaError, Video

_FRAME = 1024  # samples that AAC takes at once


def video_seconds(path: str | Path) -> float:
    """How long a video's pictures last, by their time stamps.

    Raises:
        MediaError: unreadable, or without a video stream.
    """
    return Video(path).seconds


def mux(video: Path, wav: Tensor, sample_rate: int, out: Path) -> None:
    """Write `out`, an mp4 with the pictures of `video` and the sound wav [N]: pictures copied, sound as AAC.

    Raises:
        ValueError: PyAV is not installed, or `out` cannot be written.
        MediaError: the video cannot be read, or is of a kind that mp4 does not hold.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "writing a video with its sound needs PyAV: pip install 'im2wav[video]', or say mux=false"
        ) from error
    temporary = out.with_name(f".writing-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(video)) as source, av.open(str(temporary), "w", format="mp4") as target:
            pictures = source.streams.video[0]
            copied = target.add_stream_from_template(pictures)
            sound = target.add_stream("aac", rate=sample_rate, layout="mono")
            samples = wav.clamp(-1, 1).float().numpy()
            sent = 0

            def send(until: float) -> None:  # the sound keeps up with the pictures, so that nothing piles up
                nonlocal sent
                while sent < min(len(samples), until * sample_rate):
                    part = np.ascontiguousarray(samples[None, sent : sent + _FRAME])
                    frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                    frame.sample_rate, frame.pts = sample_rate, sent
                    target.mux(sound.encode(frame))
                    sent += _FRAME

            for packet in source.demux(pictures):
                if packet.dts is None:  # the empty packet at the end
                    continue
                send(float(packet.dts * packet.time_base))
                packet.stream = copied
                target.mux(packet)
            send(float("inf"))
            target.mux(sound.encode(None))
        temporary.replace(out)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError("cannot mux", f"{video}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
