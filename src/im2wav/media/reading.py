"""Which files of a folder are media, and reading images and audio. A file that cannot be used raises `MediaError`."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import soundfile
import torch
import torchaudio.functional
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from im2wav.files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, same_name, walk_files

RESAMPLER = "torchaudio.functional.resample: windowed sinc, Hann, 6 zero crossings, roll-off 0.99"
_MAX_GAP = 0.05  # s between time stamps of an audio track that are filled with silence; shorter ones are rounding
_LONGEST_GAP = 600.0  # s: beyond, time stamps are broken

pillow_heif.register_heif_opener()  # Pillow itself reads AVIF
av.logging.set_level(None)  # errors of FFmpeg are raised; its lines on stderr say nothing more


class MediaError(ValueError):
    """A file that cannot be used. `reason` is one or two words, for tables; `detail` is the rest of the message."""

    def __init__(self, reason: str, detail: str):
        detail = " ".join(detail.split())  # some libraries' messages have several lines
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def check_file(path: str | Path) -> None:
    """Reject files that are missing, no regular files, or empty.

    Raises:
        MediaError: it is one.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise MediaError("missing file", f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("no file", f"{path} is a folder, a pipe or a device")
    if not status.st_size:
        raise MediaError("empty file", f"{path} has no bytes")


def is_animation(path: str | Path) -> bool:
    """Whether a file is a GIF or WebP with several frames."""
    if Path(path).suffix.lower() not in (".gif", ".webp"):
        return False
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError):
        return False


def media_kind(path: Path) -> str:
    """`image`, `video` or `audio`, by the suffix; a GIF or WebP is a video if it is animated. Empty for other files."""
    suffix = path.suffix.lower()
    if suffix in (".gif", ".webp"):
        return "video" if is_animation(path) else "image"
    kinds = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "")


class MediaFolder:
    """The photos and videos below a folder, each with the audio file of the same name.

    Of a photo and a video of one name (a Live Photo, a download with its thumbnail), the video is taken. With
    `audio_alone`, audio files without either are items as well.

    Attributes:
        items: path, `image`, `video` or `audio`, and the path of the audio file or None; sorted by path.
        ignored: other entries, with the reason.
    """

    def __init__(self, folder: Path, audio_alone: bool = False):
        files, self.ignored = walk_files(folder)
        found: dict[str, list[tuple[Path, str]]] = {"image": [], "video": [], "audio": [], "": []}
        for path in files:
            kind = media_kind(path)
            found[kind].append((path, same_name(str(path.with_suffix("")))))
        audio: dict[str, Path] = {}
        for path, stem in found["audio"]:
            if stem in audio:
                self.ignored.append((path, f"{audio[stem].name} has the same name"))
            else:
                audio[stem] = path
        videos = {stem for _, stem in found["video"]}
        self.items = [(path, "video", audio.get(stem)) for path, stem in found["video"]]
        for path, stem in found["image"]:
            if stem in videos:
                self.ignored.append((path, "a video has the same name"))
            else:
                self.items.append((path, "image", audio.get(stem)))
        used = {path for _, _, path in self.items}
        alone = [path for path in audio.values() if path not in used]
        self.items += [(path, "audio", path) for path in alone if audio_alone]
        self.ignored += [(path, "no photo or video has the same name") for path in alone if not audio_alone]
        self.ignored += [(path, "no media file") for path, _ in found[""]]
        self.items.sort(key=lambda item: item[0])

    def describe_ignored(self, examples: int = 3) -> list[str]:
        """One line for each reason: how many files, and the first of them."""
        count = Counter(reason for _, reason in self.ignored)
        lines = []
        for reason, number in count.most_common():
            names = [ascii_safe(path.name) for path, why in self.ignored if why == reason]
            more = ", ..." if number > examples else ""
            lines.append(f"ignored {number}: {', '.join(names[:examples])}{more} ({reason})")
        return lines


def ascii_safe(name: str) -> str:
    """A name as it can be printed, whatever bytes it holds."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def media_errors(path: str | Path, reason: str) -> Iterator[None]:
    """Convert errors of PyAV and Pillow to MediaError."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, IndexError, UnicodeError) as error:
        if isinstance(error, MediaError):
            raise
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(reason, f"{path}: {text}") from error


def open_media(path: str | Path) -> Any:
    """Open an audio or video file by PyAV; titles and other tags need not be UTF-8."""
    return av.open(str(path), metadata_errors="replace")


def describe_streams(container: Any) -> str:
    """What a container holds, for messages."""
    names = [f"{stream.type} ({getattr(stream.codec_context, 'name', 'unknown')})" for stream in container.streams]
    return ", ".join(names) or "no streams"


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, rotated by its EXIF orientation.

    Raises:
        MediaError: missing, or not an image.
    """
    check_file(path)
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
        RuntimeError,
    ) as error:
        raise MediaError("unreadable image", f"{path}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB: 16 bits are scaled, transparent pixels are shown on white.

    Raises:
        ValueError: pixels without a known range.
    """
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of {values.min()} to {values.max()}; only 8 and 16 bits can be read")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are floating-point numbers; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def read_audio(path: str | Path, sample_rate: int) -> Tensor:
    """Read an audio file as mono at a sample rate in Hz: [N] float32.

    Raises:
        MediaError: missing, unreadable or empty, or with non-finite values.
    """
    return read_audio_and_rate(path, sample_rate)[0]


