"""`python -m im2wav.bench measure=machine|...`: benchmarks, as ratios to limits that are measured in the same run."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from im2wav.cli import command, instantiate, run

if TYPE_CHECKING:
    from im2wav.benchmarks import Row

log = logging.getLogger(__name__)


def format_rows(rows: list[Row]) -> str:
    """Format rows as aligned text."""
    cells = [("benchmark", "value", "limit", "ratio", "target", "")]
    for row in rows:
        mark = {True: "met", False: "MISSED", None: ""}[row.holds]
        bar = "" if row.bar is None else f"{'>=' if row.at_least else '<='} {row.bar:g} {mark}"
        limit = "" if row.limit is None else f"{row.limit:.4g} {row.unit} ({row.limit_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        cells.append((row.name, f"{row.value:.4g} {row.unit}", limit, ratio, bar, row.note))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n".join(lines)


def bench(cfg: DictConfig) -> list[Row]:
    """Run a benchmark, print its table and, if `out` is set, write it as JSON."""
    import torch

    from im2wav.decoding.linear import pick_device
    from im2wav.files import write_atomic

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
        results = [{**dataclasses.asdict(row), "ratio": row.ratio, "holds": row.holds} for row in rows]
        write_atomic(Path(cfg.out), (json.dumps({**facts, "rows": results}, indent=2) + "\n").encode())
    return rows


@command("bench")
def main(cfg: DictConfig) -> None:
    """Run the command; exit code 1 if a target is missed."""
    if any(row.holds is False for row in run(bench, cfg)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
