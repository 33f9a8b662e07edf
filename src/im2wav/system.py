"""What commands share with the operating system: signals, progress and CPU cores.

SIGTERM, SIGINT (ctrl-C), and SIGUSR1 and SIGUSR2 of batch systems end a command. They raise `Interrupted` in the main
thread; training instead finishes its step (`im2wav.training.signals`). Batch systems, containers and terminals send
signals to all processes of a command, so worker processes ignore them and are ended by their parent.
"""

import logging
import math
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

log = logging.getLogger(__name__)
SIGNALS = {signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)}
LONGEST_DELAY = 3.0  # s until the main thread must react to a signal; below the 5 s of Lightning's observer
LONGEST_CLEANUP = 30.0  # s until the process ends then, in any case
DEFAULT = "the same command starts again"
PARENT = "IM2WAV_PROCESS"  # environment variable: process that Lightning starts processes of further devices from


def _is_started_by_rank_0() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0" and os.environ.get(PARENT) == str(os.getppid())


class Interrupted(SystemExit):
    """A signal ends the command: exit code 130 for SIGINT, 143 for the others.

    Processes of further devices that the first one started end with 0: after any other code, Lightning sends SIGKILL to
    the first one.

    Attributes:
        number: the signal.
        finished: what is finished and how to resume, in one line.
    """

    def __init__(self, number: int, finished: str = ""):
        super().__init__(0 if _is_started_by_rank_0() else 130 if number == signal.SIGINT else 143)
        self.number, self.finished = number, finished


class _Handler:
    """Raises `Interrupted` at the first signal. A second SIGINT after a second ends the process at once."""

    def __init__(self) -> None:
        self.since: float | None = None  # time of the first signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.since is None:
            self.since = time.monotonic()
            if _is_started_by_rank_0():
                os.kill(os.getppid(), signal.SIGTERM)
            raise Interrupted(number)
        if number == signal.SIGINT and time.monotonic() - self.since > 1:
            os._exit(130)


_handler = _Handler()
before_exit: list[Callable[[], object]] = []  # called before a process that does not end by itself is ended


def stop(number: int, finished: str) -> NoReturn:
    """Raise `Interrupted`; ignore further signals, except a second SIGINT."""
    _handler.since = _handler.since or time.monotonic()
    raise Interrupted(number, finished)


class _Watch:
    """Ends the process if the main thread does not react to a signal, or does not finish its cleanup.

    The main thread cannot react while it waits inside native code, for example for other processes.
    """

    def __enter__(self) -> None:
        self.finished = threading.Event()
        self.signals, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.before = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.before)
        self.finished.set()
        self.writer.close()

    def _watch(self) -> None:
        while received := self.signals.recv(1):
            number = received[0]
            if not isinstance(signal.getsignal(number), _Handler):  # training decides itself
                continue
            if self.finished.wait(LONGEST_DELAY) or (_handler.since and self.finished.wait(LONGEST_CLEANUP)):
                break
            os.write(2, f"\ninterrupted by {signal.Signals(number).name}: {DEFAULT}\n".encode())
            for end in before_exit:
                end()
            os._exit(Interrupted(number).code)  # type: ignore[arg-type]
        self.signals.close()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Interrupted` at a signal, log what it says, and restore the handlers.

    Handlers of a launcher stay, and so do signals that are ignored. Outside the main thread, nothing changes.
    """
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in defaults}
    if not replaced or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_first = not _is_started_by_rank_0()
    if is_first:
        os.environ[PARENT] = str(os.getpid())
    with _Watch():
        for number in replaced:
            signal.signal(number, _handler)
        try:
            yield
        except Interrupted as stopped:
            for number in replaced.keys() - {signal.SIGINT}:
                replaced[number] = signal.SIG_IGN  # the process is about to end, with the exit code of the first signal
            if is_first:
                name = signal.Signals(stopped.number).name
                log.warning("\ninterrupted by %s: %s", name, stopped.finished or DEFAULT)
            raise
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)
            _handler.since = None
            if is_first:
                del os.environ[PARENT]


@contextmanager
def report_progress(describe: Callable[[], str]) -> Iterator[None]:
    """Let `Interrupted` say what is finished and how to resume."""
    try:
        yield
    except Interrupted as stopped:
        stopped.finished = stopped.finished or describe()
        raise


@contextmanager
def hold_signals() -> Iterator[None]:
    """Deliver signals at the end. Processes that are started meanwhile do not receive them at all."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(*_: Any) -> None:
    """Ignore the signals in a worker process, except SIGTERM by the parent (`Process.terminate`)."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        parent = multiprocessing.parent_process()
        threading.Thread(target=_wait_for_parent, args=(parent and parent.pid,), daemon=True).start()
        return
    for number in SIGNALS - {signal.SIGTERM}:  # macOS does not say who sent a signal
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _wait_for_parent(parent: int | None) -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == parent:
            os._exit(0)


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
