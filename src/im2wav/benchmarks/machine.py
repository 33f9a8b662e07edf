"""The limits of this machine: how fast it multiplies matrices and reads memory."""

from collections.abc import Sequence

import torch

from im2wav.benchmarks.row import Row
from im2wav.clock import best_time, matmul_peak


def read_bandwidth(device: str = "cpu", megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes per second at which memory is read: the sum of an array far larger than any cache."""
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    return array.nbytes / best_time(array.sum, device, repeats)


def measure_machine(device: str = "cpu", precisions: Sequence[str] = ("fp32", "bf16")) -> list[Row]:
    """What every other benchmark is compared with."""
    rows = [Row(f"matmul, {p}", matmul_peak(p, device) / 1e9, "GFLOP/s") for p in precisions]
    return [*rows, Row("memory read", read_bandwidth(device) / 1e9, "GB/s")]
