"""Many small tasks side by side, one core for each.

A sound of seconds and a matrix of a thousand columns are too small to be cut up: the threads of one operation would
mostly wait for each other. So operations take one thread, and tasks run beside each other. What a task gives then
depends neither on the number of cores nor on what else the machine does.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
AT_ONCE = 8  # tasks; on a machine of many cores memory stays bounded


def side_by_side(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """What `work` makes of each task, in the order of the tasks; what it raises is raised here.

    It runs in as many threads as torch has, at most 8. Torch's own operations take one thread until all is done.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number that MKL goes by belongs to the process
    pool = ThreadPoolExecutor(min(threads, AT_ONCE), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, tasks)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
