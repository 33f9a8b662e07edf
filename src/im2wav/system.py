"""Progress of long work: a bar on a terminal, a line every half minute in a log file."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

log = logging.getLogger(__name__)
INTERVAL = 30.0  # s between lines


class LogLines(text_tqdm):
    """A progress bar that logs a line every `INTERVAL` seconds: done, total, rate, remaining time.

    Work that takes less writes no line. `update(0)` while one item takes long writes a line if it is time.
    """

    FORMAT = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} remaining{postfix}"

    def __init__(self, *args: Any, **options: Any):
        # miniters=0: decide by time only; delay: no line at the start
        timing = {"mininterval": INTERVAL, "miniters": 0, "delay": max(INTERVAL, 1e-9)}
        super().__init__(*args, **options, **timing, leave=False, bar_format=self.FORMAT)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log the line; `msg` is empty where tqdm clears a bar at its end."""
        if msg is None:
            log.info(" ".join(str(self).split()))  # tqdm pads numbers


def track_progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    hidden: bool | None = None,
    initial: int = 0,
) -> Any:
    """Iterate over `iterable`, or call `update(n)`, and show the progress.

    Args:
        iterable: items to iterate over.
        desc: what is done.
        unit: what is counted, in the singular.
        total: number of items; that of `iterable` if None.
        hidden: None for a bar where stderr is a terminal, else lines in the log; False for a bar always; True for
            nothing.
        initial: items that were done before.
    """
    options = {"desc": desc, "unit": unit, "total": total, "initial": initial}
    if hidden is None and not (sys.stderr and sys.stderr.isatty()):
        return LogLines(iterable, **options)
    return tqdm(iterable, **options, disable=bool(hidden))
