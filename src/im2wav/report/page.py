"""A page is a list of parts: tables, cards and plots. The templates escape every text that they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from im2wav.report.tables import Rows, format_number


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
    """The HTML of a page: title, introduction, and parts (`Table`, `Cards`, `Plot`); `wide`: as wide as the window."""
    return _environment().get_template("page.html").render(title=title, text=text, parts=parts, wide=wide).encode()
