"""A layer of a prior's transformer for decoding. R rows of the network, W width, n positions."""

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from im2wav.decoding.kv_cache import LayerCache, Place
from im2wav.decoding.linear import Linear
from im2wav.prior.transformer import Kind, Layer, attend

# a number, or for positions on the device an entry of `PlaceTable`
Position = int | Mapping[Kind, Place]

GELU = 1.702  # quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702: the weights around it contain the factor


class Norm:
    """A layer norm in fp32."""

    def __init__(self, norm: nn.LayerNorm):
        self.weight, self.bias = (x.to(torch.float32, copy=True) for x in (norm.weight, norm.bias))
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., W] -> [..., W]."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Weight and bias [W]."""
        return self.weight, self.bias


class DecoderLayer:
    """A layer of the transformer with its own copy of the weights; the residual stream is fp32."""

    def __init__(self, layer: Layer, linear: Callable[..., Linear]):
        self.kind, self.block, self.heads = layer.kind, layer.block, layer.heads
        self.norm_attention = Norm(layer.norm_attention)
        self.norm_mlp = Norm(layer.norm_mlp)
        self.qkv = linear(layer.qkv.weight, layer.qkv.bias)
        self.attention_out = linear(layer.attention_out.weight, layer.attention_out.bias)
        self.mlp_in = linear(layer.mlp_in.weight * GELU, layer.mlp_in.bias * GELU, silu=True)
        self.mlp_out = linear(layer.mlp_out.weight / GELU, layer.mlp_out.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(linear.nbytes for linear in (self.qkv, self.attention_out, self.mlp_in, self.mlp_out))

    def attend(self, qkv: Tensor, cache: LayerCache, position: Position) -> Tensor:
        """Store keys and values of qkv [R, 3 A], and attend: [R, A]. A is the width of attention."""
        qkv = qkv.to(cache.buffer.dtype).view(len(qkv), 3, self.heads, 1, -1).transpose(0, 1)
        if isinstance(position, int):
            out = cache.attend(qkv[0], qkv[1:], position)
        else:
            out = cache.attend_at(qkv[0], qkv[1:], position[self.kind])
        return out.view(qkv.shape[1], -1)

    def step(self, x: Tensor, cache: LayerCache, position: Position) -> Tensor:
        """One position of every sequence, x [R, W] -> [R, W], in place to save operations."""
        x.add_(self.attention_out(self.attend(self.qkv(self.norm_attention(x)), cache, position)))
        return x.add_(self.mlp_out(self.mlp_in(self.norm_mlp(x))))

    def prefill(self, x: Tensor, cache: LayerCache, rows: Tensor) -> Tensor:
        """Positions 0 to n - 1 of the sequences `rows` [b] at once, x [b, n, W] -> [b, n, W]."""
        batch = len(x)
        qkv = self.qkv(self.norm_attention(x).flatten(0, 1)).to(cache.buffer.dtype)
        q, k, v = rearrange(qkv, "(b t) (three h d) -> three b h t d", b=batch, three=3, h=self.heads)
        cache.fill(torch.stack([k, v]), rows)
        out = rearrange(attend(self.kind, q, k, v, self.block), "b h t d -> (b t) (h d)")
        x = x.flatten(0, 1) + self.attention_out(out)
        return (x + self.mlp_out(self.mlp_in(self.norm_mlp(x)))).unflatten(0, (batch, -1))
