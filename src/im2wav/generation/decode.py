"""Drawing codes from a prior, one position after the other, through its caches."""

from collections.abc import Callable

import torch
from torch import Tensor

from im2wav.generation.sampling import SamplingOptions, draw, guide
from im2wav.prior import Conditions, Prior


@torch.inference_mode()
def sample_codes(
    prior: Prior,
    conditions: Conditions,
    uniform: Tensor,
    options: SamplingOptions,
    prefix: Tensor | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Tensor:
    """Draw codes [B, T] from a prior.

    A prior that can be guided runs once over a doubled batch, with the picture and without; the network is never
    copied.

    Args:
        prior: in eval mode.
        conditions: for B sequences.
        uniform: a random number in [0, 1) for each sequence and position, [B, T]; T is at most the context length.
        options: guidance, temperature, filters.
        prefix: codes [B, P] that are given; they stand at the beginning of the result.
        on_step: called with 1 after each position, for progress bars.

    Raises:
        ValueError: T exceeds the context, or the prefix is longer than T.
    """
    batch, length = uniform.shape
    given = 0 if prefix is None else prefix.shape[1]
    if length > prior.context_length or given > length:
        raise ValueError(f"{length} codes with a prefix of {given}: the context has {prior.context_length} positions")
    guided = prior.can_be_guided and options.guidance_scale != 1
    if guided:
        conditions = Conditions.cat([conditions, conditions.null_like()])
    codes = torch.zeros(batch, length, dtype=torch.long, device=uniform.device)

    def before(start: int, end: int) -> Tensor:
        """The codes that stand before positions start..end, for each row of the (doubled) batch."""
        previous = codes[:, start - 1 : end - 1]
        return previous.repeat(2, 1) if guided else previous

    state = prior.start(conditions)
    if prefix is not None and given:  # prefill: all positions of the prefix at once
        codes[:, :given] = prefix
        prior.advance(None, state)
        if given > 1:
            prior.advance(before(1, given), state)
    for t in range(given, length):
        logits = prior.advance(before(t, t + 1) if t else None, state)[:, -1]
        codes[:, t] = draw(guide(logits, options.guidance_scale) if guided else logits, uniform[:, t], options)
        if on_step:
            on_step(1)
    return codes
