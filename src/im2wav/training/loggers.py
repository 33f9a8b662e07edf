"""Loggers: W&B without an account, one W&B run per training; samples for W&B, TensorBoard and an HTML page."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from torch import Tensor

from im2wav.files import wav_bytes, write_atomic
from im2wav.network import is_reachable
from im2wav.report import Audio, Image, Table, render_page
from im2wav.report.page import thumbnail
from im2wav.report.plots import mel_image
from im2wav.training.checkpoints import is_first_process

log = logging.getLogger(__name__)
WANDB_ID = "wandb_run_id.txt"  # in the folder of the run, so that a resumed run continues the same W&B run


@contextmanager
def finish_wandb_run() -> Iterator[None]:
    """Finish the W&B run at the end of training, so that the next job of a sweep starts a new one."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish(exit_code=int(failed))


class RunLogger(WandbLogger):
    """A W&B logger whose errors are one line."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use.

        Raises:
            ValueError: W&B rejects it, such as its API key.
        """
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"wandb: {reason}; run `wandb login`, or set WANDB_MODE=offline") from error


def wandb_logger(save_dir: str, **options: Any) -> WandbLogger:
    """Build a W&B logger: offline unless WANDB_MODE=online or an API key is set, and the server answers.

    The agent of a sweep (WANDB_SWEEP_ID) needs the server, so its runs stay online.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        try:
            mode = "online" if wandb.api.api_key else "offline"
        except wandb.errors.UsageError:  # raised by recent versions if there is no key
            mode = "offline"
    if mode == "online" and is_first_process() and "WANDB_SWEEP_ID" not in os.environ:
        server = wandb.setup().settings.base_url
        if not is_reachable(server):  # `wandb.init` would wait for minutes, then raise
            mode = "offline"
            upload = f"wandb sync {Path(save_dir) / 'wandb'}/offline-run-*"
            log.warning("wandb: no answer from %s: this run is logged offline; upload it later: %s", server, upload)
    known = Path(save_dir) / WANDB_ID
    if not known.is_file() and is_first_process():
        write_atomic(known, secrets.token_hex(4).encode())
    return RunLogger(
        mode=mode,  # Lightning's `offline` would change the environment of later runs
        save_dir=save_dir,
        id=known.read_text() if known.is_file() else None,
        resume="allow",
        log_model=False,
        **options,
    )


@dataclass
class DashboardRow:
    """A row of the dashboard table."""

    name: str  # a valid file name
    facts: Mapping[str, Any]  # additional columns, such as guidance scale and seed
    audio: Mapping[str, Tensor]  # column -> waveform [N] on the CPU
    image: Path | None = None  # conditioning image


def _columns(samples: Sequence[DashboardRow]) -> tuple[list[str], list[str]]:
    """Names of all facts and audio columns."""
    facts = dict.fromkeys(name for sample in samples for name in sample.facts)
    return list(facts), list(dict.fromkeys(column for sample in samples for column in sample.audio))


def write_page(folder: Path, title: str, samples: Sequence[DashboardRow], sample_rate: int, note: str = "") -> Path:
    """Write audio, mel spectrograms, images and an index.html to a folder."""
    facts, columns = _columns(samples)
    rows: list[list[Any]] = [["item", "image", *facts, *columns]]
    for sample in samples:
        row: list[Any] = [sample.name, "", *(sample.facts.get(name, "") for name in facts)]
        folder.mkdir(parents=True, exist_ok=True)
        if sample.image is not None:
            thumbnail(sample.image, 320).save(folder / f"{sample.name}.jpg", quality=85)
            row[1] = Image(quote(f"{sample.name}.jpg"))
        for column in columns:
            wav, stem = sample.audio.get(column), f"{sample.name}_{column.replace(' ', '_')}"
            if wav is not None:
                write_atomic(folder / f"{stem}.wav", wav_bytes(wav, sample_rate))
                mel_image(wav, sample_rate).save(folder / f"{stem}.png")
            row.append("" if wav is None else Audio(quote(f"{stem}.wav"), quote(f"{stem}.png")))
        rows.append(row)
    path = folder / "index.html"
    write_atomic(path, render_page(title, note, [Table("", rows)], wide=True))
    return path


def log_samples(
    loggers: Sequence[Logger], tag: str, samples: Sequence[DashboardRow], sample_rate: int, step: int
) -> None:
    """Log samples to W&B as a table, to TensorBoard as audio and images."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, tag, samples, sample_rate, step)
        elif isinstance(logger, TensorBoardLogger):
            for sample in samples:
                for column, wav in sample.audio.items():
                    name = f"{tag}/{sample.name}/{column}"
                    logger.experiment.add_audio(name, wav[None], step, sample_rate)
                    pixels = np.asarray(mel_image(wav, sample_rate))
                    logger.experiment.add_image(f"{name} mel", pixels, step, dataformats="HWC")


def _to_wandb(logger: WandbLogger, tag: str, samples: Sequence[DashboardRow], sample_rate: int, step: int) -> None:
    import wandb

    facts, columns = _columns(samples)
    names: list[str | int] = ["item", "image", *facts, *(c for column in columns for c in (column, f"{column} mel"))]
    table = wandb.Table(columns=names)
    for sample in samples:
        cells: list[Any] = [sample.name, wandb.Image(thumbnail(sample.image, 320)) if sample.image else None]
        cells += [sample.facts.get(name) for name in facts]
        for column in columns:
            wav = sample.audio.get(column)
            if wav is None:
                cells += [None, None]
            else:
                cells += [wandb.Audio(wav.numpy(), sample_rate), wandb.Image(mel_image(wav, sample_rate))]
        table.add_data(*cells)
    logger.experiment.log({tag: table, "trainer/global_step": step})


def log_histogram(loggers: Sequence[Logger], tag: str, values: Tensor, step: int) -> None:
    """Log a histogram to W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            histogram = wandb.Histogram(np_histogram=np.histogram(values.numpy(), bins=64))
            logger.experiment.log({tag: histogram, "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(tag, values, step)
