"""Dashboard callback: generate audio for fixed items during training, with the EMA weights."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from im2wav.adapter import plain_copy
from im2wav.checkpoint import Loaded, check_same_origin, find_net, load
from im2wav.codec import LEVELS
from im2wav.codec.codec import exact_fp32
from im2wav.data.windows import Batch, Key, collate
from im2wav.decoding import Decoder, ParallelDecoder, make_decoder, sample_codes
from im2wav.decoding.sampler import SamplingOptions, uniforms
from im2wav.files import IMAGE_SUFFIXES
from im2wav.prior import Conditions
from im2wav.system import track_progress
from im2wav.training.checkpoints import is_first_process
from im2wav.training.ema import EMA
from im2wav.training.loggers import DashboardRow, log_histogram, log_samples, write_page
from im2wav.training.module import eager_eval_mode

log = logging.getLogger(__name__)

PARTS = 8  # number of parts of the window, for bits by position
OPTION = "callbacks.dashboard.partner"
OTHER = {"low_prior": "up_prior", "up_prior": "low_prior"}
# why the dashboard of a prior without a partner has no column of the other level
NO_PARTNER = {
    "low_prior": f"No column up: set {OPTION}=FOLDER to a trained up_prior, which refines these low codes.",
    "up_prior": f"No column low: the low codes are encoded from the real audio. Set {OPTION}=FOLDER to a trained "
    "low_prior, which generates them.",
}


class Dashboard(pl.Callback):
    """Generate samples for fixed items with fixed seeds every `every_n_steps`.

    For a codec: original and reconstructed audio, codebook usage. For a prior: samples at several guidance scales,
    accuracy, bits with and without the image, bits by position. With a partner, a trained prior of the other level, the
    samples have both levels: the up prior refines the samples of the low prior. The work is distributed over all
    processes. The random number generators of the training are not used. Results go to the loggers and to
    `media/step_N/index.html` in the folder of the run.

    Args:
        folder: folder of the run.
        every_n_steps: number of optimizer steps between samples; None: no samples.
        items: number of validation items (training items if there is no validation set).
        guidance: guidance scales; without guidance, only one is used.
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
            self.partner = load_partner(self.partner_path, module, datamodule.tokenizer, datamodule.identity())

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember the step that the run resumes from, to generate no samples for it again."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Generate samples every `every_n_steps` optimizer steps."""
        step, device = trainer.global_step, pl_module.device
        if not self.every_n_steps or step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        if isinstance(trainer.strategy, ModelParallelStrategy):
            if step == self.every_n_steps and trainer.is_global_zero:
                log.warning(
                    "the dashboard does not support sharded weights: run `im2wav sample` on a checkpoint instead"
                )
            return
        averages = [c.averaged for c in trainer.callbacks if isinstance(c, EMA)]  # type: ignore[attr-defined]
        module = averages[0] if averages else pl_module
        batch, images = self._batch(trainer, device)
        with (
            eager_eval_mode(module.net),
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            exact_fp32(device),  # like `im2wav.sample precision=fp32`
        ):
            sample = self._codec if module.kind == "vqvae" else self._prior
            samples, figures, usage = sample(trainer, module, batch, images)
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(everyone, samples)
            samples = [sample for part in everyone for sample in part]
        if trainer.is_global_zero:
            self._log(trainer, module.kind, samples, figures, usage, step)

    def _batch(self, trainer: pl.Trainer, device: torch.device) -> tuple[Batch, list[Path | None]]:
        """Return the fixed items, and the paths of their images; None if there is no image file."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        windows = data.windows["valid" if len(data.windows["valid"]) else "train"]
        rows = list(range(0, len(windows), max(1, len(windows) // self.items)))[: self.items]
        place = 0.0 if data.crop == "start" else 0.5
        batch = move_data_to_device(collate([windows[Key(row, place)] for row in rows]), device)
        sources = [Path(windows.locate(row, place)[0].source) for row in rows]
        images = [path if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else None for path in sources]
        return data.on_after_batch_transfer(batch, 0), images

    def _codec(
        self, trainer: pl.Trainer, module: Any, batch: Batch, images: list[Path | None]
    ) -> tuple[list[DashboardRow], dict, dict]:
        net, figures, usage, samples = module.net, {}, {}, []
        waves = {level: net.decode(net.encode(batch.wav), level) for level in LEVELS}
        for level, book in net.named_codebooks().items():
            probabilities = book.code_usage / book.code_usage.sum()
            figures[f"codebook/perplexity/{level}"] = torch.special.entr(probabilities).sum().exp().item()
            figures[f"codebook/dead/{level}"] = (book.code_usage < book.restart_threshold).sum().item()
            usage[f"codebook/usage/{level}"] = book.code_usage.cpu()
        for i, name in enumerate(batch.id if trainer.is_global_zero else ()):
            audio = {level: wav[i, 0].clamp(-1, 1).cpu() for level, wav in waves.items()}
            audio = {"real": batch.wav[i, 0].cpu()} | audio
            samples.append(DashboardRow(name, {"step": trainer.global_step}, audio, images[i]))
        return samples, figures, usage

    def _prior(
        self, trainer: pl.Trainer, module: Any, batch: Batch, images: list[Path | None]
    ) -> tuple[list[DashboardRow], dict, dict]:
        codec = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        conditions, device = module.conditions(batch), batch.wav.device
        figures = _prior_metrics(module.net, module.codes(batch, module.level), conditions)
        nets: dict[str, Any] = {module.level: plain_copy(module.net, module.adapter) if module.adapter else module.net}
        if self.partner is not None:  # on the CPU, the memory-mapped weights are used without a copy
            net: Any = self.partner.net if device.type == "cpu" else deepcopy(self.partner.net).to(device)
            nets["low" if module.level == "up" else "up"] = net
        decoders = {level: make_decoder(net) for level, net in nets.items()}
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
            columns = _draw_columns(decoders, conditions.take(index), seeds, option, real_low)
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
        note = f"Partner: {self.partner_path}" if self.partner else NO_PARTNER.get(kind, "")
        page = write_page(self.folder / f"step_{step:08d}", f"{kind} at step {step}", samples, rate, note)
        log_samples(trainer.loggers, "samples", samples, rate, step)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step - 1)
        for tag, values in usage.items():
            log_histogram(trainer.loggers, tag, values, step)
        log.info("step %d: samples in %s%s", step, page, "" if self._note_logged or not note else f" ({note})")
        self._note_logged = True


def load_partner(path: str, module: Any, codec: Any, identity: Mapping[str, Any]) -> Loaded:
    """Load the partner of a prior: a trained prior of the other level. Its weights are memory-mapped.

    Args:
        path: a model folder, a folder of runs, the folder of one run, or a .safetensors or .ckpt file.
        module: prior in training.
        codec: codec of the training run.
        identity: identity of the training data.

    Raises:
        ValueError: the module in training is not a prior, the file is missing, or the partner has the wrong level,
            other codes, other image embeddings or another window.
    """
    try:
        if module.kind not in OTHER:
            raise ValueError(f"a {module.kind} has no partner: set it to null; only low_prior and up_prior have one")
        own, found = Loaded(module.net, module.kind, {}, identity, module.codec_sha256), Path(path)
        if found.is_dir():
            last = found / "last.ckpt"  # folder of one run
            found = last if last.is_file() else find_net(found, OTHER[module.kind])
        loaded = load(found, OTHER[module.kind])
        sizes: Any = [net.codebook_size for net in (loaded.net, module.net)]
        if sizes[0] != sizes[1]:  # the only check for files without a codec hash
            raise ValueError(f"its codebook has {sizes[0]} codes, but the {module.kind} in training has {sizes[1]}")
        pair = {own.kind: own, loaded.kind: loaded}
        check_same_origin(Loaded(codec, "vqvae", {}), pair["low_prior"], pair["up_prior"])
    except ValueError as error:
        raise ValueError(f"{OPTION}={path}: {error}") from error
    return loaded


def _draw_columns(
    decoders: Mapping[str, Decoder | ParallelDecoder],
    conditions: Conditions,
    seeds: Sequence[int],
    options: SamplingOptions,
    real_low: Tensor | None,
) -> dict[str, tuple[str, Tensor]]:
    """Sample codes like `generate`, with one seed per item. Returns column -> (level, codes [B, T]).

    Column `up` refines the codes of column `low`, or without a low prior the codes `real_low` [B, n] of the real audio.
    """

    def draw(level: str, codes_low: Tensor | None) -> Tensor:
        decoder, level_conditions = decoders[level], replace(conditions, codes_low=codes_low)
        uniform = uniforms(seeds, decoder.context_length, level, conditions.clip.device, decoder.code_shape)
        hidden = None if is_first_process() else True
        with track_progress(desc=f"samples, {level}", unit="code", total=uniform.shape[1], hidden=hidden) as bar:
            return sample_codes(decoder, level_conditions, uniform, options, on_step=bar.update)

    columns = {"low": ("low", draw("low", None))} if "low" in decoders else {}
    if "up" in decoders and "low" in columns:
        columns["up"] = ("up", draw("up", columns["low"][1]))
    if "up" in decoders and real_low is not None:
        columns["up (real codes)" if "up" in columns else "up"] = ("up", draw("up", real_low))
        columns["low (real codes)"] = ("low", real_low)
    return columns


def _prior_metrics(net: Any, codes: Tensor, conditions: Conditions) -> dict[str, float]:
    """Return top-1 accuracy, bits per code with and without the image, their difference, and bits by position."""
    logits, targets = net(codes, conditions), net.targets(codes)
    bits = net.code_bits(logits, codes)  # [B, T, ...]
    figures = {"samples/accuracy": (logits.argmax(-1) == targets).float().mean().item()}
    figures["samples/bits"] = bits.mean().item()
    if net.can_be_guided:
        figures["samples/bits_null"] = net.bits(codes, conditions.null_like()).item()
        figures["samples/gap"] = figures["samples/bits_null"] - figures["samples/bits"]
    for part, chunk in enumerate(bits.mean(0).chunk(PARTS)):
        figures[f"samples/bits_by_position/{part}_of_{PARTS}"] = chunk.mean().item()
    return figures
