"""Sounds for many inputs: what is still to be made, in batches, made and written."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from im2wav.decoding.batch_size import MOST_SIDE_BY_SIDE, batch_that_fits
from im2wav.decoding.compiled import ROWS_AT_ONCE
from im2wav.decoding.sampler import item_seed
from im2wav.inference.api import Im2Wav, bar
from im2wav.inference.drafts import draft_and_refine
from im2wav.inference.inputs import Input
from im2wav.inference.outputs import Outputs
from im2wav.inference.settings import Settings
from im2wav.media.reading import MediaError

log = logging.getLogger(__name__)


@dataclass
class Unit:
    """Sounds of one input that are made together."""

    item: Input
    numbers: list[int]
    seconds: float


@dataclass
class Work:
    """Makes and writes the sounds of some units.

    Attributes:
        keep: how many of a unit's drafts are refined; all where None.
        batch_size: sounds that are generated side by side; as many as fit into the device's free memory where None.
    """

    model: Im2Wav
    settings: Settings
    outputs: Outputs
    seed: int
    keep: int | None
    batch_size: int | None
    shown: bool = True

    @cached_property
    def side_by_side(self) -> int:
        """`batch_size`, or what fits on the device where the model is at the first use: devices may differ."""
        if self.batch_size is not None:
            return self.batch_size
        models, rows = self.model.models, 2 if self.settings.negative is None else 3
        grouped = models.compile and models.device.type == "cpu"  # more rows than one compiled group take longer
        most = ROWS_AT_ONCE // rows if grouped else MOST_SIDE_BY_SIDE
        size = batch_that_fits([models.low, models.up], models.precision, rows, most)
        log.info("up to %d sounds side by side on %s", size, models.device)
        return size

    def seed_of(self, item: Input, number: int) -> int:
        """The seed of one sound: it depends on the run's seed, the input's name and the number alone."""
        return item_seed(self.seed, item.name, number)

    def __call__(self, units: Sequence[Unit]) -> None:
        """Make the sounds of some units, side by side; an input that cannot be read is passed over with a warning."""
        start, groups, seen = time.monotonic(), [], []
        for unit in units:
            try:
                first = self.model.request(unit.item, self.settings, 0)
            except MediaError as error:
                log.warning("skipped: %s", error)
                continue
            groups.append([replace(first, seed=self.seed_of(unit.item, number)) for number in unit.numbers])
            seen.append(unit)
        if not groups:
            return
        everything = [request for group in groups for request in group]
        keep = self.keep or len(everything)
        refined = sum(min(keep, len(group)) for group in groups)
        name = seen[0].item.name if len(seen) == 1 else f"{len(everything)} sounds"
        with bar(self.model.models, everything, refined, name, None if self.shown else True) as on_step:
            drafts = draft_and_refine(
                self.model.models, groups, keep, self.settings.sampling, self.side_by_side, on_step=on_step
            )
        took = {"seconds": round(time.monotonic() - start, 3), "side_by_side": len(everything)}
        for unit, group, made in zip(seen, groups, drafts, strict=True):
            for number, request, draft in zip(unit.numbers, group, made, strict=True):
                about: dict[str, Any] = {"seed": request.seed, "seconds": unit.seconds}
                if draft.gap is not None:
                    about |= {"rank": draft.rank, "gap": draft.gap}
                about |= {"identity": self.identity(unit, number), "timing": took}
                _, problem = self.outputs.write(unit.item, number, draft.sound.wav, self.model.sample_rate, about)
                if problem:
                    log.warning("%s; its sound is in %s", problem, self.outputs.path("up", unit.item.name, number))

    def in_batches(self, units: Sequence[Unit]) -> None:
        """Make the sounds of any number of units, `side_by_side` at a time, so that an interruption loses one batch."""
        for batch in pack(units, self.side_by_side):
            self(batch)

    def identity(self, unit: Unit, number: int) -> dict[str, Any]:
        """All that the files of a sound depend on."""
        drafts = {} if self.keep is None else {"num_drafts": len(unit.numbers), "keep": self.keep}
        seed, samples = self.seed_of(unit.item, number), round(unit.seconds * self.model.sample_rate)
        return {**self.model.identity(unit.item, seed, samples, self.settings), **drafts}


def plan(work: Work, items: Sequence[Input], numbers: Sequence[int], settings: Settings) -> tuple[list[Unit], int]:
    """The units that are still to be made, and how many inputs cannot be read.

    Raises:
        ValueError: another sound of the same name is there.
    """
    units, bad = [], 0
    for item in items:
        try:
            unit = Unit(item, list(numbers), work.model.length(item, settings.seconds))
            todo = [n for n in numbers if not work.outputs.finished(item, n, partial(work.identity, unit, n))]
        except MediaError as error:
            bad += 1
            log.warning("skipped: %s", error)
            continue
        if todo:
            units.append(unit if work.keep is not None else replace(unit, numbers=todo))
    return sorted(units, key=lambda u: u.seconds), bad  # neighbours in a batch are of one length


def pack(units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Cut units into batches of at most `size` sounds; drafts of one input stay together."""
    batches: list[list[Unit]] = []
    for unit in units:
        if not batches or sum(len(u.numbers) for u in batches[-1]) + len(unit.numbers) > size:
            batches.append([])
        batches[-1].append(unit)
    return batches
