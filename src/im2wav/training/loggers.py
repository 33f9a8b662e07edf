"""W&B logger and its run lifetime."""

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

WANDB_ID = "wandb_run_id.txt"  # in the folder of the run, so that a resumed run continues the same W&B run


@contextmanager
def finish_wandb_run() -> Iterator[None]:
    """Finish the W&B run at the end of training, so that the next job of a sweep starts a new one."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish(exit_code=int(failed))


def wandb_logger(save_dir: str, **options: Any) -> WandbLogger:
    """Build a W&B logger: offline unless WANDB_MODE=online or an API key is set.

    Online mode without a network delays the start of every run until wandb times out.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        try:
            mode = "online" if wandb.api.api_key else "offline"
        except wandb.errors.UsageError:  # raised by recent versions if there is no key
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
