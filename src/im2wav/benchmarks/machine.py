"""The limits of this machine: how fast it multiplies matrices and reads memory."""

import time
from collections.abc import Callable, Sequence

import torch

from im2wav.benchmarks.row import Row

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def best_time(work: Callable[[], object], device: str = "cpu", repeats: int = 5, warm_up: int = 2) -> float:
    """Seconds of the fastest of `repeats` runs: on a shared machine the others measure the neighbours."""
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
        ValueError: no such dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"precision {dtype!r}: expected one of {tuple(DTYPES)}")
    n = size or (2048 if device == "cpu" else 8192)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, device)


def read_bandwidth(device: str = "cpu", megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes per second at which memory is read: the sum of an array far larger than any cache."""
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    return array.nbytes / best_time(array.sum, device, repeats)


def machine(device: str = "cpu", precisions: Sequence[str] = ("fp32", "bf16")) -> list[Row]:
    """What every other benchmark is compared with."""
    rows = [Row(f"matmul, {p}", matmul_peak(p, device) / 1e9, "GFLOP/s") for p in precisions]
    return [*rows, Row("memory read", read_bandwidth(device) / 1e9, "GB/s")]
