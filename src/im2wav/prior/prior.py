"""A prior: the distribution of one level of codes given conditions.

Letters: B batch, T positions, K codebook size, W width.
Source: Im2Wav (Sheffer & Adi, 2022), models/prior.py and models/autoregressive.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.prior.attention import LayerCache
from im2wav.prior.conditioning import Conditioner, ConditioningConfig, Conditions, UpsamplerConfig
from im2wav.prior.transformer import Transformer, TransformerConfig, code_table, normal


@dataclass
class DecodeState:
    """What incremental decoding remembers. Made by `Prior.start`, owned by who decodes, gone with its owner.

    Attributes:
        start: start embedding [B, W].
        positions: position embedding of the whole context [B, T, W].
        caches: keys and values, one for each layer.
        position: how many positions went through the transformer.
    """

    start: Tensor
    positions: Tensor
    caches: list[LayerCache]
    position: int = 0


class Prior(nn.Module):
    """Autoregressive transformer over one level of codes.

    The input at position t is the code at t - 1; at position 0 it is an embedding of the picture. The condition of a
    position is added before the transformer and again after it, and the code embedding is also the output matrix.

    Args:
        codebook_size: codes of the level, K.
        context_length: positions, T.
        transformer: options of `TransformerConfig`.
        conditioning: options of `ConditioningConfig`; its `upsampler` likewise holds options of `UpsamplerConfig`.

    Raises:
        TypeError: an unknown option.
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        codebook_size: int = 2048,
        context_length: int = 2048,
        transformer: Mapping[str, Any] | None = None,
        conditioning: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        sizes = TransformerConfig(**(transformer or {}))
        options = dict(conditioning or {})
        if options.get("upsampler") is not None:
            options["upsampler"] = UpsamplerConfig(**options["upsampler"])
        self.codebook_size, self.context_length = codebook_size, context_length
        self.code_embedding = code_table(codebook_size, sizes.width, 0.02 * sizes.init_scale)
        self.position_embedding = normal(context_length, sizes.width, std=0.01 * sizes.init_scale)
        self.conditioner = Conditioner(ConditioningConfig(**options), codebook_size, sizes.width, sizes.init_scale)
        self.transformer = Transformer(sizes, context_length)

    @property
    def can_be_guided(self) -> bool:
        """Whether it learnt what no picture looks like, which classifier-free guidance needs."""
        return self.conditioner.null_start is not None

    def forward(self, codes: Tensor, conditions: Conditions, state: DecodeState | None = None) -> Tensor:
        """Logits [B, n, K] aligned with codes [B, n]: entry t is of the distribution of codes[:, t].

        Args:
            codes: int64; never more than `context_length` of them.
            conditions: what they are conditioned on; its batch equals that of the codes.
            state: fresh from `start(conditions)`; then the codes go through the cached path, and the state is ready
                to go on with `step`.

        Raises:
            ValueError: too many codes, or conditions that do not fit.
        """
        if codes.shape[1] > self.context_length:
            raise ValueError(f"{codes.shape[1]} codes, but the context has {self.context_length} positions")
        if state is not None:
            first = self.advance(None, state)
            return torch.cat([first, self.advance(codes[:, :-1], state)], 1) if codes.shape[1] > 1 else first
        start, positions = self._condition(conditions)
        return self._logits(self._inputs(codes[:, :-1], start), positions[:, : codes.shape[1]])

    def bits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Mean bits per code, -log2 p, of codes [B, n] under the conditions: a scalar, the training loss."""
        logits = self(codes, conditions)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten()) / math.log(2)

    def start(self, conditions: Conditions) -> DecodeState:
        """Begin incremental decoding: conditions embedded once, caches allocated once."""
        start, positions = self._condition(conditions)
        return DecodeState(start, positions, self.transformer.caches(len(start), like=start))

    def advance(self, previous: Tensor | None, state: DecodeState) -> Tensor:
        """Logits [B, n, K] of the n positions that follow, given the code before each of them.

        Args:
            previous: codes [B, n] at positions state.position - 1 and on; None at position 0, which has none before.
            state: moved on by n positions.
        """
        if previous is None:
            inputs = state.start[:, None]
        else:
            inputs = self.code_embedding(previous).to(state.start.dtype)
        first, state.position = state.position, state.position + inputs.shape[1]
        positions = state.positions[:, first : state.position]
        return self._logits(inputs, positions, state.caches, first)

    def _condition(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        start, positions = self.conditioner(conditions, self.context_length)
        return start, start.new_zeros(1, self.context_length, 1) if positions is None else positions

    def _inputs(self, previous: Tensor, start: Tensor) -> Tensor:
        return torch.cat([start[:, None], self.code_embedding(previous).to(start.dtype)], 1)

    def _logits(
        self, inputs: Tensor, positions: Tensor, caches: list[LayerCache] | None = None, first: int = 0
    ) -> Tensor:
        learnt = self.position_embedding[first : first + inputs.shape[1]]
        h = self.transformer(inputs + learnt + positions, caches, first) + positions
        return h @ self.code_embedding.weight.t()
