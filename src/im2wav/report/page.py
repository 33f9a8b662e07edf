"""Tables as text, Markdown, CSV and HTML; and pages, which are one file.

A table is a list of rows, the first of which holds the column names. A page is a list of parts: tables, cards and
plots. The templates escape every text that they are given.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import PIL.ImageOps
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from im2wav.report.plots import data_uri, mel_image

Rows = Sequence[Sequence[Any]]


def format_number(value: Any) -> str:
    """Format a float with three significant digits; other values with str."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def as_text(rows: Rows, most: int | None = None) -> str:
    """Aligned columns; of a long table the first `most` rows."""
    shown = rows if most is None else rows[: most + 1]
    cells = [[format_number(value) for value in row] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    more = [f"... and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return "\n".join([*(line for line in lines if line), *more])


def as_markdown(rows: Rows) -> str:
    """A Markdown table."""
    head, *rest = [[format_number(value) for value in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rest)]) + "\n"


@dataclass(frozen=True)
class Image:
    """An image in a table: a data URI, or a path relative to the page."""

    source: str


@dataclass(frozen=True)
class Audio:
    """A player and its mel spectrogram: data URIs, or paths relative to the page."""

    source: str
    spectrogram: str


@dataclass(frozen=True)
class Card:
    """An image (None: without one) with its audio, caption -> player."""

    title: str
    image: Image | None
    audio: Mapping[str, Audio]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first row holds the column names; cells are text, numbers, `Image` or `Audio`."""

    template: ClassVar[str] = "table.html"
    title: str
    rows: Rows
    text: str = ""


@dataclass(frozen=True)
class Cards:
    """Cards side by side under a heading."""

    template: ClassVar[str] = "cards.html"
    title: str
    text: str = ""
    cards: Sequence[Card] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """A figure of `im2wav.report.plots`, given as a data URI."""

    template: ClassVar[str] = "plot.html"
    title: str
    source: str
    text: str = ""


@dataclass(frozen=True)
class Text:
    """A text with its own line breaks, such as a model card."""

    template: ClassVar[str] = "text.html"
    title: str
    content: str
    text: str = ""


@cache
def _environment() -> Environment:
    loader = PackageLoader("im2wav.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["format_number"] = format_number
    environment.tests["audio"] = lambda value: isinstance(value, Audio)
    environment.tests["image"] = lambda value: isinstance(value, Image)
    return environment


def render_page(title: str, text: str, parts: Sequence[Any], wide: bool = False) -> bytes:
    """The HTML of a page: its title, introduction and parts, such as `Table`; `wide`: as wide as the window."""
    return _environment().get_template("page.html").render(title=title, text=text, parts=parts, wide=wide).encode()


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
