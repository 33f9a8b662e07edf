"""The codec encodes audio as two independent streams of codes. Each stream decodes to audio on its own.

Level `up` is fine (hop length 8 in the official model), level `low` is coarse (hop length 32).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from im2wav.codec.quantizer import Codebook
from im2wav.layers import DownsampleStack, UpsampleStack

LEVELS = ("up", "low")
BLOCK = 16384  # samples that are decoded at once


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Disable TF32 for matrix products and convolutions on CUDA devices; a no-op on other devices.

    Rounding can change the index of the nearest code vector. cuDNN uses TF32 for fp32 convolutions by default, and
    training enables it for matrix products. With TF32, the codes of the same audio depend on the GPU, and
    `im2wav.tokenize` and training could produce different codes.
    """
    if device.type != "cuda":
        yield
        return
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


class LevelEncoder(nn.Sequential):
    """Audio [B, 1, N] -> latents [B, code_dim, N / hop]: one `DownsampleStack` per group of strides."""

    def __init__(self, groups: Sequence[Sequence[int]], width: int, code_dim: int, **stack):
        super().__init__(
            *(DownsampleStack(1 if i == 0 else code_dim, width, code_dim, g, **stack) for i, g in enumerate(groups))
        )


class LevelDecoder(nn.Module):
    """Quantised latents [B, code_dim, N / hop] -> audio [B, 1, N]: the encoder's groups reversed, no activation."""

    def __init__(self, groups: Sequence[Sequence[int]], width: int, code_dim: int, **stack):
        super().__init__()
        self.blocks = nn.Sequential(
            *(UpsampleStack(code_dim, width, code_dim, g[::-1], reverse=True, **stack) for g in reversed(groups))
        )
        self.out = nn.Conv1d(code_dim, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Decode latents [B, code_dim, T] to audio [B, 1, T * hop]."""
        return self.out(self.blocks(x))


@dataclass(frozen=True)
class CodecOutput:
    """Output of a forward pass; each dict is keyed by level."""

    wav: dict[str, Tensor]  # reconstructions, [B, 1, N]
    codes: dict[str, Tensor]  # [B, N / hop], of residual codecs [B, N / hop, codebooks]
    commit_loss: dict[str, Tensor]
    metrics: dict[str, dict[str, Tensor]]
    noisy: dict[str, Tensor] = field(default_factory=dict)  # with other noise, to learn its shares from


class Reach(NamedTuple):
    """Receptive field of a sample: number of codes before and after its own."""

    before: int
    after: int


class Codec(nn.Module):
    """What all codecs have; `AudioCodec` describes the methods."""

    hop_lengths: dict[str, int]  # samples for each position, by level
    code_shapes: dict[str, tuple[int, ...]]  # shape of the codes of a position, by level: () or (codebooks,)
    codebook_size: int
    code_dim: int  # dimension of a code vector

    def encode(self, wav: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """Audio [B, 1, N] -> codes by level."""
        raise NotImplementedError

    def decode(self, codes: Tensor | Mapping[str, Tensor], level: str) -> Tensor:
        """Codes of a level -> audio [B, 1, N]."""
        raise NotImplementedError

    def reach(self, level: str) -> Reach:
        """Receptive field of the decoder."""
        raise NotImplementedError

    def regions(self) -> list[nn.Module]:
        """Parts that can be compiled and sharded."""
        raise NotImplementedError

    def named_codebooks(self) -> dict[str, Codebook]:
        """The codebooks by name."""
        raise NotImplementedError

    def initialise_from(self, windows: Iterable[Tensor]) -> None:
        """Initialise from training audio, windows [1, N]. By default codebooks do so with the first batch instead."""

    def training_output(self, wav: Tensor, seeds: Sequence[int]) -> CodecOutput:
        """The forward pass of a training step on wav [B, 1, N]; the seeds of the items decide what is random in it."""
        return self(wav)


def check_wav(wav: Tensor, hop: int) -> None:
    """Check the shape of audio to encode.

    Raises:
        ValueError: it is not [B, 1, N] with N a multiple of `hop`.
    """
    if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[2] % hop or not wav.shape[2]:
        raise ValueError(f"wav of shape {tuple(wav.shape)}: expected [B, 1, N] with N a multiple of {hop} samples")


def check_levels(levels: Sequence[str]) -> None:
    """Check names of levels.

    Raises:
        ValueError: a level is unknown.
    """
    for level in levels:
        if level not in LEVELS:
            raise ValueError(f"level={level!r}: expected one of {LEVELS}")


class AudioCodec(Codec):
    """VQ-VAE with two levels. Each level has its own encoder, codebook and decoder.

    Args:
        strides: two groups of even strides. Level `up` uses the first group, level `low` uses both in sequence.
        width: channels of the convolutions.
        depth: number of residual blocks after each stride.
        code_dim: dimension of a code vector.
        codebook_size: number of codes per level.
        dilation_growth: ratio of the dilations of consecutive residual blocks.
        expansion: channels inside a residual block, as a multiple of `width`.
        codebook: additional options of `Codebook`.

    Raises:
        ValueError: `strides` is not two groups of even numbers.
    """

    def __init__(
        self,
        strides: Sequence[Sequence[int]] = ((2, 2, 2), (2, 2)),
        width: int = 32,
        depth: int = 4,
        code_dim: int = 128,
        codebook_size: int = 2048,
        dilation_growth: int = 3,
        expansion: float = 1.0,
        codebook: Mapping | None = None,
    ):
        super().__init__()
        if len(strides) != len(LEVELS):
            raise ValueError(
                f"strides={strides}: expected {len(LEVELS)} groups of even strides, such as [[2,2,2],[2,2]]"
            )
        self.codebook_size, self.code_dim = codebook_size, code_dim
        self.hop_lengths = {level: prod(prod(group) for group in strides[: i + 1]) for i, level in enumerate(LEVELS)}
        self.code_shapes: dict[str, tuple[int, ...]] = dict.fromkeys(LEVELS, ())  # of a position: one code
        stack = {"depth": depth, "growth": dilation_growth, "hidden": int(expansion * width)}
        groups = {level: strides[: i + 1] for i, level in enumerate(LEVELS)}
        self.encoders = nn.ModuleDict({k: LevelEncoder(g, width, code_dim, **stack) for k, g in groups.items()})
        self.codebooks = nn.ModuleDict({k: Codebook(codebook_size, code_dim, **(codebook or {})) for k in groups})
        self.decoders = nn.ModuleDict({k: LevelDecoder(g, width, code_dim, **stack) for k, g in groups.items()})
        self._reach: dict[str, Reach] = {}

    def encode(self, wav: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """Encode audio [B, 1, N] to codes [B, N / hop], keyed by level.

        fp32 weights use full fp32 precision on GPUs as well (no TF32).

        Args:
            wav: mono audio; N is a multiple of the hop length of level `low`.
            levels: levels to encode. Each level has its own encoder, so fewer levels take less time.

        Raises:
            ValueError: audio is not mono, N is not a multiple of the low hop length, or a level is unknown.
        """
        check_wav(wav, self.hop_lengths["low"])
        check_levels(levels)
        with exact_fp32(wav.device):
            return {level: self.codebooks[level].encode(self.encoders[level](wav)) for level in levels}  # type: ignore[operator]

    def decode(self, codes: Tensor | Mapping[str, Tensor], level: str) -> Tensor:
        """Decode the codes [B, T] of one level, or the dict returned by `encode`, to audio [B, 1, T * hop].

        Raises:
            ValueError: unknown level.
        """
        check_levels([level])
        if isinstance(codes, Mapping):
            codes = codes[level]
        with exact_fp32(next(self.parameters()).device):
            return self.decoders[level](self.codebooks[level].decode(codes))  # type: ignore[operator]

    def forward(self, wav: Tensor) -> CodecOutput:
        """Encode, quantise and decode audio [B, 1, N] at both levels; update the codebooks in training mode."""
        check_wav(wav, self.hop_lengths["low"])
        wav = wav.to(next(self.parameters()).dtype)
        quantised = {level: self.codebooks[level](self.encoders[level](wav)) for level in LEVELS}
        return CodecOutput(
            wav={level: self.decoders[level](q.latents) for level, q in quantised.items()},
            codes={level: q.codes for level, q in quantised.items()},
            commit_loss={level: q.commit_loss for level, q in quantised.items()},
            metrics={level: q.metrics for level, q in quantised.items()},
        )

    @property
    def encoder_reach(self) -> int:
        """Maximum distance in samples that a code depends on, over all levels."""
        radii = []
        for encoder in self.encoders.values():
            radius, jump = 0, 1
            for conv in encoder.modules():
                if isinstance(conv, nn.Conv1d):
                    radius += conv.dilation[0] * (conv.kernel_size[0] - 1) * jump
                    jump *= conv.stride[0]
            radii.append(radius // 2 + jump)
        return max(radii)

    def named_codebooks(self) -> dict[str, Codebook]:
        """The codebooks, by level."""
        return dict(self.codebooks.items())  # type: ignore[arg-type]

    def regions(self) -> list[nn.Module]:
        """Parts that can be compiled and sharded: all but the codebooks, which communicate with other processes."""
        return [*self.encoders.values(), *self.decoders.values()]

    @torch.inference_mode()
    def reach(self, level: str) -> Reach:
        """Receptive field of the decoder of a level, measured once.

        Raises:
            ValueError: the receptive field is not bounded.
        """
        if level not in self._reach:
            self._reach[level] = measured_reach(self.decoders[level], self.code_dim, self.hop_lengths[level])
        return self._reach[level]


def measured_reach(decoder: nn.Module, code_dim: int, hop: int) -> Reach:
    """Receptive field of a decoder of latents [1, code_dim, T]: the samples that become NaN if one latent is NaN.

    On a copy on the CPU: FFT and Winograd algorithms of cuDNN spread a NaN further than the receptive field.

    Raises:
        ValueError: the receptive field is not bounded.
    """
    decoder = copy.deepcopy(decoder).cpu()
    like, codes = next(decoder.parameters()), 128
    while codes <= 2**15:
        latents = like.new_zeros(1, code_dim, codes)
        latents[..., codes // 2] = torch.nan
        affected = decoder(latents)[0, 0].isnan().nonzero().flatten().tolist()
        first, last = affected[0] // hop, affected[-1] // hop
        if first > 0 and last < codes - 1:
            return Reach(last - codes // 2, codes // 2 - first)
        codes *= 2
    raise ValueError(f"the decoder has a receptive field of more than {codes} codes")


class BlockDecoder:
    """Decodes the codes of one level, [T] or [T, Q], in blocks while they are drawn, from those in the receptive field.

    Audio of any length is decoded in constant memory, and before its later codes are drawn. The blocks lie on a fixed
    grid, so that streamed audio equals audio that is decoded at the end, sample for sample.

    Args:
        codec: in eval mode.
        level: level of the codes.
        total: number of codes, T.
        block: samples in a block.
    """

    def __init__(self, codec: Codec, level: str, total: int, block: int = BLOCK):
        self.codec, self.level, self.total, self.reach = codec, level, total, codec.reach(level)
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


def decode_wave(codec: Codec, codes: Tensor, level: str, block: int = BLOCK) -> Tensor:
    """Codes [T] or [T, Q] of one level -> samples [T * hop] in [-1, 1] on the CPU, in constant memory of the device."""
    blocks = BlockDecoder(codec, level, len(codes), block).push(codes, len(codes))
    return torch.cat([part.cpu() for part in blocks])