def read_audio_and_rate(path: str | Path, sample_rate: int) -> tuple[Tensor, int]:
    """Like `read_audio`, with the sample rate of the file in Hz."""
    check_file(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError):  # m4a, 3gp, a video, ...
        try:
            return read_track(path, sample_rate)[:2]
        except MediaError as error:
            reason = "unreadable audio" if error.reason == "no audio track" else error.reason
            raise MediaError(reason, error.detail) from error
    return resample(samples.mean(1), rate, sample_rate, path), rate


def resample(samples: np.ndarray, rate: int, sample_rate: int, path: str | Path) -> Tensor:
    """Resample mono audio [N] from `rate` to `sample_rate` by `RESAMPLER`.

    Raises:
        MediaError: no samples, or non-finite ones.
    """
    wav = torch.from_numpy(np.ascontiguousarray(samples))
    if not len(wav):
        raise MediaError("empty audio", f"{path} contains no samples")
    if not wav.isfinite().all():
        raise MediaError("broken audio", f"{path} contains non-finite values")
    ratio = Fraction(rate, sample_rate).limit_denominator(1000)  # exact for common rates; a prime rate needs GBs
    return torchaudio.functional.resample(wav, ratio.numerator, ratio.denominator)


def read_track(path: str | Path, sample_rate: int, origin: float | None = None) -> tuple[Tensor, int, float]:
    """Read the audio track of a media file as mono, the mean of its channels.

    Args:
        path: a video or an audio file.
        sample_rate: of the result, in Hz.
        origin: time stamp of its first frame in seconds: audio before it is cut, and silence put before audio that
            begins later. None: the audio begins with its first sample.

    Returns:
        wav [N] float32, the sample rate of the file in Hz, and by how many seconds the track begins after `origin`.

    Raises:
        MediaError: no audio track, or one that cannot be read to its end.
    """
    check_file(path)
    with media_errors(path, "unreadable audio"), open_media(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]  # known codecs
        if not streams:
            raise MediaError("no audio track", f"{path}: it contains {describe_streams(container)}")
        best = container.streams.best("audio")
        stream = best if best in streams else streams[0]
        stream.codec_context.thread_count = 1
        parts, rate, start, lost = _decode_track(container, stream)
        is_exact = container.format.name.startswith("mov")
        has_index = stream.duration and (is_exact or container.format.name == "avi")  # else durations are estimates
        duration = float(stream.duration * stream.time_base) if has_index else 0.0
    if not parts or not rate:
        raise MediaError("empty audio", f"{path} contains no samples")
    samples = np.concatenate(parts)
    seconds = len(samples) / rate
    if lost > max(0.25, 0.02 * seconds) or seconds < duration - max(0.15 if is_exact else 0.25, 0.02 * duration):
        expected = max(duration, seconds + lost)
        raise MediaError("cut audio", f"{path}: {seconds:.2f} s of {expected:.2f} s could be read")
    if 0 < duration < seconds < duration + 0.2:  # encoders fill their last frame
        samples = samples[: round(duration * rate)]
    wav = resample(samples, rate, sample_rate, path)
    late = 0.0 if origin is None else start - origin
    shift = round(late * sample_rate)
    if len(wav) + shift <= 0:
        raise MediaError("empty audio", f"{path}: its audio ends {-late:.2f} s early: before the video begins")
    return torch.nn.functional.pad(wav, (shift, 0)), rate, late


def _decode_track(container: Any, stream: Any) -> tuple[list[np.ndarray], int, float, float]:
    """Mono parts [N] without gaps, sample rate, time of the first sample and seconds that could not be decoded."""
    parts: list[np.ndarray] = []
    rate, layout, start, lost, total = 0, None, 0.0, 0.0, 0
    mixer: Any = None
    setup: Any = None
    for packet in container.demux(stream):
        if packet.is_corrupt and container.format.name.startswith("mov"):
            raise MediaError("cut audio", f"{container.name}: the file ends within its audio")
        try:
            frames = packet.decode()
        except av.FFmpegError:
            lost += float((packet.duration or 0) * (packet.time_base or 0))
            continue
        for frame in frames:
            if not rate:
                # the stream's own rate is that of its header, which for some codecs is half of it
                rate, layout, start = frame.sample_rate, frame.layout.name, frame.time or 0.0
            if setup != (frame.sample_rate, frame.layout.name, frame.format.name):
                setup = (frame.sample_rate, frame.layout.name, frame.format.name)
                mixer = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            gap = 0.0 if frame.time is None else frame.time - start - total / rate
            if _MAX_GAP < gap < _LONGEST_GAP:
                parts.append(np.zeros(round(gap * rate), np.float32))
                total += len(parts[-1])
            frame.pts = None  # else the mixer would fill gaps as well
            for mixed in mixer.resample(frame):
                parts.append(mixed.to_ndarray().mean(0, dtype=np.float32))
                total += len(parts[-1])
    return parts, rate, start, lost


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
