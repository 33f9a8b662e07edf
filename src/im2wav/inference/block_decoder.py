"""Decode codes in blocks, each from the codes in its receptive field.

Audio of any length is decoded in constant memory, and before its later codes are drawn. The blocks lie on a fixed
grid, so that streamed audio equals audio that is decoded at the end, sample for sample.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from im2wav.codec import AudioCodec

BLOCK = 16384  # samples


class Reach(NamedTuple):
    """Receptive field of a sample: number of codes before and after its own."""

    before: int
    after: int


@torch.inference_mode()
def measure_reach(codec: AudioCodec, level: str) -> Reach:
    """Measure a decoder's receptive field: the samples that become NaN if one latent is NaN.

    On a copy on the CPU: FFT and Winograd algorithms of cuDNN spread a NaN further than the receptive field.

    Raises:
        ValueError: the receptive field is not bounded.
    """
    decoder, hop = copy.deepcopy(codec.decoders[level]).cpu(), codec.hop_lengths[level]
    like = next(decoder.parameters())
    codes = 128
    while codes <= 2**15:
        latents = like.new_zeros(1, codec.code_dim, codes)
        latents[..., codes // 2] = torch.nan
        affected = decoder(latents)[0, 0].isnan().nonzero().flatten().tolist()
        first, last = affected[0] // hop, affected[-1] // hop
        if first > 0 and last < codes - 1:
            return Reach(last - codes // 2, codes // 2 - first)
        codes *= 2
    raise ValueError(f"the decoder of level {level} has a receptive field of more than {codes} codes")


class BlockDecoder:
    """Decodes the codes [T] of one level while they are drawn.

    Args:
        codec: in eval mode.
        level: level of the codes.
        total: number of codes, T.
        reach: receptive field of the decoder.
        block: samples in a block.
    """

    def __init__(self, codec: AudioCodec, level: str, total: int, reach: Reach, block: int = BLOCK):
        self.codec, self.level, self.total, self.reach = codec, level, total, reach
        self.size = max(1, block // codec.hop_lengths[level])
        self.done = 0  # codes

    def missing(self, known: int) -> int:
        """Number of codes that the next block needs beyond the first `known`."""
        return min(self.done + self.size + self.reach.after, self.total) - known

    @torch.inference_mode()
    def push(self, codes: Tensor, known: int) -> Iterator[Tensor]:
        """Decode the blocks [n] of samples in [-1, 1] that depend on the first `known` codes only."""
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
