"""Transformer of a prior: factored attention and MLP layers. Tensors are [B, T, W]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from im2wav.prior.attention import KINDS, Kind, attend


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter initialised from N(0, std^2).

    On the meta device (a network whose weights are loaded later) it is left uninitialised: sampling there would import
    large parts of torch.
    """
    weight = torch.empty(*shape)
    return nn.Parameter(weight if weight.is_meta else weight.normal_(std=std))


def code_table(size: int, width: int, std: float) -> nn.Embedding:
    """An embedding [size, width] initialised from N(0, std^2)."""
    return nn.Embedding.from_pretrained(normal(size, width, std=std), freeze=False)


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the approximation of GELU that the official weights were trained with."""
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        width: width of the residual stream.
        depth: number of layers; layer d uses attention kind [row, column, previous_row][d % 3].
        heads: number of attention heads.
        blocks: number of rows of the context in factored attention.
        attention_ratio: width of the queries of all heads relative to `width`.
        mlp_ratio: hidden width of the MLP, relative to `width`.
        init_scale: factor of the initial standard deviation 0.02.
        checkpointing: activation checkpointing in training: recompute the activations of layers in the backward pass.
            Uses far less memory and about a third more time; the gradients are the same.
    """

    width: int = 1024
    depth: int = 48
    heads: int = 1
    blocks: int = 64
    attention_ratio: float = 0.25
    mlp_ratio: float = 1.0
    init_scale: float = 0.7
    checkpointing: bool = False

    @property
    def attention_width(self) -> int:
        """Width of the queries of all heads together."""
        return int(self.attention_ratio * self.width)


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 and returns the input dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


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
        ValueError: `blocks` does not divide the context length, or `heads` does not divide the attention width.
    """

    def __init__(self, config: TransformerConfig, context_length: int):
        super().__init__()
        if context_length % config.blocks:
            raise ValueError(
                f"context_length={context_length} is not divisible by blocks={config.blocks}: "
                "change transformer.blocks or the window length (data.num_samples)"
            )
        if config.attention_width % config.heads:
            raise ValueError(
                f"heads={config.heads} does not divide the attention width {config.attention_width} "
                "(transformer.attention_ratio * transformer.width)"
            )
        self.config, self.context_length, self.block = config, context_length, context_length // config.blocks
        self.layers = nn.ModuleList(Layer(config, KINDS[d % 3], self.block) for d in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to complete sequences x [B, T, W] from position 0."""
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x
