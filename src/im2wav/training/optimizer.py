"""Parameter groups for weight decay, and the learning-rate schedule."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# embeddings: decay would pull rarely used rows to zero
TABLES = ("position_embedding", "null_start", "null_frame")
SHAPES = {
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda fraction: 1 - fraction,
}


def parameter_groups(module: nn.Module, decay_everything: bool = False) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: weight decay for matrices and kernels, none for norms, biases and embeddings.

    Frozen parameters are in none.

    `decay_everything` gives one group with all parameters, like the official code.
    """
    if decay_everything:
        return [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}]
    decayed: dict[nn.Parameter, None] = {}  # ordered sets
    others: dict[nn.Parameter, None] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim < 2 or isinstance(part, nn.Embedding) or name in TABLES
            if parameter not in decayed and parameter not in others:
                (others if plain else decayed)[parameter] = None
    groups: list[dict[str, Any]] = [{"params": list(decayed)}, {"params": list(others), "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def use_settings(optimizer: Optimizer, schedule: Any, new_optimizer: Optimizer, new_schedule: Any) -> None:
    """Give a resumed optimizer and its schedule the settings of new ones; moments and step count stay.

    A checkpoint holds the settings that it was trained with, which PyTorch restores together with the state. The rates
    of a schedule that is no `LambdaLR` are kept.
    """
    kept = {"params"} if schedule is None or isinstance(schedule, LambdaLR) else {"params", "lr", "initial_lr"}
    for group, new in zip(optimizer.param_groups, new_optimizer.param_groups, strict=True):
        group.update({name: value for name, value in new.items() if name not in kept})
    if isinstance(schedule, LambdaLR):
        schedule.base_lrs = list(new_schedule.base_lrs)
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings of optimizer and schedule that differ between two model configurations, as `name=new (was old)`."""
    parts = ("optimizer", "scheduler")
    old, new = ({f"{p}.{k}": v for p in parts for k, v in (config.get(p) or {}).items()} for config in (before, now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"model.{name}={new.get(name)} (was {old.get(name)})" for name in names]


def warmup(
    optimizer: Optimizer,
    steps: int = 100,
    decay_steps: int | None = None,
    min_factor: float = 0.0,
    shape: str = "cosine",
    hold: float = 0.0,
) -> LambdaLR:
    """Linear warm-up over `steps`, then constant, or decay to `min_factor` until step `decay_steps`.

    Args:
        optimizer: the optimizer.
        steps: number of warm-up steps; the first step has the factor 1 / steps.
        decay_steps: step at which the factor reaches `min_factor`; None: constant learning rate, as in Im2Wav.
        min_factor: final factor.
        shape: shape of the decay: `cosine` (half a period) or `linear`.
        hold: fraction of the steps after the warm-up before the decay starts. 0.8 with a linear decay is the warmup-
            stable-decay schedule (WSD; Hu et al., 2024).

    Raises:
        ValueError: the decay ends before the warm-up, unknown shape, or `hold` out of range.
    """
    if decay_steps is not None and decay_steps <= steps:
        raise ValueError(
            f"model.scheduler.decay_steps={decay_steps}: must be larger than model.scheduler.steps={steps}; "
            "increase it (default: trainer.max_steps), or shorten the warm-up"
        )
    if shape not in SHAPES:
        raise ValueError(f"model.scheduler.shape={shape!r}: expected one of {tuple(SHAPES)}")
    if not 0 <= hold < 1:
        raise ValueError(f"model.scheduler.hold={hold}: must be >= 0 and < 1")

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        if decay_steps is None:
            return 1.0
        fraction = min(1.0, (step - steps) / (decay_steps - steps))
        return min_factor + (1 - min_factor) * SHAPES[shape](max(0.0, (fraction - hold) / (1 - hold)))

    return LambdaLR(optimizer, factor)
