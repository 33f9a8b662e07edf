"""Image embeddings -> low codes -> up codes -> waves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from im2wav.codec import LEVELS, AudioCodec
from im2wav.generation.sampling import SamplingOptions, uniforms
from im2wav.generation.windows import sample_windows
from im2wav.prior import Conditions, Prior, Timing

# what the low prior is told of the recording's length where nothing else is known: that of a VGGSound clip, in samples
DEFAULT_TOTAL = 160_000


@dataclass(frozen=True)
class Generated:
    """Sound for each of B items."""

    codes: dict[str, Tensor]  # by level: [B, T]
    wav: dict[str, Tensor]  # by level: [B, 1, N] in [-1, 1]; `up` is the result, `low` the coarse draft


@dataclass(frozen=True)
class Request:
    """What is to be heard.

    Attributes:
        clip: image embeddings of B items [B, F, D]; a photo is one frame, which is seen all the time.
        seeds: one for each item; the codes of an item depend on nothing else.
        fps: frames a second of videos.
        samples: length of the sound; one window of the priors where None.
        overlap: share of a window that is begun with the codes of the one before, for sounds longer than a window.
        total: length of the recording in samples, which the low prior is told; no less than the sound's.
        sample_rate: Hz.
    """

    clip: Tensor
    seeds: Sequence[int]
    fps: float | None = None
    samples: int | None = None
    overlap: float = 0.5
    total: int = DEFAULT_TOTAL
    sample_rate: int = 16000

    def conditions(self, offset: int, duration: int, codes_low: Tensor | None) -> Conditions:
        """Conditions of the window of `duration` samples that begins at sample `offset`.

        Frames belong to it by time: those shown from its start on, both ends included, the last one held.
        """
        clip = self.clip
        if clip.shape[1] > 1 and self.fps is not None:
            first, count = (int(x / self.sample_rate * self.fps) for x in (offset, duration))
            clip = clip[:, (first + torch.arange(count + 1)).clamp_max(clip.shape[1] - 1).to(clip.device)]
        values = (max(self.total, offset + duration), offset, duration)
        timing = Timing(*(torch.full((len(clip),), float(v), device=clip.device) for v in values))
        return Conditions(clip, timing, codes_low)


@torch.inference_mode()
def generate(
    codec: AudioCodec,
    low: Prior,
    up: Prior,
    request: Request,
    options: SamplingOptions,
    on_step: Callable[[int], object] | None = None,
) -> Generated:
    """Generate sound for pictures or clips.

    Args:
        codec, low, up: nets that belong together, in eval mode, on the device of the embeddings.
        request: what is to be heard.
        options: how codes are drawn.
        on_step: called with 1 after each code.

    Raises:
        ValueError: the sound is shorter than a window, or the overlap is no share.
    """
    window = low.context_length * codec.hop_lengths["low"]
    samples = request.samples or window
    if samples < window or not 0 <= request.overlap < 1:
        raise ValueError(
            f"samples={samples}, overlap={request.overlap}: expected at least a window of {window} samples "
            f"({window / request.sample_rate:.2f} s), and an overlap from 0 up to, not including, 1"
        )
    samples = -(-samples // codec.hop_lengths["low"]) * codec.hop_lengths["low"]
    ratio = codec.hop_lengths["low"] // codec.hop_lengths["up"]
    codes: dict[str, Tensor] = {}
    for level, prior in (("low", low), ("up", up)):
        length, context = codec.hop_lengths[level], prior.context_length
        hop = max(ratio, int((1 - request.overlap) * context) // ratio * ratio)

        def conditions_at(start: int, length: int = length, context: int = context) -> Conditions:
            coarse = codes["low"][:, start // ratio : (start + context) // ratio] if "low" in codes else None
            return request.conditions(start * length, context * length, coarse)

        uniform = uniforms(request.seeds, samples // length, level, request.clip.device)
        codes[level] = sample_windows(prior, conditions_at, uniform, options, hop, on_step)
    # one by one: sums over a batch are rounded by its size, and the same seed shall give the same sound to the last bit
    wav = {level: torch.cat([codec.decode(row[None], level) for row in codes[level]]).clamp(-1, 1) for level in LEVELS}
    return Generated(codes, wav)
