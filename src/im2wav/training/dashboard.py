"""Periodic samples of a training run for fixed items, with EMA weights."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from im2wav.checkpoint import Loaded
from im2wav.codec import LEVELS
from im2wav.codec.codec import exact_fp32
from im2wav.data.windows import Batch, Key, collate
from im2wav.decoding.decoder import Decoder
from im2wav.decoding.sampler import SamplingOptions
from im2wav.prior import Conditions
from im2wav.training.ema import EMA
from im2wav.training.media import DashboardRow, log_histogram, log_samples, write_page
from im2wav.training.module import eager_eval_mode
from im2wav.training.partner import draw_columns, load_partner, missing_column, on_device

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PARTS = 8  # of the window, for bits by position


def averaged_module(trainer: pl.Trainer, module: Any) -> Any:
    """Return the module with EMA weights if the run uses EMA, else the module itself."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA):
            return callback.averaged
    return module


class Dashboard(pl.Callback):
    """Generate samples for fixed items with fixed seeds every `every_n_steps`.

    For a codec: original and reconstructed audio, codebook usage. For a prior: samples at several guidance scales,
    accuracy, bits with and without the image, bits by position. With a partner, a trained prior of the other level, the
    samples are complete: the up prior refines the samples of the low prior. The work is distributed over all processes,
    and the random number generators of the training are not used. Results go to the loggers and to
    `media/step_N/index.html` in the folder of the run.

    Args:
        folder: folder of the run.
        every_n_steps: optimizer steps between samples; None: never.
        items: number of validation items (training items if there is no validation set).
        guidance: guidance scales; a prior without guidance is sampled once.
        temperature: sampling temperature.
        seed: sampling seed.
        partner: path of a trained prior of the other level, see `load_partner`; None: sample one level. It is moved to
            the device only for sampling.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | None = 5000,
        items: int = 4,
        guidance: Sequence[float] = (1.0, 3.0, 5.0),
        temperature: float = 1.0,
        seed: int = 0,
        partner: str | None = None,
    ):
        self.folder = Path(folder) / "media"
        self.every_n_steps, self.items, self.seed = every_n_steps, items, seed
        self.options = [SamplingOptions(guidance_scale=scale, temperature=temperature) for scale in guidance]
        self.partner_path = partner
        self.partner: Loaded | None = None
        self._last_step = 0
        self._note_logged = False

    def find_partner(self, module: Any, datamodule: Any) -> None:
        """Load the partner, if set, before the run writes any file.

        Raises:
            ValueError: see `load_partner`.
        """
        if self.partner_path:
            identity = datamodule.identity()
            self.partner = load_partner(self.partner_path, module, datamodule.tokenizer, identity)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Skip the step that the run resumes from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Generate samples every `every_n_steps` optimizer steps."""
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        if isinstance(trainer.strategy, ModelParallelStrategy):
            if step == self.every_n_steps and trainer.is_global_zero:
                log.warning(
                    "the dashboard does not support sharded weights: run `im2wav sample` on a checkpoint instead"
                )
            return
        module = averaged_module(trainer, pl_module)
        batch, images = self._batch(trainer, pl_module.device)
        device = pl_module.device
        with (
            eager_eval_mode(module.net),
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            exact_fp32(device),  # like `im2wav.sample precision=fp32`
        ):
            sample = self._codec if module.kind == "vqvae" else self._prior
            samples, figures, usage = sample(trainer, module, batch, images)
        samples = _gathered(trainer, samples)
        if trainer.is_global_zero:
            self._log(trainer, module.kind, samples, figures, usage, step)

    def _batch(self, trainer: pl.Trainer, device: torch.device) -> tuple[Batch, list[Path | None]]:
        """The fixed items and their images."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        windows = data.windows["valid" if len(data.windows["valid"]) else "train"]
        rows = list(range(0, len(windows), max(1, len(windows) // self.items)))[: self.items]
        place = 0.0 if data.crop == "start" else 0.5
        batch = collate([windows[Key(row, place)] for row in rows])
        moved = batch._replace(
            wav=batch.wav.to(device),
            clip=batch.clip.to(device),
            timing={name: value.to(device) for name, value in batch.timing.items()},
        )
        images = [_source_image(windows.locate(row, place)[0].source) for row in rows]
        return data.on_after_batch_transfer(moved, 0), images

    def _codec(
        self, trainer: pl.Trainer, module: Any, batch: Batch, images: list[Path | None]
    ) -> tuple[list[DashboardRow], dict, dict]:
        net, figures, usage = module.net, {}, {}
        waves = {level: net.decode(net.encode(batch.wav), level) for level in LEVELS}
        for level, book in net.codebooks.items():
            probabilities = book.code_usage / book.code_usage.sum()
            figures[f"codebook/perplexity/{level}"] = torch.special.entr(probabilities).sum().exp().item()
            figures[f"codebook/dead/{level}"] = (book.code_usage < book.restart_threshold).sum().item()
            usage[f"codebook/usage/{level}"] = book.code_usage.cpu()
        samples = [
            DashboardRow(
                name,
                {"step": trainer.global_step},
                {"real": batch.wav[i, 0].cpu()} | {level: wav[i, 0].clamp(-1, 1).cpu() for level, wav in waves.items()},
                images[i],
            )
            for i, name in enumerate(batch.id)
        ]
        return (samples if trainer.is_global_zero else []), figures, usage

    def _prior(
        self, trainer: pl.Trainer, module: Any, batch: Batch, images: list[Path | None]
    ) -> tuple[list[DashboardRow], dict, dict]:
        codec = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        conditions, device = module.conditions(batch), batch.wav.device
        figures = prior_sample_metrics(module.net, module.codes(batch, module.level), conditions)
        nets = {module.level: module.net}
        if self.partner is not None:
            nets["low" if module.level == "up" else "up"] = on_device(self.partner, device)
        decoders = {level: Decoder(net) for level, net in nets.items()}
        guided = any(decoder.can_be_guided for decoder in decoders.values())
        options = self.options if guided else [SamplingOptions(1.0, self.options[0].temperature)]
        jobs = [(option, row) for option in options for row in range(len(batch.wav))]
        mine = jobs[trainer.global_rank :: trainer.world_size]
        samples = []
        for option in options:
            rows = [row for job, row in mine if job is option]
            if not rows:
                continue
            index, real_low = torch.tensor(rows, device=device), None
            if module.level == "up" and (
                option is options[0] or module.net.can_be_guided
            ):  # without guidance all scales give the same samples
                real_low = module.codes(batch, "low")[index]
            seeds = [self.seed + row for row in rows]
            columns = draw_columns(decoders, conditions.take(index), seeds, option, real_low)
            for place, row in enumerate(rows):
                waves = {"real": batch.wav[row]}
                for column, (level, codes) in columns.items():
                    waves[column] = codec.decode(codes[place : place + 1], level)[0]
                facts = {"guidance": option.guidance_scale, "seed": seeds[place], "step": trainer.global_step}
                audio = {column: wav[0].clamp(-1, 1).cpu() for column, wav in waves.items()}
                label = f"{batch.id[row]}_guidance_{option.guidance_scale:g}"
                samples.append(DashboardRow(label, facts, audio, images[row]))
        return samples, figures, {}

    def _log(
        self, trainer: pl.Trainer, kind: str, samples: list[DashboardRow], figures: dict, usage: dict, step: int
    ) -> None:
        rate = trainer.datamodule.folder.info.sample_rate  # type: ignore[attr-defined]
        samples.sort(key=lambda sample: sample.name)
        folder = self.folder / f"step_{step:08d}"
        note = f"Partner: {self.partner_path}" if self.partner else ""
        if kind != "vqvae" and not self.partner:
            note = missing_column(kind.removesuffix("_prior"))
        page = write_page(folder, f"{kind} at step {step}", samples, rate, note)
        log_samples(trainer.loggers, "samples", samples, rate, step)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step - 1)
        for tag, values in usage.items():
            log_histogram(trainer.loggers, tag, values, step)
        log.info("step %d: samples in %s%s", step, page, "" if self._note_logged or not note else f" ({note})")
        self._note_logged = True


def prior_sample_metrics(net: Any, codes: Tensor, conditions: Conditions) -> dict[str, float]:
    """Top-1 accuracy, bits with and without the image and their difference, bits by position."""
    logits = net(codes, conditions).float()
    bits = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none") / math.log(2)  # [B, T]
    figures = {"samples/accuracy": (logits.argmax(-1) == codes).float().mean().item()}
    figures["samples/bits"] = bits.mean().item()
    if net.can_be_guided:
        figures["samples/bits_null"] = net.bits(codes, conditions.null_like()).item()
        figures["samples/gap"] = figures["samples/bits_null"] - figures["samples/bits"]
    for part, chunk in enumerate(bits.mean(0).chunk(PARTS)):
        figures[f"samples/bits_by_position/{part}_of_{PARTS}"] = chunk.mean().item()
    return figures


def _source_image(source: str) -> Path | None:
    """Source image of an item if it is an image file that still exists."""
    path = Path(source)
    return path if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else None


def _gathered(trainer: pl.Trainer, samples: list[DashboardRow]) -> list[DashboardRow]:
    """Gather the samples of all processes."""
    if trainer.world_size == 1:
        return samples
    everyone: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everyone, samples)
    return [sample for part in everyone for sample in part]
