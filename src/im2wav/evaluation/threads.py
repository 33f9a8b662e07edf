"""Run many small tasks in parallel, one thread per task.

Short audio and small matrices do not benefit from intra-op parallelism. Single-threaded operations are also
reproducible: results do not depend on the number of cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
AT_ONCE = 8  # maximum number of tasks, to bound memory on machines with many cores


def map_in_threads(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Yield the result of `work` for each task, in order; exceptions are re-raised.

    Uses `torch.get_num_threads()` threads, at most 8, and buffers few results. Torch operations are single-threaded
    until the iterator is exhausted, so do not nest or interleave calls.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the thread count of MKL is global
    workers = min(threads, AT_ONCE)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
