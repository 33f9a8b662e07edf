"""Images and audio as data URIs, so that a page is one file."""

import base64
import io
from pathlib import Path

import PIL.Image
import PIL.ImageOps
import soundfile
from torch import Tensor

from im2wav.report.page import Audio, Image
from im2wav.report.spectrogram import mel_image


def data_uri(kind: str, content: bytes) -> str:
    """Content as a URI, with its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(source: Path | PIL.Image.Image, size: int = 480) -> PIL.Image.Image:
    """A small upright RGB copy of an image, or of the image file at a path."""
    if isinstance(source, Path):
        with PIL.Image.open(source) as opened:
            return thumbnail(opened, size)
    small = PIL.ImageOps.exif_transpose(source).convert("RGB")
    small.thumbnail((size, size))
    return small


def inline_image(source: Path | PIL.Image.Image) -> Image:
    """A thumbnail of an image, or of the image file at a path."""
    buffer = io.BytesIO()
    thumbnail(source).save(buffer, "JPEG", quality=80)
    return Image(data_uri("image/jpeg", buffer.getvalue()))


def inline_audio(wav: Tensor, sample_rate: int) -> Audio:
    """A waveform [N] at `sample_rate` Hz as FLAC, with its spectrogram."""
    audio, image = io.BytesIO(), io.BytesIO()
    soundfile.write(audio, wav.clamp(-1, 1).numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    mel_image(wav, sample_rate).save(image, "PNG")
    return Audio(data_uri("audio/flac", audio.getvalue()), data_uri("image/png", image.getvalue()))
