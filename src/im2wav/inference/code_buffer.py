"""Pictures -> low codes -> up codes -> waves, for many items side by side."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from im2wav.codec import LEVELS
from im2wav.decoding.sampler import SamplingOptions, uniforms
from im2wav.decoding.state import Decoding
from im2wav.inference.block_decoder import decode_wave
from im2wav.inference.request import Clip, Models, Request
from im2wav.inference.sliding_windows import Window, plan_windows
from im2wav.prior import Conditions


@dataclass(frozen=True)
class Generated:
    """One sound."""

    codes: dict[str, Tensor]  # by level: [T]
    wav: dict[str, Tensor]  # by level: [N] in [-1, 1], on the CPU; `up` is the result, `low` the coarse draft


class Composition:
    """The codes of one item while they come into being.

    Attributes:
        samples: length of the sound.
        codes: by level, all positions [T]; those of windows to come are 0.
        plan: by level, the windows that are drawn; `windows`, those of them that are still to come.
        lengths: by level, how many of the codes belong to the sound; the context may reach further.

    Raises:
        ValueError: the given codes and the length do not fit each other.
    """

    def __init__(self, models: Models, request: Request):
        self.models, self.request = models, request
        self.samples = request.samples or models.window
        hops, ratio, context = models.codec.hop_lengths, models.ratio, models.low.context_length
        self.lengths = {level: -(-self.samples // hops[level]) for level in LEVELS}
        total = max(context, self.lengths["low"])
        totals = {"low": total, "up": total * ratio}
        self.codes = {k: torch.zeros(n, dtype=torch.long, device=models.device) for k, n in totals.items()}
        self.uniform = {k: uniforms([request.seed], n, k, models.device)[0] for k, n in totals.items()}
        hop = max(1, int((1 - request.overlap) * context))
        wanted = self._wanted(total)
        self.plan = {
            "low": plan_windows(total, context, hop, wanted),
            "up": plan_windows(total * ratio, context * ratio, hop * ratio, self._fine(wanted)),
        }
        self.windows = {level: list(plan) for level, plan in self.plan.items()}

    def _wanted(self, total: int) -> list[tuple[int, int]]:
        """The stretches of the low level that are to be drawn; given codes are put in their place."""
        given, replace = self.request.given, self.request.replace
        if given is None:
            return [(0, total)]
        count, ratio, hop = len(given["low"]), self.models.ratio, self.models.codec.hop_lengths["low"]
        if count > self.lengths["low"] or (replace is None and count == self.lengths["low"]):
            raise ValueError(
                f"the sound is to last {self.samples} samples, and {count * hop} are given already: ask for more "
                "seconds"
            )
        for level, size in (("low", count), ("up", count * ratio)):
            if len(given[level]) < size:
                raise ValueError(f"{len(given[level])} codes of level {level} are given, expected {size}")
            self.codes[level][:size] = given[level][:size].to(self.codes[level])
        if replace is None:
            return [(count, total)]
        first, end = replace[0] // hop, -(-replace[1] // hop)
        if not 0 <= first < end <= count:
            raise ValueError(
                f"samples {replace[0]} to {replace[1]} are to be replaced of a sound of {count * hop}: expected a "
                "stretch within it"
            )
        return [(first, end), (count, total)]

    def _fine(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The same stretches of the up level, as far as the sound goes."""
        ends = ((a * self.models.ratio, min(b * self.models.ratio, self.lengths["up"])) for a, b in wanted)
        return [(a, b) for a, b in ends if a < b]

    def conditions(self, level: str, window: Window, clip: Clip | None = None) -> Conditions:
        """What the prior is told for a window, or would be of another clip: for a batch of 1, on the CPU."""
        prior, hop, ratio = self.models.decoders[level], self.models.codec.hop_lengths[level], self.models.ratio
        start, length = window.start, prior.context_length
        low = self.codes["low"][start // ratio : (start + length) // ratio].cpu() if level == "up" else None
        return self.request.conditions(clip or self.request.clip, start * hop, length * hop, low)

    def task(self, level: str, window: Window) -> "Task":
        """What the prior is told of a window; the codes before it, and the coarse ones of the up level, are there."""
        negative = self.request.negative if self.models.decoders[level].can_be_guided else None
        return Task(
            self,
            level,
            window,
            self.conditions(level, window),
            None if negative is None else self.conditions(level, window, negative),
            self.uniform[level][None, window.start : window.end],
            self.codes[level][None, window.start : window.first],
        )

    def ready_tasks(self, level: str) -> list["Task"]:
        """All that can be drawn now: the next window, and those later that need no code before them (overlap=0)."""
        first, *later = self.windows[level]
        return [self.task(level, w) for w in [first, *(w for w in later if w.first == w.start)]]

    def put(self, level: str, window: Window, codes: Tensor) -> None:
        """Store the codes [n] of a window."""
        self.windows[level].remove(window)
        self.codes[level][window.first : window.end] = codes[window.first - window.end :]

    def result(self, levels: Sequence[str] = LEVELS) -> Generated:
        """The sound, once all windows of these levels are drawn."""
        codes = {level: self.codes[level][: self.lengths[level]] for level in levels}
        # one by one, never as a batch: sums over a batch are rounded by its size, and the same seed shall give the same
        # sound to the last bit
        reach, codec = self.models.reach, self.models.codec
        wav = {k: decode_wave(codec, c, k, reach[k])[: self.samples] for k, c in codes.items()}
        return Generated({k: c.cpu() for k, c in codes.items()}, wav)


@dataclass(frozen=True)
class Task:
    """One window of one item, as the prior is told of it. B = 1."""

    item: Composition
    level: str
    window: Window
    conditions: Conditions
    negative: Conditions | None
    uniform: Tensor  # [1, n], from the start of the context to the end of the window
    prefix: Tensor  # [1, p], the codes of the context that are known

    @property
    def shape(self) -> tuple[int, ...]:
        """Tasks of equal shape go through the prior side by side."""
        frames = [0 if c is None else c.clip.shape[1] for c in (self.conditions, self.negative)]
        return (*self.uniform.shape, *self.prefix.shape, *frames)


def draw(
    models: Models,
    items: Sequence[Composition],
    level: str,
    options: SamplingOptions,
    batch_size: int = 16,
    on_step: Callable[[int], object] | None = None,
) -> None:
    """Draw all codes of one level; windows of different items share a batch where their shapes agree.

    Args:
        models: on the device where it is done.
        items: of the up level, those whose low level is there.
        level: low or up.
        options: how codes are drawn.
        batch_size: windows side by side.
        on_step: called with the number of codes drawn, after each step.
    """
    while waiting := [item for item in items if item.windows[level]]:
        groups: dict[tuple[int, ...], list[Task]] = defaultdict(list)
        for item in waiting:
            for task in item.ready_tasks(level):
                groups[task.shape].append(task)
        for tasks in groups.values():
            for first in range(0, len(tasks), batch_size):
                draw_tasks(models, tasks[first : first + batch_size], options, on_step)


def draw_tasks(
    models: Models, tasks: Sequence[Task], options: SamplingOptions, on_step: Callable[[int], object] | None = None
) -> None:
    """Draw windows of one shape side by side, and give each item its codes."""
    decoding = start_tasks(models, tasks, options)
    codes = decoding.steps(on_step=on_step and (lambda n: on_step(n * len(tasks))))
    for task, row in zip(tasks, codes, strict=True):
        task.item.put(task.level, task.window, row)
    decoding.release()


def start_tasks(models: Models, tasks: Sequence[Task], options: SamplingOptions) -> Decoding:
    """Begin to draw windows of one shape side by side."""
    negatives = [task.negative for task in tasks if task.negative is not None]
    return models.decoders[tasks[0].level].start(
        Conditions.cat([task.conditions for task in tasks]).to(models.device),
        torch.cat([task.uniform for task in tasks]),
        options,
        torch.cat([task.prefix for task in tasks]),
        Conditions.cat(negatives).to(models.device) if negatives else None,
    )


def count_codes(items: Sequence[Composition], levels: Sequence[str] = LEVELS) -> int:
    """How many codes are still to be drawn, for progress bars."""
    return sum(window.end - window.first for item in items for level in levels for window in item.windows[level])


@torch.inference_mode()
def generate(
    models: Models,
    requests: Sequence[Request],
    options: SamplingOptions,
    batch_size: int = 16,
    on_step: Callable[[int], object] | None = None,
) -> list[Generated]:
    """Make the sounds of some requests.

    Args:
        models: nets that belong together, in eval mode.
        requests: what is to be heard; lengths may differ.
        options: how codes are drawn.
        batch_size: windows that are drawn side by side.
        on_step: called with the number of codes drawn, after each step.

    Raises:
        ValueError: given codes that do not fit the sound's length.
    """
    items = [Composition(models, request) for request in requests]
    for level in ("low", "up"):
        draw(models, items, level, options, batch_size, on_step)
    return [item.result() for item in items]
