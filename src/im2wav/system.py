"""What commands know about the system that they run on: its terminal or log file, and its CPU cores."""

import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

log = logging.getLogger(__name__)
INTERVAL = 30.0  # s between lines
CGROUPS = Path("/sys/fs/cgroup")


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


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another operating system, or another version of control groups
        return ""


def cpu_quota() -> float:
    """CPU cores that the control groups of this process may use on average; infinity without a limit."""
    quotas = [math.inf]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS if version_2 else CGROUPS / controllers
        group = root / path.lstrip("/")
        for folder in {root, group, *(parent for parent in group.parents if root in parent.parents)}:
            names = ("cpu.max",) if version_2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period, *_ = [*" ".join(_read(folder / name) for name in names).split(), "", ""]
            if quota.isdecimal() and period.isdecimal() and int(period):  # not `max` or -1
                quotas.append(int(quota) / int(period))
    return min(quotas)


def allowed_cores() -> int:
    """Number of CPU cores that this process may run on (its affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores() -> int:
    """Number of CPU cores that this process may use: its affinity, and the CPU quota of its control groups."""
    return max(1, math.ceil(min(allowed_cores(), cpu_quota())))


def is_busy(cores: int) -> bool:
    """Whether other processes leave less than about half of `cores` idle; False where the system does not say."""
    samples = []
    for _ in range(5):
        runnable = _read(Path("/proc/loadavg")).partition("/")[0].split()[-1:]  # of "0.5 0.4 0.3 RUNNABLE/ALL PID"
        samples += [int(number) - 1 for number in runnable if number.isdecimal()]  # without this process
        time.sleep(0.004)
    idle = (os.cpu_count() or 1) - statistics.median(samples or [0])
    return idle <= cores / 2


def configure_threads() -> None:
    """Set OpenMP's variables for this process and its children, before torch is imported; set ones are kept.

    Under a CPU quota, torch would start a thread for each core of the machine. And threads wait for each other in busy
    loops, which is fastest on an idle machine, and slower by an order of magnitude on one whose cores others use.
    """
    cores = num_cores()
    if cores < allowed_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if is_busy(cores):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
