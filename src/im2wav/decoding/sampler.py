"""Guidance, filters and the draw of a code. Logits are [..., K]."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # types of device; codes are drawn in float64


@dataclass(frozen=True)
class SamplingOptions:
    """How codes are drawn.

    Attributes:
        guidance_scale: 1 samples from the conditioned distribution; larger values move away from the unconditioned
            one (3 in Im2Wav); 0 ignores the picture. Used where the prior can be guided.
        negative_scale: how far to move away from what is unwanted, where a negative picture is given; 0 ignores it.
        temperature: logits are divided by it.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the most likely codes that together reach this probability; 0 keeps all.

    Raises:
        ValueError: a value out of range, or top_k and top_p together.
    """

    guidance_scale: float = 3.0
    negative_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature}: expected more than 0 (use top_k=1 for the likeliest code)"
            )
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_k={self.top_k}, top_p={self.top_p}: expected top_k >= 0 and top_p between 0 and 1")
        if self.top_k and self.top_p:
            raise ValueError(f"top_k={self.top_k} and top_p={self.top_p}: use one of them, and 0 for the other")


def guide(logits: Tensor, scale: float, negative_scale: float | None = None) -> Tensor:
    """Mix logits of a doubled batch [2B, ...] (with the picture, then without): [B, ...].

    With a `negative_scale` the batch is threefold, the last part with the unwanted picture, and the mix moves away from
    what that picture adds to none.
    """
    conditioned, unconditioned, *unwanted = logits.chunk(2 if negative_scale is None else 3)
    mixed = scale * conditioned + (1 - scale) * unconditioned
    return mixed if negative_scale is None else mixed - negative_scale * (unwanted[0] - unconditioned)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set the logits of unlikely codes to -inf.

    top_k keeps every logit that is at least the k-th largest, ties included. top_p drops a code when the codes before
    it, in order of likelihood, already hold more than p; the likeliest always stays. Source: Jukebox's filter.
    """
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -torch.inf)
    if top_p:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        dropped = share.cumsum(-1) - share > top_p
        dropped[..., 0] = False
        return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def draw_device(device: torch.device | None) -> torch.device | None:
    """Where codes are drawn for a prior on `device`: there, or on the CPU where the device has no float64."""
    return torch.device("cpu") if device is not None and device.type in WITHOUT_FLOAT64 else device


def draw(logits: Tensor, uniform: Tensor, options: SamplingOptions) -> Tensor:
    """Draw codes [B] from logits [B, K] by inverting the cumulative distribution at uniform numbers [B] in [0, 1)."""
    logits = filter_logits(logits / options.temperature, options.top_k, options.top_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)


def item_seed(seed: int, *names: object) -> int:
    """A seed for one item that depends on the run's seed and on the item's names alone."""
    text = "\x1f".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(seeds: Sequence[int], length: int, stream: str, device: torch.device | None = None) -> Tensor:
    """Random numbers in [0, 1) for each item and position, [B, length], float64.

    All numbers of an item come from a generator of its own, so that its codes depend neither on the batch that it is
    sampled in nor on its place there. `stream` separates the levels. They come on the `draw_device` of `device`.
    """
    rows = [
        torch.rand(length, generator=torch.Generator().manual_seed(item_seed(seed, stream)), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).to(draw_device(device))
