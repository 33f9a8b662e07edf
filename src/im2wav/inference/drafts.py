"""Draft and refine: many drafts by the low prior, the best of them made fine by the up prior."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from im2wav.decoding.sampler import SamplingOptions
from im2wav.inference.code_buffer import Composition, Generated, draw
from im2wav.inference.request import Models, Request
from im2wav.prior import Conditions


@dataclass(frozen=True)
class Draft:
    """A draft and what became of it.

    Attributes:
        gap: its guidance gap in bits per code, see `guidance_gap`; None where drafts were not compared.
        rank: 0 for the best of its group.
        sound: with the level `up` where the draft was refined, else with the level `low` alone.
    """

    gap: float | None
    rank: int
    sound: Generated


@torch.inference_mode()
def guidance_gap(models: Models, item: Composition) -> float:
    """How much better the low prior explains an item's coarse codes with the picture than without, in bits per code.

    The mean of log2 p(code | codes before, picture) - log2 p(code | codes before, no picture) over the codes drawn.
    """
    told, drawn = 0.0, 0
    for window in item.plan["low"]:
        end = min(window.end, item.lengths["low"])
        if window.first >= end:
            continue
        conditions = item.conditions("low", window).to(models.device)
        codes = item.codes["low"][None, window.start : end]
        both = Conditions.cat([conditions, conditions.null_like()])
        logits = models.decoders["low"].score(both, codes.repeat(2, 1))
        known = window.first - window.start
        bits = logits[:, known:].float().log_softmax(-1).gather(-1, codes[:, known:, None].repeat(2, 1, 1)) / math.log(
            2
        )
        told += (bits[0] - bits[1]).cpu().double().sum().item()  # on the CPU: MPS has no float64
        drawn += end - window.first
    return told / max(drawn, 1)


@torch.inference_mode()
def draft_and_refine(
    models: Models,
    groups: Sequence[Sequence[Request]],
    keep: int,
    options: SamplingOptions,
    batch_size: int = 16,
    on_step: Callable[[int], object] | None = None,
) -> list[list[Draft]]:
    """Draw the coarse codes of all requests, and of each group refine the `keep` with the largest guidance gap.

    Args:
        models: nets that belong together, in eval mode.
        groups: requests that compete with each other: one picture, different seeds.
        keep: how many of each group are refined; in a group of no more than that nothing is compared.
        options, batch_size, on_step: see `generate`.

    Returns:
        A draft for each request, in order.

    Raises:
        ValueError: the low prior cannot be guided, so that drafts cannot be compared.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: expected 1 or more")
    compared = any(len(group) > keep for group in groups)
    if compared and not models.low.can_be_guided:
        raise ValueError(
            "drafts are ranked by how much the picture explains them, but this low prior never learnt what no picture "
            "looks like (it was trained with condition_dropout=0): use num_samples instead of num_drafts"
        )
    items = [[Composition(models, request) for request in group] for group in groups]
    draw(models, [item for group in items for item in group], "low", options, batch_size, on_step)
    gaps = [[guidance_gap(models, item) if len(group) > keep else None for item in group] for group in items]
    ranks = [_ranks(group) for group in gaps]
    best = [i for group, rank in zip(items, ranks, strict=True) for i, r in zip(group, rank, strict=True) if r < keep]
    draw(models, best, "up", options, batch_size, on_step)
    return [
        [
            Draft(gap, rank, item.result(("up", "low") if rank < keep else ("low",)))
            for item, gap, rank in zip(*columns, strict=True)
        ]
        for columns in zip(items, gaps, ranks, strict=True)
    ]


def _ranks(gaps: Sequence[float | None]) -> list[int]:
    """Place of each in the order of gaps, the largest first; equal ones, and those without, keep their order."""
    order = sorted(range(len(gaps)), key=lambda i: -(gaps[i] or 0.0))
    return [order.index(i) for i in range(len(gaps))]
