"""Signals that end a command: SIGTERM, SIGINT (ctrl-C), and SIGUSR1 and SIGUSR2 of batch systems.

A signal raises `Interrupted` in the main thread; training instead finishes its step (`im2wav.training.signals`). Batch
systems, containers and terminals send signals to all processes of a command, so worker processes ignore them and are
ended by their parent.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

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
