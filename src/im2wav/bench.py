"""`python -m im2wav.bench measure=machine|...`: benchmarks, beside limits that are measured in the same run."""

import dataclasses
import json
import logging
import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from im2wav.cli import command, instantiate, run

log = logging.getLogger(__name__)


def bench(cfg: DictConfig) -> list[Any]:
    """Run a benchmark, print its table and, if `out` is set, write it as JSON."""
    import torch

    from im2wav.benchmarks.machine import format_rows
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
    rows = instantiate(cfg.measure)
    log.info("%s", format_rows(rows))
    if cfg.out:
        facts = {"device": device, "torch": torch.__version__, "measure": OmegaConf.to_container(cfg.measure)}
        results = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]
        write_atomic(Path(cfg.out), (json.dumps({**facts, "rows": results}, indent=2) + "\n").encode())
    return rows


@command("bench")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(bench, cfg)


if __name__ == "__main__":
    main()
