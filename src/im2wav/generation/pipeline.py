"""Image embeddings -> low codes -> up codes -> waves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from im2wav.codec import LEVELS, AudioCodec
from im2wav.generation.decode import sample_codes
from im2wav.generation.sampling import SamplingOptions, uniforms
from im2wav.prior import Conditions, Prior, Timing


@dataclass(frozen=True)
class Generated:
    """One window of sound for each of B items."""

    codes: dict[str, Tensor]  # by level: [B, T]
    wav: dict[str, Tensor]  # by level: [B, 1, N] in [-1, 1]; `up` is the result, `low` the coarse draft


# what the low prior is told of the recording's length where nothing else is known: that of a VGGSound clip, in samples
DEFAULT_TOTAL = 160_000


def window_timing(batch: int, num_samples: int, total: int = DEFAULT_TOTAL, device=None) -> Timing:
    """Timing of a window of `num_samples` that begins a recording of `total` samples, for B items."""
    values = (max(total, num_samples), 0, num_samples)
    return Timing(*(torch.full((batch,), float(v), device=device) for v in values))


@torch.inference_mode()
def generate(
    codec: AudioCodec,
    low: Prior,
    up: Prior,
    clip: Tensor,
    seeds: Sequence[int],
    options: SamplingOptions,
    up_options: SamplingOptions | None = None,
    total: int = DEFAULT_TOTAL,
    on_step: Callable[[int], object] | None = None,
) -> Generated:
    """Generate one window of sound for each picture or clip.

    Args:
        codec, low, up: nets that belong together, in eval mode, on the device of `clip`.
        clip: image embeddings [B, F, D]; a photo is one frame.
        seeds: one for each item; the codes of an item depend on nothing else.
        options: how low codes are drawn.
        up_options: how up codes are drawn; those of `options` where None.
        total: length of the whole recording in samples, which the low prior is told.
        on_step: called with 1 after each code.
    """
    num_samples = low.context_length * codec.hop_lengths["low"]
    timing = window_timing(len(clip), num_samples, total, clip.device)
    conditions = Conditions(clip, timing)
    codes: dict[str, Tensor] = {}
    for level, prior in (("low", low), ("up", up)):
        chosen = options if level == "low" else up_options or options
        uniform = uniforms(seeds, prior.context_length, level, clip.device)
        codes[level] = sample_codes(prior, conditions, uniform, chosen, on_step=on_step)
        conditions = replace(conditions, codes_low=codes[level])
    # one by one: sums over a batch are rounded by its size, and the same seed shall give the same sound to the last bit
    wav = {level: torch.cat([codec.decode(row[None], level) for row in codes[level]]).clamp(-1, 1) for level in LEVELS}
    return Generated(codes, wav)
