"""Many small tasks side by side, one core for each.

A sound of seconds and a matrix of a thousand columns are too small to be cut up: the threads of one operation would
mostly wait for each other. So operations take one thread, and tasks run beside each other. What a task gives then
depends neither on the number of cores nor on what else the machine does.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
AT_ONCE = 8  # tasks; on a machine of many cores memory stays bounded


def map_in_threads(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """What `work` makes of each task, in the order of the tasks; what it raises is raised here.

    It runs in as many threads as torch has, at most 8, and results that nobody has taken yet stay few. Torch's own
    operations take one thread until all is done: one such loop must end before another begins.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number that MKL goes by belongs to the process
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
