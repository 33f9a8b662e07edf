"""Prior: a transformer with factored attention that models one level of codes, given conditions.

Shapes: B batch, T positions, K codebook size, W width. Queries, keys and values are [B, H, T, D], with H heads of width
D. Source: Im2Wav (Sheffer & Adi, 2022), models/prior.py and models/autoregressive.py.

A sequence is reshaped into rows of `block` positions: position p lies in row r = p // block and column c = p % block.
Layers of the official model alternate between the first three of four kinds of attention:

    row           p attends to columns <= c of its row; with one row this is causal attention
    column        p attends to rows <= r of its column
    previous_row  p attends to all of row r - 1; the output of row 0 is zero
    all           p attends to all positions

`mask` is the specification. `attend` is the fast path: scaled dot-product attention after a reshape, for which PyTorch
has fused kernels. `im2wav.decoding.decoder_layer` computes one position at a time. Tests check that all three agree.
Source: sparse transformer (Child et al., 2019) as factored by Jukebox (Dhariwal et al., 2020).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from im2wav.layers import LayerNorm, code_table, normal
from im2wav.prior.conditioning import Conditioner, ConditioningConfig, Conditions, UpsamplerConfig
from im2wav.prior.depth import DepthHeads

Kind = Literal["row", "column", "previous_row", "all"]
KINDS: tuple[Kind, ...] = ("row", "column", "previous_row")
# kinds of attention of consecutive layers, repeated; `causal` has one row
ATTENTION: dict[str, tuple[Kind, ...]] = {"factored": KINDS, "causal": ("row",), "bidirectional": ("all",)}


def mask(kind: Kind, length: int, block: int, device: torch.device | None = None) -> Tensor:
    """Boolean attention mask [length, length]: entry [p, s] is true if position p attends to position s."""
    p = torch.arange(length, device=device)
    row, column = p // block, p % block
    if kind == "row":
        return (row[:, None] == row) & (column[:, None] >= column)
    if kind == "column":
        return (column[:, None] == column) & (row[:, None] >= row)
    if kind == "all":
        return torch.ones(length, length, dtype=torch.bool, device=device)
    return row[:, None] - 1 == row


def attend_dense(kind: Kind, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Reference implementation for tests: attention with the boolean mask, [B, H, T, D]. Quadratic in T.

    It does not call the fused kernel of `attend`, so that the two implementations are independent.
    """
    allowed = mask(kind, q.shape[2], block, q.device)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~allowed, torch.finfo(q.dtype).min)
    return (scores.softmax(-1) * allowed).to(v.dtype) @ v  # positions without keys get zeros


