"""Learning-rate schedules, as factors on the optimiser's own rate."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SHAPES = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share: 1 - share,
}


def warmup(
    optimizer: Optimizer,
    steps: int = 100,
    decay_steps: int | None = None,
    floor: float = 0.0,
    shape: str = "cosine",
    hold: float = 0.0,
) -> LambdaLR:
    """Rise linearly over `steps` updates, then stay, or fall to `floor` until update `decay_steps`.

    Args:
        optimizer: whose rate is scheduled.
        steps: updates until the full rate; the first one has 1 / steps of it.
        decay_steps: the update at which the rate reaches `floor`; None for a constant rate, as in Im2Wav.
        floor: the last factor.
        shape: of the fall: `cosine` (half a period) or `linear`.
        hold: the share of the updates after the warm-up that keep the full rate before the fall begins. With 0.8 and a
            linear fall this is the warm-up, stable, decay schedule (WSD; Hu et al., 2024).

    Raises:
        ValueError: the decay would end before the warm-up, no such shape, or no such share.
    """
    if decay_steps is not None and decay_steps <= steps:
        raise ValueError(
            f"model.scheduler.decay_steps={decay_steps}: expected more than the warm-up's model.scheduler.steps={steps}"
            "; raise it (it is trainer.max_steps where nothing else is said), or shorten the warm-up"
        )
    if shape not in SHAPES:
        raise ValueError(f"model.scheduler.shape={shape!r}: expected one of {tuple(SHAPES)}")
    if not 0 <= hold < 1:
        raise ValueError(f"model.scheduler.hold={hold}: expected a share from 0 up to, not including, 1")

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        if decay_steps is None:
            return 1.0
        share = min(1.0, (step - steps) / (decay_steps - steps))
        return floor + (1 - floor) * SHAPES[shape](max(0.0, (share - hold) / (1 - hold)))

    return LambdaLR(optimizer, factor)
