"""The codec: a wave becomes two independent streams of codes, each of which decodes back to a wave alone.

Level `up` is fine (hop 8 at official size), level `low` coarse (hop 32).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from im2wav.codec.conv import Decoder, Encoder
from im2wav.codec.exact import exact_fp32
from im2wav.codec.quantizer import Codebook

LEVELS = ("up", "low")


@dataclass(frozen=True)
class CodecOutput:
    """What one pass through the codec gives; each dict is keyed by level."""

    wav: dict[str, Tensor]  # reconstructions, [B, 1, N]
    codes: dict[str, Tensor]  # [B, N / hop]
    commit_loss: dict[str, Tensor]
    metrics: dict[str, dict[str, Tensor]]


class AudioCodec(nn.Module):
    """VQ-VAE with two levels; each level has an encoder, a codebook and a decoder of its own.

    Args:
        strides: two groups of even strides. Level `up` uses the first group, level `low` both, one after the other.
        width: channels of the convolutions.
        depth: residual blocks after each stride.
        code_dim: width of a code.
        codebook_size: codes of a level.
        dilation_growth: ratio between the dilations of neighbouring residual blocks.
        expansion: channels inside a residual block, as a multiple of `width`.
        codebook: further options of `Codebook`.

    Raises:
        ValueError: not two groups of even strides.
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
        self.encoders = nn.ModuleDict({k: Encoder(g, width, code_dim, **stack) for k, g in groups.items()})
        self.codebooks = nn.ModuleDict({k: Codebook(codebook_size, code_dim, **(codebook or {})) for k in groups})
        self.decoders = nn.ModuleDict({k: Decoder(g, width, code_dim, **stack) for k, g in groups.items()})

    def _check(self, wav: Tensor) -> None:
        hop = self.hop_lengths["low"]
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[2] % hop or not wav.shape[2]:
            raise ValueError(f"wav of shape {tuple(wav.shape)}: expected [B, 1, N] with N a multiple of {hop} samples")

    def encode(self, wav: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """Encode a wave [B, 1, N] to codes by level, [B, N / hop] each.

        fp32 weights are computed with in full fp32 precision, also on GPUs (no TF32).

        Args:
            wav: mono; N is a multiple of the low level's hop.
            levels: which levels to encode; each has an encoder of its own, so fewer levels take less time.

        Raises:
            ValueError: not mono, N is not a multiple of the low level's hop, or an unknown level.
        """
        self._check(wav)
        unknown = set(levels) - set(LEVELS)
        if unknown:
            raise ValueError(f"levels={list(levels)}: unknown {sorted(unknown)}, must be some of {LEVELS}")
        with exact_fp32(wav.device):
            return {level: self.codebooks[level].encode(self.encoders[level](wav)) for level in levels}  # type: ignore[operator]

    def decode(self, codes: Tensor | Mapping[str, Tensor], level: str) -> Tensor:
        """Codes of one level [B, T] (or the dict that `encode` gives) -> wave [B, 1, T * hop].

        Raises:
            ValueError: no such level.
        """
        if level not in LEVELS:
            raise ValueError(f"level={level!r}: expected one of {LEVELS}")
        if isinstance(codes, Mapping):
            codes = codes[level]
        with exact_fp32(next(self.parameters()).device):
            return self.decoders[level](self.codebooks[level].decode(codes))  # type: ignore[operator]

    def forward(self, wav: Tensor) -> CodecOutput:
        """Encode, quantise and decode a wave [B, 1, N] at both levels; in training also move the codebooks."""
        self._check(wav)
        wav = wav.to(next(self.parameters()).dtype)
        quantised = {level: self.codebooks[level](self.encoders[level](wav)) for level in LEVELS}
        return CodecOutput(
            wav={level: self.decoders[level](q.latents) for level, q in quantised.items()},
            codes={level: q.codes for level, q in quantised.items()},
            commit_loss={level: q.commit_loss for level, q in quantised.items()},
            metrics={level: q.metrics for level, q in quantised.items()},
        )
