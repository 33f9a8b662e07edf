"""Loggers that need more than a class name."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from im2wav.files import write_atomic

WANDB_ID = "wandb_run_id.txt"  # in the run's folder, so that a run that goes on is one run in W&B too


@contextmanager
def own_run() -> Iterator[None]:
    """End the W&B run with the training that it belongs to: the next one of a sweep has a run of its own."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish(exit_code=int(failed))


def wandb_logger(save_dir: str, **options: Any) -> WandbLogger:
    """W&B without an account: offline unless WANDB_MODE=online is set or a key is known.

    Online without a network, wandb would wait for its time-out at the start of every run.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        try:
            mode = "online" if wandb.api.api_key else "offline"
        except wandb.errors.UsageError:  # how recent versions say that there is no key
            mode = "offline"
    known = Path(save_dir) / WANDB_ID
    if not known.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
        write_atomic(known, secrets.token_hex(4).encode())
    return WandbLogger(
        offline=mode == "offline",
        mode=mode,
        save_dir=save_dir,
        id=known.read_text() if known.is_file() else None,
        resume="allow",
        log_model=False,
        **options,
    )
