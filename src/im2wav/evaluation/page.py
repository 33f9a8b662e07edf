"""A self-contained page: pictures, sounds to play, mel spectrograms, curves and tables in one HTML file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from im2wav.data.pairs import wav_bytes, write_atomic
from im2wav.evaluation.distance import log_mel

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: .2rem } h2 { margin-top: 2.5rem } p { max-width: 46rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line) } td.number { font-variant-numeric: tabular-nums; text-align: right }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem }
.card { border: 1px solid var(--line); border-radius: 10px; padding: .8rem }
.card > img { width: 100%; aspect-ratio: 3/2; object-fit: cover; border-radius: 6px }
.card h3 { margin: .4rem 0 0 } .note { opacity: .75; font-size: .85rem; margin: 0 0 .4rem }
.sound { display: grid; grid-template-columns: 5.5rem 1fr; align-items: center; gap: .3rem .6rem; font-size: .85rem }
.sound img { width: 100%; height: 56px; border-radius: 4px; image-rendering: pixelated }
audio { width: 100%; height: 32px }
.wide { width: 100%; background: white; border-radius: 6px }
"""


@dataclass
class Card:
    """One picture, where there is one, with its sounds: caption -> wave [N]."""

    title: str
    image: Path | None
    sounds: Mapping[str, Tensor]
    note: str = ""


@dataclass
class Section:
    """A heading, a sentence and cards."""

    title: str
    text: str
    cards: Sequence[Card] = field(default_factory=list)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _uri("image/png", buffer.getvalue())


def mel_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """Mel spectrogram of wav [N] as a picture, time to the right, pitch upwards, 50 dB from dark to bright."""
    from matplotlib import colormaps

    mel = log_mel(wav, sample_rate, floor=50.0, frame=0.032).numpy() / 50.0
    return Image.fromarray((colormaps["magma"](mel.T[::-1])[..., :3] * 255).astype(np.uint8))


def curves(runs: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Loss curves, one panel for each run: name -> {curve: [(step, value), ...]}; a data URI of an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(len(runs), 1), 3.0), layout="constrained")
    for axis, (name, lines) in zip(figure.subplots(1, max(len(runs), 1), squeeze=False)[0], runs.items(), strict=False):
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.2, marker="." if len(points) < 20 else None)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return svg(figure)


def svg(figure: Any) -> str:
    """A matplotlib figure as a data URI; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "im2wav"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue())


def _thumbnail(path: Path, title: str) -> str:
    with Image.open(path) as image:
        thumb = ImageOps.exif_transpose(image).convert("RGB")
    thumb.thumbnail((480, 480))
    buffer = io.BytesIO()
    thumb.save(buffer, "JPEG", quality=80)
    return f'<img alt="{html.escape(title)}" src="{_uri("image/jpeg", buffer.getvalue())}">'


def _card(card: Card, sample_rate: int) -> str:
    picture = _thumbnail(card.image, card.title) if card.image else ""
    rows = "".join(
        f'<div class="sound"><span>{html.escape(caption)}</span><img alt="mel spectrogram" '
        f'src="{_png(mel_image(wav, sample_rate))}"><span></span>'
        f'<audio controls preload="none" src="{_uri("audio/flac", wav_bytes(wav, sample_rate, "FLAC"))}"></audio></div>'
        for caption, wav in card.sounds.items()
    )
    words = f'<h3>{html.escape(card.title)}</h3><p class="note">{html.escape(card.note)}</p>'
    return f'<div class="card">{picture}{words}{rows}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.3g}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def table(heading: str, rows: Sequence[Sequence[Any]]) -> str:
    """A table under its heading; the first row holds the column names."""
    names, *rest = rows
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rest)
    return f"<h2>{html.escape(heading)}</h2><table><tr>{head}</tr>{body}</table>"


def cards(section: Section, sample_rate: int) -> str:
    """A section with its pictures and sounds."""
    shown = "".join(_card(card, sample_rate) for card in section.cards)
    return f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p><div class='cards'>{shown}</div>"


def plot(heading: str, text: str, figure: str) -> str:
    """A heading, a sentence and a plot that is given as a data URI."""
    words = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<h2>{html.escape(heading)}</h2>{words}<img class="wide" alt="{html.escape(heading)}" src="{figure}">'


def write_html(path: Path, title: str, text: str, parts: Sequence[str]) -> None:
    """Write a page of a title, a paragraph and parts made by `table`, `cards` and `plot`."""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"</head><body><h1>{html.escape(title)}</h1><p>{html.escape(text)}</p>{''.join(parts)}</body></html>"
    )
    write_atomic(path, page.encode())


def write_page(
    path: Path,
    title: str,
    text: str,
    tables: Mapping[str, Sequence[Sequence[Any]]],
    figure: str,
    sections: Sequence[Section],
    sample_rate: int,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        title, text: what stands on top.
        tables: heading -> rows, the first of which holds the column names; the first table stands before the pictures.
        figure: a data URI of the loss curves.
        sections: pictures and sounds.
        sample_rate: of all sounds, Hz.
    """
    first, *others = [table(heading, rows) for heading, rows in tables.items()]
    shown = [cards(section, sample_rate) for section in sections]
    write_html(path, title, text, [first, *shown, *others, plot("Loss curves", "", figure)])
