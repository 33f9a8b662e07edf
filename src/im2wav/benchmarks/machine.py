"""Limits of this machine: matmul throughput and memory bandwidth."""

from collections.abc import Sequence

import torch

from im2wav.benchmarks.row import Row
from im2wav.training.timing import best_time, matmul_peak


def read_bandwidth(device: str = "cpu", megabytes: int = 512, repeats: int = 5) -> float:
    """Memory read bandwidth in bytes per second: sum of an array larger than all caches."""
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    return array.nbytes / best_time(array.sum, device, repeats)


def measure_machine(device: str = "cpu", precisions: Sequence[str] = ("fp32", "bf16")) -> list[Row]:
    """Benchmark matmul throughput and memory bandwidth."""
    rows = [Row(f"matmul, {p}", matmul_peak(p, device) / 1e9, "GFLOP/s") for p in precisions]
    return [*rows, Row("memory read", read_bandwidth(device) / 1e9, "GB/s")]