def attend(kind: Kind, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Fast path: equal to `attend_dense`, [B, H, T, D], without the [T, T] matrix."""
    batch, _, length, _ = q.shape
    if kind == "all":
        return F.scaled_dot_product_attention(q, k, v)
    padding = -length % block
    if padding:  # incomplete last row: padding comes last, so that no real position attends to it
        q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
    if kind == "column":
        q, k, v = (rearrange(x, "b h (r c) d -> (b c) h r d", c=block) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = rearrange(out, "(b c) h r d -> b h (r c) d", b=batch)
    else:
        if kind == "previous_row":  # row 0 attends to zeros, whose mean is zero
            k, v = (F.pad(x, (0, 0, block, 0))[:, :, :-block] for x in (k, v))
        q, k, v = (rearrange(x, "b h (r c) d -> (b r) h c d", c=block) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=kind == "row")
        out = rearrange(out, "(b r) h c d -> b h (r c) d", b=batch)
    return out[:, :, :length]


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the approximation of GELU that the official weights were trained with."""
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        width: width of the residual stream.
        depth: number of layers.
        heads: number of attention heads.
        attention: `factored` (as in Im2Wav), `causal` or `bidirectional`, see the kinds of attention above.
        blocks: number of rows into which factored attention divides the context.
        attention_ratio: width of the queries of all heads relative to `width`.
        mlp_ratio: hidden width of the MLP, relative to `width`.
        init_scale: factor by which the initial standard deviation of 0.02 is multiplied.
        checkpointing: activation checkpointing in training: recompute the activations of layers in the backward pass.
            Uses far less memory and about a third more time; the gradients are the same.
    """

    width: int = 1024
    depth: int = 48
    heads: int = 1
    attention: str = "factored"
    blocks: int = 64
    attention_ratio: float = 0.25
    mlp_ratio: float = 1.0
    init_scale: float = 0.7
    checkpointing: bool = False

    @property
    def attention_width(self) -> int:
        """Width of the queries of all heads together."""
        return int(self.attention_ratio * self.width)


class Layer(nn.Module):
    """`x + a + MLP(LN1(x + a))` with `a = attention(LN0(x))`; both branches read a LayerNorm of the residual stream."""

    def __init__(self, config: TransformerConfig, kind: Kind, block: int):
        super().__init__()
        width, inner, hidden = config.width, config.attention_width, int(config.mlp_ratio * config.width)
        self.kind: Kind = kind
        self.block, self.heads = block, config.heads
        self.norm_attention = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner)
        self.attention_out = nn.Linear(inner, width)
        self.norm_mlp = LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        for linear in (self.qkv, self.attention_out, self.mlp_in, self.mlp_out):
            linear.weight = normal(*linear.weight.shape, std=0.02 * config.init_scale)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to complete sequences x [B, T, W] from position 0."""
        q, k, v = rearrange(self.qkv(self.norm_attention(x)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        out = attend(self.kind, q, k, v, self.block)
        a = self.attention_out(rearrange(out, "b h t d -> b t (h d)"))
        return x + a + self.mlp_out(quick_gelu(self.mlp_in(self.norm_mlp(x + a))))


class Transformer(nn.Module):
    """A stack of layers without a final norm, [B, T, W] -> [B, T, W].

    Raises:
        ValueError: `blocks` does not divide the context length, `heads` does not divide the attention width, or an
            unknown kind of attention.
    """

    def __init__(self, config: TransformerConfig, context_length: int):
        super().__init__()
        if config.attention not in ATTENTION:
            raise ValueError(f"attention={config.attention}: expected one of {', '.join(ATTENTION)}")
        blocks = config.blocks if config.attention == "factored" else 1
        if context_length % blocks:
            raise ValueError(
                f"context_length={context_length} is not divisible by blocks={config.blocks}: "
                "change transformer.blocks or the window length (data.num_samples)"
            )
        if config.attention_width % config.heads:
            raise ValueError(
                f"heads={config.heads} does not divide the attention width {config.attention_width} "
                "(transformer.attention_ratio * transformer.width)"
            )
        self.config, self.context_length, self.block = config, context_length, context_length // blocks
        kinds = ATTENTION[config.attention]
        self.layers = nn.ModuleList(Layer(config, kinds[d % len(kinds)], self.block) for d in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to complete sequences x [B, T, W] from position 0."""
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x


class CodePrior(nn.Module):
    """What all priors have: embeddings of codes and positions, a conditioner and a transformer.

    Args:
        codebook_size: number of codes K.
        context_length: number of positions T.
        transformer: options of `TransformerConfig`.
        conditioning: options of `ConditioningConfig`; `upsampler` holds options of `UpsamplerConfig`.
        codebooks: codes of a position, Q; None for one code without a dimension of its own.

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
        codebooks: int | None = None,
    ):
        super().__init__()
        sizes = TransformerConfig(**(transformer or {}))
        options = dict(conditioning or {})
        if options.get("upsampler") is not None:
            options["upsampler"] = UpsamplerConfig(**options["upsampler"])
        self.codebook_size, self.context_length, self.codebooks = codebook_size, context_length, codebooks
        self.code_embedding = code_table(codebook_size * (codebooks or 1), sizes.width, 0.02 * sizes.init_scale)
        self.position_embedding = normal(context_length, sizes.width, std=0.01 * sizes.init_scale)
        self.conditioner = Conditioner(ConditioningConfig(**options), codebook_size, sizes.width, sizes.init_scale)
        self.transformer = Transformer(sizes, context_length)

    @property
    def can_be_guided(self) -> bool:
        """Whether the prior has a null embedding, which classifier-free guidance (CFG) requires."""
        return self.conditioner.null_start is not None

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the codes of a position: () or (Q,)."""
        return () if self.codebooks is None else (self.codebooks,)

    def rows_of(self, codes: Tensor) -> Tensor:
        """Rows of the code embedding for codes [..., Q]: each codebook has K rows; the codes themselves without Q."""
        if self.codebooks is None:
            return codes
        return codes + self.codebook_size * torch.arange(codes.shape[-1], device=codes.device)

    def targets(self, codes: Tensor) -> Tensor:
        """The codes that `forward` predicts, of the codes [B, n, ...]: without known codebooks."""
        return codes

    def check_length(self, codes: Tensor) -> None:
        """Raise ValueError if there are more codes [B, n, ...] than positions of the context, or of another shape."""
        if codes.shape[1] > self.context_length or codes.shape[2:] != self.code_shape:
            shape = ", ".join(["B", "n", *map(str, self.code_shape)])
            raise ValueError(
                f"codes of shape {list(codes.shape)}: expected [{shape}] with n <= {self.context_length} positions"
            )

    def item_bits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Bits of each code that is predicted, -log2 p: [B, n, ...]."""
        return self.code_bits(self(codes, conditions), codes)

    def code_bits(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Bits of each code that is predicted, given the logits of `forward` for codes [B, n, ...]."""
        return self._bits(logits, codes, "none").view(self.targets(codes).shape)

    def bits(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Mean bits per code, -log2 p, of codes [B, n, ...]: a scalar."""
        return self._bits(self(codes, conditions), codes, "mean")

    def _bits(self, logits: Tensor, codes: Tensor, reduction: str) -> Tensor:
        targets = self.targets(codes).flatten()
        return F.cross_entropy(logits.flatten(0, -2).float(), targets, reduction=reduction) / math.log(2)

    def with_errors(self, codes: Tensor, seeds: Sequence[int], fraction: float) -> Tensor:
        """Codes [B, n, ...], of which a fraction is replaced by random codes; which ones depends on the seeds."""
        if not fraction:
            return codes
        errors = []
        for seed in seeds:
            draw = torch.Generator().manual_seed(seed % 2**63)
            is_error = torch.rand(codes.shape[1:], generator=draw) < fraction
            others = torch.randint(self.codebook_size, codes.shape[1:], generator=draw)
            errors.append(torch.where(is_error, others, -1))
        drawn = torch.stack(errors).to(codes.device)
        return torch.where(drawn >= 0, drawn, codes)

    def training_bits(
        self,
        codes: Tensor,
        conditions: Conditions,
        seeds: Sequence[int],
        weights: Tensor | None = None,
        errors: float = 0.0,
    ) -> Tensor:
        """The training loss: a scalar.

        Args:
            codes, conditions: see `forward`.
            seeds: of the items; they decide what is random in the loss besides dropout.
            weights: of the positions, [n]; None: all alike.
            errors: fraction of the codes before a position that are replaced by random ones, so that the network
                learns to go on after errors of its own.
        """
        logits = self(codes, conditions, self.with_errors(codes, seeds, errors))
        if weights is None:
            return self._bits(logits, codes, "mean")
        bits = self.code_bits(logits, codes).view(len(codes), len(weights), -1).mean(2)
        return (bits * weights).sum(1).mean() / weights.sum()


class Prior(CodePrior):
    """Autoregressive transformer over one level of codes.

    The input at position t is the code at t - 1; at position 0 it is an embedding of the image. The position
    embeddings of the conditions are added before and after the transformer. With one code for each position, the output
    layer shares the weights of the code embedding. With several, the codes of a position are drawn one after another by
    small networks, `DepthHeads`; see `CodePrior` for the arguments.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        width = self.transformer.config.width
        self.heads = None if self.codebooks is None else DepthHeads(self.codebooks, self.codebook_size, width)

    def forward(self, codes: Tensor, conditions: Conditions, known: Tensor | None = None) -> Tensor:
        """Return logits [B, n, ..., K] for codes [B, n, ...]: entry t is the distribution of codes[:, t].

        `im2wav.decoding.Decoder` computes the same logits position by position with a KV cache.

        Args:
            codes: int64, n <= `context_length`.
            conditions: conditions of the B sequences.
            known: codes that later positions see instead of `codes`, of the same shape.

        Raises:
            ValueError: too many codes, or incompatible conditions.
        """
        self.check_length(codes)
        length = codes.shape[1]
        start, positions = self.conditioner(conditions, self.context_length)
        condition = start.new_zeros(1) if positions is None else positions[:, :length]
        before = self.code_embedding(self.rows_of((codes if known is None else known)[:, :-1]))
        before = before if self.codebooks is None else before.sum(2)
        inputs = torch.cat([start[:, None], before.to(start.dtype)], 1)
        h = self.transformer(inputs + self.position_embedding[:length] + condition) + condition
        return h @ self.code_embedding.weight.t() if self.heads is None else self.heads(h, codes)
