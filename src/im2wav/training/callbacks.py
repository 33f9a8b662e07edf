"""Loggers that need more than a class name."""

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(**options: Any) -> WandbLogger:
    """W&B without an account: offline unless WANDB_MODE=online is set or a key is known.

    Online without a network, wandb would wait for its time-out at the start of every run.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        import wandb

        try:
            mode = "online" if wandb.api.api_key else "offline"
        except wandb.errors.UsageError:  # how recent versions say that there is no key
            mode = "offline"
    return WandbLogger(offline=mode == "offline", mode=mode, **options)
