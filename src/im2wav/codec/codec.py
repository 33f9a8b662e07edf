"""The codec encodes audio as two independent streams of codes. Each stream decodes to audio on its own.

Level `up` is fine (hop length 8 in the official model), level `low` is coarse (hop length 32).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from im2wav.codec.conv import LevelDecoder, LevelEncoder
from im2wav.codec.exact import exact_fp32
from im2wav.codec.quantizer import Codebook

LEVELS = ("up", "low")


@dataclass(frozen=True)
class CodecOutput:
    """Output of a forward pass; each dict is keyed by level."""

    wav: dict[str, Tensor]  # reconstructions, [B, 1, N]
    codes: dict[str, Tensor]  # [B, N / hop]
    commit_loss: dict[str, Tensor]
    metrics: dict[str, dict[str, Tensor]]


class AudioCodec(nn.Module):
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
        stack = {"depth": depth, "growth": dilation_growth, "hidden": int(expansion * width)}
        groups = {level: strides[: i + 1] for i, level in enumerate(LEVELS)}
        self.encoders = nn.ModuleDict({k: LevelEncoder(g, width, code_dim, **stack) for k, g in groups.items()})
        self.codebooks = nn.ModuleDict({k: Codebook(codebook_size, code_dim, **(codebook or {})) for k in groups})
        self.decoders = nn.ModuleDict({k: LevelDecoder(g, width, code_dim, **stack) for k, g in groups.items()})

    def _check(self, wav: Tensor) -> None:
        hop = self.hop_lengths["low"]
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[2] % hop or not wav.shape[2]:
            raise ValueError(f"wav of shape {tuple(wav.shape)}: expected [B, 1, N] with N a multiple of {hop} samples")

    def encode(self, wav: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """Encode audio [B, 1, N] to codes [B, N / hop], keyed by level.

        fp32 weights use full fp32 precision on GPUs as well (no TF32).

        Args:
            wav: mono audio; N is a multiple of the hop length of level `low`.
            levels: levels to encode. Each level has its own encoder, so fewer levels take less time.

        Raises:
            ValueError: audio is not mono, N is not a multiple of the low hop length, or a level is unknown.
        """
        self._check(wav)
        unknown = set(levels) - set(LEVELS)
        if unknown:
            raise ValueError(f"levels={list(levels)}: unknown {sorted(unknown)}, must be some of {LEVELS}")
        with exact_fp32(wav.device):
            return {level: self.codebooks[level].encode(self.encoders[level](wav)) for level in levels}  # type: ignore[operator]

    def decode(self, codes: Tensor | Mapping[str, Tensor], level: str) -> Tensor:
        """Decode the codes [B, T] of one level, or the dict returned by `encode`, to audio [B, 1, T * hop].

        Raises:
            ValueError: unknown level.
        """
        if level not in LEVELS:
            raise ValueError(f"level={level!r}: expected one of {LEVELS}")
        if isinstance(codes, Mapping):
            codes = codes[level]
        with exact_fp32(next(self.parameters()).device):
            return self.decoders[level](self.codebooks[level].decode(codes))  # type: ignore[operator]

    def forward(self, wav: Tensor) -> CodecOutput:
        """Encode, quantise and decode audio [B, 1, N] at both levels; update the codebooks in training mode."""
        self._check(wav)
        wav = wav.to(next(self.parameters()).dtype)
        quantised = {level: self.codebooks[level](self.encoders[level](wav)) for level in LEVELS}
        return CodecOutput(
            wav={level: self.decoders[level](q.latents) for level, q in quantised.items()},
            codes={level: q.codes for level, q in quantised.items()},
            commit_loss={level: q.commit_loss for level, q in quantised.items()},
            metrics={level: q.metrics for level, q in quantised.items()},
        )
