"""What is to be heard, and the nets that make it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from im2wav.codec import LEVELS, AudioCodec
from im2wav.decoding.decoder import Decoder
from im2wav.inference.block_decoder import Reach, measure_reach
from im2wav.prior import Conditions, Prior, Timing

# what the low prior is told of the recording's length where nothing else is known: that of a VGGSound clip, in samples
DEFAULT_TOTAL = 160_000


@dataclass(frozen=True)
class Models:
    """Nets that belong together, in eval mode, on one device.

    Attributes:
        codec, low, up: the nets.
        precision: of the priors, see `Decoder`.
        consume: let the decoders take the priors' weights, see `Decoder`.
        compile: compile the decoders' steps, see `Decoder`.
    """

    codec: AudioCodec
    low: Prior
    up: Prior
    precision: str = "fp32"
    consume: bool = False
    compile: bool = False

    @cached_property
    def decoders(self) -> dict[str, Decoder]:
        """The priors by level, ready to draw codes; made when they are first needed.

        Raises:
            ValueError: a precision, or compile, that the device cannot do.
        """
        priors = {"low": self.low, "up": self.up}
        return {k: Decoder(prior, self.precision, self.consume, self.compile) for k, prior in priors.items()}

    @property
    def window(self) -> int:
        """Samples that the priors see at once."""
        return self.low.context_length * self.codec.hop_lengths["low"]

    @property
    def ratio(self) -> int:
        """Fine codes for each coarse one."""
        return self.codec.hop_lengths["low"] // self.codec.hop_lengths["up"]

    @property
    def device(self) -> torch.device:
        """Where the nets are."""
        return next(self.codec.parameters()).device

    @cached_property
    def reach(self) -> dict[str, Reach]:
        """By level, how far the decoder looks."""
        return {level: measure_reach(self.codec, level) for level in LEVELS}


@dataclass(frozen=True)
class Clip:
    """What is seen, by time.

    Attributes:
        embeddings: of images [U, D]; may be memory-mapped, only what a window needs is read.
        fps: frames a second; None for one picture that is seen all the time.
        order: which embedding is shown in each frame [F]; None where each frame has its own.
    """

    embeddings: Tensor
    fps: float | None = None
    order: Tensor | None = None

    def between(self, start: float, duration: float) -> Tensor:
        """Embeddings [F, D] of the frames of a window: those shown from `start` on, both ends included, in seconds.

        The last frame is held. A video without frame rate is seen all at once. Source: Im2Wav, sample.py.
        """
        frames = len(self.embeddings if self.order is None else self.order)
        if self.fps is None or frames == 1:
            return self.embeddings if self.order is None else self.embeddings[self.order]
        index = (int(start * self.fps) + torch.arange(int(duration * self.fps) + 1)).clamp_max(frames - 1)
        return self.embeddings[index if self.order is None else self.order[index]]


@dataclass(frozen=True)
class Request:
    """One sound that is to be made.

    Attributes:
        clip: what is seen.
        seed: the codes depend on it and on nothing else.
        samples: length of the sound; one window of the priors where None.
        overlap: share of a window that is begun with the codes of the one before, for sounds longer than a window.
        total: length of the recording in samples, which the low prior is told.
        sample_rate: Hz.
        negative: what the sound is to be guided away from, see `SamplingOptions.negative_scale`.
        given: codes by level [T] that the sound begins with.
        replace: the stretch of the given codes that is drawn anew, in samples. Where None, the sound goes on after
            the given codes.
    """

    clip: Clip
    seed: int = 0
    samples: int | None = None
    overlap: float = 0.5
    total: int = DEFAULT_TOTAL
    sample_rate: int = 16000
    negative: Clip | None = None
    given: Mapping[str, Tensor] | None = None
    replace: tuple[int, int] | None = None

    def __post_init__(self):
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: expected a share from 0 up to, not including, 1")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"a sound of {self.samples} samples: expected 1 or more")
        if self.replace is not None and self.given is None:
            raise ValueError("replace is for a sound that is given (edit=SOUND)")

    def conditions(self, clip: Clip, offset: int, duration: int, codes_low: Tensor | None = None) -> Conditions:
        """Conditions of the window of `duration` samples that begins at sample `offset`, for a batch of 1 on the CPU.

        A prior knows places within recordings as long as those that it learnt from. What comes later is told to be
        the end of such a recording.
        """
        seen = clip.between(offset / self.sample_rate, duration / self.sample_rate)
        total = max(self.total, duration)
        timing = Timing(*(torch.tensor([float(v)]) for v in (total, min(offset, total - duration), duration)))
        return Conditions(seen[None].float(), timing, None if codes_low is None else codes_low[None])
