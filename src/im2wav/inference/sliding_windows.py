"""Sliding windows over a sequence of codes, each of which starts with codes that are drawn already.

Source: Im2Wav (Sheffer & Adi, 2022), sample.py; the scheme is Jukebox's.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Draws codes `first` to `end` of a sequence; the context starts at `start`."""

    start: int
    first: int
    end: int


def window_starts(total: int, length: int, hop: int) -> list[int]:
    """Starts of windows of `length` that cover `total` positions: 0, hop, ...; the last one ends at `total`.

    Raises:
        ValueError: the sequence is shorter than a window, or the hop is not 1 to `length`.
    """
    if total < length:
        raise ValueError(f"{total} codes are fewer than a window of {length}")
    if not 0 < hop <= length:
        raise ValueError(f"hop={hop}: expected 1 to {length} codes (the window)")
    starts = list(range(0, total - length, hop))
    return [*starts, total - length]


def plan_windows(total: int, length: int, hop: int, wanted: Sequence[tuple[int, int]]) -> list[Window]:
    """Windows that draw the intervals `wanted` (first, end) of `total` codes, each code once, from left to right.

    They start where they would if all codes were drawn, so that each code has the same context in both cases.

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
