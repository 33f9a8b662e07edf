"""Sounds and pictures on a dashboard: W&B, TensorBoard, and a page in the run's folder that needs neither."""

import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image, ImageOps
from torch import Tensor

from im2wav.data.pairs import wav_bytes, write_atomic
from im2wav.evaluation.distance import log_mel

log = logging.getLogger(__name__)

# dark to bright over violet and orange; positions from 0 to 1
COLOURS = np.array([[4, 3, 20], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], float)

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color-scheme: light dark }}
td, th {{ padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884 }}
td img {{ display: block; max-width: 230px; max-height: 150px; margin-bottom: .3rem }}
img.mel {{ width: 230px; height: 64px; image-rendering: pixelated }} audio {{ width: 230px; height: 32px }}
</style><h1>{title}</h1>{body}</html>
"""


@dataclass
class Sample:
    """One row of a dashboard's table.

    Attributes:
        name: of the row, as a file name.
        facts: further columns, such as the guidance scale and the seed.
        sounds: column -> wave [N] on the CPU.
        picture: what is heard; None where nothing is seen.
    """

    name: str
    facts: Mapping[str, Any]
    sounds: Mapping[str, Tensor]
    picture: Path | None = None
    files: dict[str, str] = field(default_factory=dict)


def mel_picture(wav: Tensor, sample_rate: int) -> Image.Image:
    """Mel spectrogram of wav [N]: time to the right, pitch upwards, 50 dB from dark to bright."""
    level = log_mel(wav, sample_rate, floor=50.0, frame=0.032).numpy().T[::-1] / 50.0
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, stops, COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def thumbnail(path: Path) -> Image.Image:
    """A small upright copy of a picture."""
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((320, 320))
    return small


def write_files(folder: Path, samples: Sequence[Sample], sample_rate: int) -> None:
    """Write sounds, mel spectrograms and pictures beside each other; notes their names in the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        for column, wav in sample.sounds.items():
            stem = f"{sample.name}_{column.replace(' ', '_')}"
            write_atomic(folder / f"{stem}.wav", wav_bytes(wav, sample_rate))
            mel_picture(wav, sample_rate).save(folder / f"{stem}.png")
            sample.files[column] = stem
        if sample.picture is not None:
            thumbnail(sample.picture).save(folder / f"{sample.name}.jpg", quality=85)


def _row(sample: Sample, columns: Sequence[str], facts: Sequence[str]) -> str:
    cells = [f"<td>{html.escape(sample.name)}</td>"]
    cells[0] = cells[0].replace("<td>", f'<td><img src="{sample.name}.jpg" alt="">') if sample.picture else cells[0]
    cells += [f"<td>{html.escape(str(sample.facts.get(name, '')))}</td>" for name in facts]
    for column in columns:
        stem = sample.files.get(column)
        sound = f'<img class="mel" src="{stem}.png" alt=""><audio controls preload="none" src="{stem}.wav"></audio>'
        cells.append(f"<td>{sound if stem else ''}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def write_page(folder: Path, title: str, samples: Sequence[Sample], note: str = "") -> Path:
    """A contact sheet of what `write_files` wrote, with a note below."""
    columns = list(dict.fromkeys(column for sample in samples for column in sample.sounds))
    facts = list(dict.fromkeys(name for sample in samples for name in sample.facts))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("item", *facts, *columns))
    rows = "".join(_row(sample, columns, facts) for sample in samples)
    body = f"<table><tr>{head}</tr>{rows}</table>{f'<p>{html.escape(note)}</p>' if note else ''}"
    path = folder / "index.html"
    write_atomic(path, PAGE.format(title=html.escape(title), body=body).encode())
    return path


def log_samples(loggers: Sequence[Logger], tag: str, samples: Sequence[Sample], sample_rate: int, step: int) -> None:
    """To W&B as one table, to TensorBoard as sounds and images."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, tag, samples, sample_rate, step)
        elif isinstance(logger, TensorBoardLogger):
            for sample in samples:
                for column, wav in sample.sounds.items():
                    name = f"{tag}/{sample.name}/{column}"
                    logger.experiment.add_audio(name, wav[None], step, sample_rate)
                    pixels = np.asarray(mel_picture(wav, sample_rate))
                    logger.experiment.add_image(f"{name} mel", pixels, step, dataformats="HWC")


def _to_wandb(logger: WandbLogger, tag: str, samples: Sequence[Sample], sample_rate: int, step: int) -> None:
    import wandb

    columns = list(dict.fromkeys(column for sample in samples for column in sample.sounds))
    facts = list(dict.fromkeys(name for sample in samples for name in sample.facts))
    names: list[str | int] = ["item", "picture", *facts, *(c for column in columns for c in (column, f"{column} mel"))]
    table = wandb.Table(columns=names)
    for sample in samples:
        cells: list[Any] = [sample.name, wandb.Image(thumbnail(sample.picture)) if sample.picture else None]
        cells += [sample.facts.get(name) for name in facts]
        for column in columns:
            wav = sample.sounds.get(column)
            if wav is None:
                cells += [None, None]
            else:
                cells += [wandb.Audio(wav.numpy(), sample_rate), wandb.Image(mel_picture(wav, sample_rate))]
        table.add_data(*cells)
    logger.experiment.log({tag: table, "trainer/global_step": step})


def log_histogram(loggers: Sequence[Logger], tag: str, values: Tensor, step: int) -> None:
    """How often which values occur, where a logger can show it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            histogram = wandb.Histogram(np_histogram=np.histogram(values.numpy(), bins=64))
            logger.experiment.log({tag: histogram, "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(tag, values, step)
