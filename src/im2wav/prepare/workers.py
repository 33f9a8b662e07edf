"""Pool of processes that may die or hang; only the current job of the process is lost.

Media decoders run native code on untrusted files. A torch DataLoader stops when a worker dies, and process pools return
the complete result of a job, which is gigabytes for a long video. Here, a job sends a stream of messages through a
pipe, which blocks when it is full, so that memory stays bounded.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
_READY, _MESSAGE, _END = "ready", "message", "end"  # a worker sends (kind, content)


@dataclass(frozen=True)
class Failed:
    """The last message of a job that failed, or whose worker died or hung."""

    reason: str
    detail: str


def _work(pipe: Connection, task: Callable[[Any], Iterator[Any]], prepare: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    if prepare is not None:
        prepare()
    try:
        pipe.send((_READY, None))
        while True:
            job = pipe.recv()
            try:
                for message in task(job):
                    pipe.send((_MESSAGE, message))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # a decoder may raise anything; only this job fails
                pipe.send((_MESSAGE, Failed("decoder error", f"{type(error).__name__}: {error}")))
            pipe.send((_END, None))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        return


class _Worker:
    """A process, its pipe and its current job."""

    def __init__(self, context: Any, task: Callable, prepare: Callable[[], None] | None):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, task, prepare), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.key: Any = None
        self.last_message = time.monotonic()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers(Generic[Job]):
    """Runs jobs in processes.

    Args:
        task: a job -> its messages, one by one. Must be picklable.
        count: number of processes.
        timeout: seconds without a message after which a worker is considered hung. It is killed and replaced.
        prepare: called once in each process.

    Raises:
        ValueError: fewer than one process, or processes that die before their first job.
    """

    def __init__(
        self,
        task: Callable[[Job], Iterator[Any]],
        count: int,
        timeout: float,
        prepare: Callable[[], None] | None = None,
    ):
        if count < 1:
            raise ValueError(f"num_workers={count}: must be at least 1")
        self.task, self.count, self.timeout, self.prepare = task, count, timeout, prepare
        # A server that has imported everything forks workers and replacements in milliseconds, without the parent's
        # threads and its CUDA context.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            self.context.set_forkserver_preload([task.__class__.__module__, "im2wav.prepare.clip_reader"])

    def run(self, jobs: Iterable[tuple[Any, Job]]) -> Iterator[tuple[Any, Any]]:
        """(key, job) pairs -> (key, message) pairs, in order within a job, interleaved between jobs.

        A lost job gives `Failed` as its last message.
        """
        waiting = iter(jobs)
        workers = [self._new() for _ in range(self.count)]
        exhausted = False
        try:
            while True:
                for worker in workers:
                    if worker.ready and worker.key is None and not exhausted:
                        worker.key, job = next(waiting, (None, None))
                        if worker.key is None:
                            exhausted = True
                        else:
                            worker.last_message = time.monotonic()
                            with suppress(OSError):  # it died while idle: `_listen` notices
                                worker.pipe.send(job)
                if exhausted and all(worker.key is None for worker in workers):
                    return
                yield from self._listen(workers)
        finally:
            for worker in workers:
                worker.kill()

    def _new(self) -> _Worker:
        return _Worker(self.context, self.task, self.prepare)

    def _listen(self, workers: list[_Worker]) -> Iterator[tuple[Any, Any]]:
        """Wait for messages; replace workers that died or hung."""
        busy = [worker for worker in workers if worker.key is not None]
        nearest = min((worker.last_message for worker in busy), default=time.monotonic()) + self.timeout
        arrived = wait([worker.pipe for worker in workers], max(0.0, nearest - time.monotonic()))
        for number, worker in enumerate(workers):
            lost = None
            if worker.pipe in arrived:
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    code = worker.process.exitcode
                    if not worker.ready:
                        raise ValueError(
                            f"a decoding process ended with exit code {code} before its first file; see above"
                        ) from None
                    lost = Failed("decoder died", f"its process ended with exit code {code}")
                else:
                    worker.last_message = time.monotonic()
                    if kind == _MESSAGE:
                        yield worker.key, content
                    elif kind == _END:
                        worker.key = None
                    else:
                        worker.ready = True
            elif worker.key is not None and time.monotonic() - worker.last_message > self.timeout:
                lost = Failed("decoder hung", f"no message for {self.timeout:g} s (timeout)")
            if lost is not None:
                key = worker.key
                worker.kill()
                workers[number] = self._new()
                if key is not None:
                    yield key, lost
