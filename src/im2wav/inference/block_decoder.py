"""Codes -> a wave in blocks, each decoded from the codes that its samples depend on and no others.

So a sound of any length is decoded in constant memory, and while its later codes are still to come. The blocks lie on
a fixed grid: a sound that is streamed equals the sound that is decoded at the end, sample for sample.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from im2wav.codec import AudioCodec

BLOCK = 16384  # samples


class Reach(NamedTuple):
    """How many codes before and after its own a sample depends on."""

    before: int
    after: int


@torch.inference_mode()
def measure_reach(codec: AudioCodec, level: str) -> Reach:
    """Find a decoder's reach: the samples that become NaN when one latent is NaN.

    On a CPU copy: algorithms of cuDNN, such as FFT and Winograd, spread a NaN further than the convolution reaches.

    Raises:
        ValueError: the decoder has no bounded reach.
    """
    decoder, hop = copy.deepcopy(codec.decoders[level]).cpu(), codec.hop_lengths[level]
    like = next(decoder.parameters())
    codes = 128
    while codes <= 2**15:
        latents = like.new_zeros(1, codec.code_dim, codes)
        latents[..., codes // 2] = torch.nan
        spoilt = decoder(latents)[0, 0].isnan().nonzero().flatten().tolist()
        first, last = spoilt[0] // hop, spoilt[-1] // hop
        if first > 0 and last < codes - 1:
            return Reach(last - codes // 2, codes // 2 - first)
        codes *= 2
    raise ValueError(f"the decoder of level {level} sees more than {codes} codes at once: it cannot decode in blocks")


class BlockDecoder:
    """Decodes the codes [T] of one level while they come in.

    Args:
        codec: in eval mode.
        level: whose decoder.
        total: codes there will be, T.
        reach: of the decoder.
        block: samples decoded at once.
    """

    def __init__(self, codec: AudioCodec, level: str, total: int, reach: Reach, block: int = BLOCK):
        self.codec, self.level, self.total, self.reach = codec, level, total, reach
        self.size = max(1, block // codec.hop_lengths[level])
        self.done = 0  # codes

    def missing(self, known: int) -> int:
        """How many codes are still to come for the next block, when the first `known` are there."""
        return min(self.done + self.size + self.reach.after, self.total) - known

    @torch.inference_mode()
    def push(self, codes: Tensor, known: int) -> Iterator[Tensor]:
        """The blocks [n] of samples in [-1, 1] that have become certain, now that the first `known` codes are."""
        while self.done < self.total:
            end = min(self.done + self.size, self.total)
            last = min(end + self.reach.after, self.total)
            if last > known:
                return
            first, hop = max(0, self.done - self.reach.before), self.codec.hop_lengths[self.level]
            wav = self.codec.decode(codes[None, first:last], self.level)[0, 0]
            yield wav[(self.done - first) * hop : (end - first) * hop].float().clamp(-1, 1)
            self.done = end


def decode_wave(codec: AudioCodec, codes: Tensor, level: str, reach: Reach, block: int = BLOCK) -> Tensor:
    """Codes [T] of one level -> samples [T * hop] in [-1, 1] on the CPU, in constant memory of the device."""
    blocks = BlockDecoder(codec, level, len(codes), reach, block).push(codes, len(codes))
    return torch.cat([part.cpu() for part in blocks])
