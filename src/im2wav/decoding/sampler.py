"""Guidance, filters, and drawing codes from logits [..., K]."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # device types; codes are drawn in float64


@dataclass(frozen=True)
class SamplingOptions:
    """How codes are drawn.

    Attributes:
        guidance_scale: 1 samples from the conditional distribution; larger values move away from the unconditional
            one (3 in Im2Wav); 0 ignores the image. Has no effect on priors without guidance.
        negative_scale: scale of the guidance away from a negative input, if any; 0 ignores it.
        temperature: logits are divided by it.
        up_temperature: the same for the up prior; None: `temperature`.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the most likely codes that together reach this probability; 0 keeps all.
        up_condition: image embedding of the up prior in audio longer than a window: the mean over the frames of the
            `window`, as in training; or of the whole `video`, in every window, as in Im2Wav.
        passes: parallel passes for each codebook of the up level, in models that have several.
        overlap: fraction of a window that repeats the one before, in audio longer than a window; < 1. 0: windows are
            drawn independently, for priors that were trained on the beginnings of recordings only.

    Raises:
        ValueError: a value out of range, or top_k and top_p together.
    """

    guidance_scale: float = 3.0
    negative_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    up_condition: str = "window"
    passes: int = 2
    up_temperature: float | None = None
    overlap: float = 0.5

    def __post_init__(self):
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: expected a fraction >= 0 and < 1")
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: expected 1 or more")
        if self.up_condition not in ("window", "video"):
            raise ValueError(f"up_condition={self.up_condition}: expected window or video")
        for name in ("temperature", "up_temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: expected more than 0 (use top_k=1 for the likeliest code)")
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_k={self.top_k}, top_p={self.top_p}: expected top_k >= 0 and top_p between 0 and 1")
        if self.top_k and self.top_p:
            raise ValueError(f"top_k={self.top_k} and top_p={self.top_p}: use one of them, and 0 for the other")

    def of_level(self, level: str) -> "SamplingOptions":
        """The options for one level, low or up, at its temperature."""
        if level == "low" or self.up_temperature is None:
            return self
        return replace(self, temperature=self.up_temperature)

    def updated(self, values: Mapping[str, Any]) -> "SamplingOptions":
        """The same with other values, of which None keep what is here.

        Raises:
            ValueError: an unknown name, or a value out of range.
        """
        names = {f.name for f in fields(self)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"sampling options {', '.join(unknown)}: expected some of {', '.join(sorted(names))}")
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def given_sampling(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the config group `sampler` that are set; null leaves a value to the model."""
    return {name: value for name, value in sampler.items() if value is not None and name != "_target_"}


def guide(logits: Tensor, scale: float, negative_scale: float | None = None) -> Tensor:
    """Classifier-free guidance: conditional and unconditional logits [2B, ...] -> [B, ...].

    With a `negative_scale`, logits of the negative input follow [3B, ...], and the result moves away from their
    difference to the unconditional ones.
    """
    conditional, unconditional, *negative = logits.chunk(2 if negative_scale is None else 3)
    mixed = scale * conditional + (1 - scale) * unconditional
    return mixed if negative_scale is None else mixed - negative_scale * (negative[0] - unconditional)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set the logits of unlikely codes to -inf.

    top_k keeps every logit that is at least the k-th largest, ties included. top_p drops a code if the more
    likely codes together exceed p; the likeliest is always kept. Source: Jukebox's filter.
    """
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -torch.inf)
    if top_p:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        dropped = probability.cumsum(-1) - probability > top_p
        dropped[..., 0] = False
        return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def draw_device(device: torch.device | None) -> torch.device | None:
    """Device to draw codes on for a prior on `device`: the same, or the CPU if it has no float64."""
    return torch.device("cpu") if device is not None and device.type in WITHOUT_FLOAT64 else device


def draw(logits: Tensor, uniform: Tensor, options: SamplingOptions) -> Tensor:
    """Draw codes [B] from logits [B, K] by inverting the cumulative distribution at uniform numbers [B] in [0, 1)."""
    logits = filter_logits(logits / options.temperature, options.top_k, options.top_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)


def draw_guided(logits: Tensor, uniform: Tensor, options: SamplingOptions, guided: bool, negative: bool) -> Tensor:
    """Draw codes [B] from the logits [R, K] of conditional, with guidance unconditional, and negative rows.

    Args:
        logits: R is B, 2 B with guidance, 3 B with a negative input.
        uniform: random numbers [B] in [0, 1), on the device that draws.
        options: guidance, temperature, filters.
        guided, negative: which rows there are.
    """
    if guided:
        logits = guide(logits, options.guidance_scale, options.negative_scale if negative else None)
    return draw(logits.to(uniform.device), uniform, options)


def item_seed(seed: int, *names: object) -> int:
    """A seed for one item that depends on the run's seed and the item's names only."""
    text = "\x1f".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(
    seeds: Sequence[int], length: int, stream: str, device: torch.device | None = None, shape: tuple[int, ...] = ()
) -> Tensor:
    """Random numbers in [0, 1) for each item, position and code of a position, [B, length, *shape], float64.

    Each item has its own generator, so that its codes do not depend on the rest of the batch. `stream` separates the
    levels. The result is on the `draw_device` of `device`.
    """
    generators = [torch.Generator().manual_seed(item_seed(seed, stream)) for seed in seeds]
    rows = [torch.rand(length, *shape, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(rows).to(draw_device(device))
