"""Durations of work, and the speed of matrix products."""

import time
from collections.abc import Callable

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronise(device: str) -> None:
    """Wait for all work on the device, such as cuda:1."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def best_time(work: Callable[[], object], device: str = "cpu", repeats: int = 5, warm_up: int = 2) -> float:
    """Seconds of the fastest of `repeats` runs: on a shared machine the others measure other processes."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(dtype: str = "fp32", device: str = "cpu", size: int | None = None) -> float:
    """Floating-point operations per second of a large square matrix product.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"precision {dtype!r}: expected one of {tuple(DTYPES)}")
    n = size or (2048 if device == "cpu" else 8192)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, device)
