"""Learning-rate schedules, as factors on the optimiser's own rate."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup(optimizer: Optimizer, steps: int = 100, decay_steps: int | None = None, floor: float = 0.0) -> LambdaLR:
    """Rise linearly over `steps` updates, then stay, or fall as a half cosine until update `decay_steps`.

    Args:
        optimizer: whose rate is scheduled.
        steps: updates until the full rate; the first one has 1 / steps of it.
        decay_steps: the update at which the rate reaches `floor`; None for a constant rate, as in Im2Wav.
        floor: the last factor.

    Raises:
        ValueError: the decay would end before the warm-up.
    """
    if decay_steps is not None and decay_steps <= steps:
        raise ValueError(f"decay_steps={decay_steps} must exceed the warm-up's steps={steps}")

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        if decay_steps is None:
            return 1.0
        share = min(1.0, (step - steps) / (decay_steps - steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)
