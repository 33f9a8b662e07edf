"""Benchmarks: running one, rows of its table; the limits of this machine: matmul throughput, memory bandwidth."""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from im2wav.decoding.linear import pick_device
from im2wav.files import json_bytes, write_atomic
from im2wav.training.monitor import best_time, matmul_peak

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A measured value, and its limit: a value of the machine or of a baseline in the same run."""

    name: str
    value: float
    unit: str  # of value and limit
    limit: float | None = None
    limit_name: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """value / limit."""
        return None if not self.limit else self.value / self.limit


def format_rows(rows: Sequence[Row]) -> str:
    """Format rows as aligned text."""
    cells = [("benchmark", "value", "limit", "ratio", "")]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:.4g} {row.unit} ({row.limit_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        cells.append((row.name, f"{row.value:.4g} {row.unit}", limit, ratio, row.note))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n".join(lines)


def read_bandwidth(device: str = "cpu", megabytes: int = 512, repeats: int = 5) -> float:
    """Memory read bandwidth in bytes per second: sum of an array larger than all caches."""
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    return array.nbytes / best_time(array.sum, device, repeats)


def measure_machine(device: str = "cpu", precisions: Sequence[str] = ("fp32", "bf16")) -> list[Row]:
    """Benchmark matmul throughput and memory bandwidth."""
    rows = [Row(f"matmul, {p}", matmul_peak(p, device) / 1e9, "GFLOP/s") for p in precisions]
    return [*rows, Row("memory read", read_bandwidth(device) / 1e9, "GB/s")]


def run_benchmark(cfg: DictConfig, instantiate: Callable[..., Any]) -> list[Row]:
    """Run the benchmark of a config of `im2wav.bench`, print its table and, if `out` is set, write it as JSON."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    cfg.device = pick_device(cfg.device, mps=False)
    if cfg.device.startswith("cuda"):
        device = torch.cuda.get_device_name(cfg.device)
    else:
        device = f"{torch.get_num_threads()} CPU threads"
    log.info("%s; torch %s, Python %s", device, torch.__version__, platform.python_version())
    rows: list[Row] = instantiate(cfg.measure)
    log.info("%s", format_rows(rows))
    if cfg.out:
        facts = {"device": device, "torch": torch.__version__, "measure": OmegaConf.to_container(cfg.measure)}
        results = [{**asdict(row), "ratio": row.ratio} for row in rows]
        write_atomic(Path(cfg.out), json_bytes({**facts, "rows": results}))
    return rows
