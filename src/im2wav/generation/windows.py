"""Codes of any length: windows that slide over the sequence, each begun with the codes that are there already.

Source: Im2Wav (Sheffer & Adi, 2022), sample.py; the scheme is Jukebox's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from im2wav.generation.decode import sample_codes
from im2wav.generation.sampling import SamplingOptions
from im2wav.prior import Conditions, Prior


def window_starts(total: int, length: int, hop: int) -> list[int]:
    """Where windows of `length` begin so that they cover `total` positions: 0, hop, ...; the last one ends with them.

    Raises:
        ValueError: the sequence is shorter than a window, or the hop leaves gaps or does not move.
    """
    if total < length:
        raise ValueError(f"{total} codes are fewer than a window of {length}")
    if not 0 < hop <= length:
        raise ValueError(f"hop={hop}: expected 1 to {length} codes (the window)")
    starts = list(range(0, total - length, hop))
    return [*starts, total - length]


def sample_windows(
    prior: Prior,
    conditions_at: Callable[[int], Conditions],
    uniform: Tensor,
    options: SamplingOptions,
    hop: int,
    on_step: Callable[[int], object] | None = None,
) -> Tensor:
    """Draw codes [B, T] with T at least the prior's context.

    Args:
        prior: in eval mode.
        conditions_at: the conditions of the window that begins at a position.
        uniform: a random number in [0, 1) for each sequence and position, [B, T].
        options: guidance, temperature, filters.
        hop: codes from one window's start to the next one's.
        on_step: called with 1 after each new code.

    Raises:
        ValueError: see `window_starts`.
    """
    codes = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
    done = 0
    for start in window_starts(uniform.shape[1], prior.context_length, hop):
        end = start + prior.context_length
        prefix = codes[:, start:done] if done > start else None
        codes[:, start:end] = sample_codes(
            prior, conditions_at(start), uniform[:, start:end], options, prefix, on_step=on_step
        )
        done = end
    return codes
