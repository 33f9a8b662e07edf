"""Prior: the distribution of one level of codes given conditions.

Letters: B batch, T positions, K codebook size, W width.
Source: Im2Wav (Sheffer & Adi, 2022), models/prior.py and models/autoregressive.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.prior.conditioning import Conditioner, ConditioningConfig, Conditions, UpsamplerConfig
from im2wav.prior.transformer import Transformer, TransformerConfig, code_table, normal


class Prior(nn.Module):
    """Autoregressive transformer over one level of codes.

    The input at position t is the code at t - 1; at position 0 it is an embedding of the image. The position
    embeddings of the conditions are added before and after the transformer. The output layer shares the weights of the
    code embedding.

    Args:
        codebook_size: number of codes K.
        context_length: number of positions T.
        transformer: options of `TransformerConfig`.
        conditioning: options of `ConditioningConfig`; `upsampler` holds options of `UpsamplerConfig`.

    Raises:
        TypeError: unknown option.
        ValueError: incompatible sizes.
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
        """Whether the prior has a null embedding, which classifier-free guidance (CFG) requires."""
        return self.conditioner.null_start is not None

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return logits [B, n, K] for codes [B, n]: entry t is the distribution of codes[:, t].

        `im2wav.decoding.Decoder` computes the same logits position by position with a KV cache.

        Args:
            codes: int64, n <= `context_length`.
            conditions: conditions of the B sequences.

        Raises:
            ValueError: too many codes, or incompatible conditions.
        """
        length = codes.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} codes, but the context has {self.context_length} positions")
        start, positions = self.conditioner(conditions, self.context_length)
        condition = start.new_zeros(1) if positions is None else positions[:, :length]
        inputs = torch.cat([start[:, None], self.code_embedding(codes[:, :-1]).to(start.dtype)], 1)
        h = self.transformer(inputs + self.position_embedding[:length] + condition) + condition
        return h @ self.code_embedding.weight.t()

    def bits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Mean bits per code, -log2 p, of codes [B, n]: a scalar, the training loss."""
        logits = self(codes, conditions)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten()) / math.log(2)
