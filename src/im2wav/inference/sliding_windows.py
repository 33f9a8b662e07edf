"""Codes of any length: windows that slide over the sequence, each begun with the codes that are there already.

Source: Im2Wav (Sheffer & Adi, 2022), sample.py; the scheme is Jukebox's.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Codes `first` to `end` of a sequence are drawn; the context begins at `start`, and what lies before is known."""

    start: int
    first: int
    end: int


def window_starts(total: int, length: int, hop: int) -> list[int]:
    """Where windows of `length` begin so that they cover `total` positions: 0, hop, ...; the last one ends with them.

    Raises:
        ValueError: the sequence is shorter than a window, or the hop leaves gaps or does not move.
    """
    if total < length:
        raise ValueError(f"{total} codes are fewer than a window of {length}")
    if not 0 < hop <= length:
        raise ValueError(f"hop={hop}: expected 1 to {length} codes (the window)")
    starts = list(range(0, total - length, hop))
    return [*starts, total - length]


def plan_windows(total: int, length: int, hop: int, wanted: Sequence[tuple[int, int]]) -> list[Window]:
    """The windows that draw the `wanted` stretches (first, end) of `total` codes, each code once, from left to right.

    The windows lie where they would if everything were drawn, so that a code sees the same context in either case.

    Raises:
        ValueError: see `window_starts`.
    """
    plan, done = [], 0
    for start in window_starts(total, length, hop):
        for a, b in sorted(wanted):
            first, end = max(a, done), min(b, start + length)
            if first < end:
                plan.append(Window(start, first, end))
        done = start + length
    return plan
