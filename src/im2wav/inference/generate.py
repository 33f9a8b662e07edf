"""Generate audio: draw low codes, rank drafts, draw up codes, decode; many requests in one batch."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from im2wav.codec import LEVELS
from im2wav.decoding import DecodeState
from im2wav.inference.code_buffer import CodeBuffer, WindowInputs
from im2wav.inference.outputs import GeneratedAudio
from im2wav.inference.sliding_windows import Window
from im2wav.prior import Conditions

OnStep = Callable[[int], object]


def start_windows(buffer: CodeBuffer, level: str, batch: Sequence[WindowInputs]) -> DecodeState:
    """Start to draw windows of equal shape in one batch; `buffer` gives networks and sampling options."""
    negatives = [inputs.negative for inputs in batch if inputs.negative is not None]
    device = buffer.networks.device
    return buffer.networks.decoders[level].start(
        Conditions.cat([inputs.conditions for inputs in batch]).to(device),
        torch.cat([inputs.uniform for inputs in batch]),
        buffer.request.sampling,
        torch.cat([inputs.prefix for inputs in batch]),
        Conditions.cat(negatives).to(device) if negatives else None,
    )


def draw_windows(level: str, batch: Sequence[tuple[CodeBuffer, Window, WindowInputs]], on_step: OnStep | None) -> None:
    """Draw windows of equal shape in one batch, and store their codes."""
    state = start_windows(batch[0][0], level, [inputs for _, _, inputs in batch])
    codes = state.steps(on_step=on_step and (lambda n: on_step(n * len(batch))))
    for (buffer, window, _), row in zip(batch, codes, strict=True):
        buffer.put(level, window, row)
    state.release()


def draw_level(buffers: Sequence[CodeBuffer], level: str, batch_size: int = 16, on_step: OnStep | None = None) -> None:
    """Draw all codes of one level. Windows share a batch if their shapes and sampling options are equal.

    Args:
        buffers: with drawn low codes, for the up level.
        level: low or up.
        batch_size: windows in a batch.
        on_step: called with the number of codes drawn, after each step.
    """
    while waiting := [buffer for buffer in buffers if buffer.windows[level]]:
        groups = defaultdict(list)
        for buffer in waiting:
            for window in buffer.ready_windows(level):
                inputs = buffer.inputs(level, window)
                groups[inputs.shape, buffer.request.sampling].append((buffer, window, inputs))
        for group in groups.values():
            for first in range(0, len(group), batch_size):
                draw_windows(level, group[first : first + batch_size], on_step)


@torch.inference_mode()
def guidance_gap(buffer: CodeBuffer) -> float:
    """How much the image explains the low codes, in bits per code; the best draft has the largest value.

    The mean of log2 p(code | codes before, image) - log2 p(code | codes before) over the drawn codes.
    """
    total, count = 0.0, 0
    for window in buffer.plan["low"]:
        end = min(window.end, buffer.lengths["low"])
        if window.first >= end:
            continue
        conditions = buffer.conditions("low", window).to(buffer.networks.device)
        codes = buffer.codes["low"][None, window.start : end]
        both = Conditions.cat([conditions, conditions.null_like()])
        logits = buffer.networks.decoders["low"].score(both, codes.repeat(2, 1))
        known = window.first - window.start
        chosen = codes[:, known:, None].repeat(2, 1, 1)
        bits = logits[:, known:].float().log_softmax(-1).gather(-1, chosen) / math.log(2)
        total += (bits[0] - bits[1]).cpu().double().sum().item()  # on the CPU: MPS has no float64
        count += end - window.first
    return total / max(count, 1)


def count_codes(groups: Sequence[Sequence[CodeBuffer]], keep: int | None = None) -> int:
    """Number of codes that `generate` draws, for progress bars."""
    total = 0
    for group in groups:
        for number, buffer in enumerate(group):
            levels = LEVELS if keep is None or number < keep else ("low",)
            total += sum(window.end - window.first for level in levels for window in buffer.plan[level])
    return total


@torch.inference_mode()
def generate(
    groups: Sequence[Sequence[CodeBuffer]],
    keep: int | None = None,
    batch_size: int = 16,
    on_step: OnStep | None = None,
) -> list[list[GeneratedAudio]]:
    """Draw the low codes of all buffers, and refine the `keep` drafts of each group with the largest guidance gap.

    Args:
        groups: buffers of one input with different seeds.
        keep: drafts of each group to refine; None for all. Groups of at most `keep` drafts are not ranked.
        batch_size: windows in a batch.
        on_step: called with the number of codes drawn, after each step.

    Returns:
        The audio of each buffer, in the order given; with the level `low` only if the draft was not refined.

    Raises:
        ValueError: keep < 1, or drafts cannot be ranked because the low prior was trained without guidance.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep}: expected 1 or more")
    ranked = [keep is not None and len(group) > keep for group in groups]
    if any(r and not group[0].networks.low.can_be_guided for r, group in zip(ranked, groups, strict=True)):
        raise ValueError(
            "drafts are ranked by guidance, but this low prior was trained without (condition_dropout=0): use "
            "num_samples instead of num_drafts"
        )
    draw_level([buffer for group in groups for buffer in group], "low", batch_size, on_step)
    gaps = [[guidance_gap(buffer) if r else None for buffer in group] for r, group in zip(ranked, groups, strict=True)]
    ranks = [_ranks(scores) for scores in gaps]
    results = [list(zip(*columns, strict=True)) for columns in zip(groups, ranks, gaps, strict=True)]
    refined = [buffer for group in results for buffer, rank, _ in group if keep is None or rank < keep]
    draw_level(refined, "up", batch_size, on_step)
    return [
        [
            buffer.decode(("up", "low") if keep is None or rank < keep else ("low",), rank, gap)
            for buffer, rank, gap in group
        ]
        for group in results
    ]


def _ranks(gaps: Sequence[float | None]) -> list[int]:
    """Ranks by gap, the largest first; equal ones, and those without a gap, keep their order."""
    order = sorted(range(len(gaps)), key=lambda i: -(gaps[i] or 0.0))
    return [order.index(i) for i in range(len(gaps))]
