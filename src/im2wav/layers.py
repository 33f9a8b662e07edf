"""Layers that codec and priors share: dilated residual stacks of 1-D convolutions, embeddings and a layer norm.

Source: Jukebox (Dhariwal et al., 2020) as used by Im2Wav; the same blocks serve both networks there.
Convolutions are [B, C, T].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 and returns the input dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class ResBlock(nn.Module):
    """`x + conv1(relu(conv3(relu(x), dilation)))`, [B, width, T] -> the same shape."""

    def __init__(self, width: int, dilation: int = 1, hidden: int | None = None):
        super().__init__()
        hidden = hidden or width
        self.dilated = nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to x [B, width, T]."""
        return x + self.pointwise(self.dilated(x.relu()).relu())


def resnet(
    width: int, depth: int, growth: int, cycle: int | None = None, hidden: int | None = None, reverse: bool = False
) -> nn.Sequential:
    """Stack `depth` residual blocks with dilations growth^0, growth^1, ...

    Args:
        width: channels.
        depth: number of blocks.
        growth: ratio of the dilations of consecutive blocks.
        cycle: number of blocks after which dilations start at 1 again; None for never.
        hidden: channels inside a block; `width` if None.
        reverse: largest dilation first, as in decoders.
    """
    dilations = [growth ** (d % cycle if cycle else d) for d in range(depth)]
    if reverse:
        dilations.reverse()
    return nn.Sequential(*(ResBlock(width, dilation, hidden) for dilation in dilations))


def check_strides(strides: Sequence[int]) -> None:
    """Reject strides for which kernel 2s and padding s // 2 do not give an exact multiple of the length.

    Raises:
        ValueError: a stride is not a positive even number.
    """
    if not strides or any(s < 2 or s % 2 for s in strides):
        raise ValueError(f"strides={list(strides)}: expected even numbers from 2 up (kernel 2s, padding s/2)")


class DownsampleStack(nn.Module):
    """A strided convolution and a residual stack per stride, then a convolution with kernel size 3.

    [B, in_dim, T] -> [B, out_dim, T / prod(strides)].
    """

    def __init__(self, in_dim: int, width: int, out_dim: int, strides: Sequence[int], **stack):
        super().__init__()
        check_strides(strides)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv1d(in_dim if i == 0 else width, width, 2 * s, s, s // 2), resnet(width, **stack))
            for i, s in enumerate(strides)
        )
        self.out = nn.Conv1d(width, out_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample x [B, in_dim, T] by the product of the strides."""
        for stage in self.stages:
            x = stage(x)
        return self.out(x)


class UpsampleStack(nn.Module):
    """A 3-tap convolution, then for each stride a residual stack and a transposed convolution.

    [B, in_dim, T] -> [B, out_dim, T * prod(strides)]. A block of the codec's decoder (dilations reversed), and
    the network that upsamples low codes to the rate of up codes (not reversed).
    """

    def __init__(self, in_dim: int, width: int, out_dim: int, strides: Sequence[int], **stack):
        super().__init__()
        check_strides(strides)
        self.inp = nn.Conv1d(in_dim, width, 3, padding=1)
        outs = [width] * (len(strides) - 1) + [out_dim]
        self.stages = nn.ModuleList(
            nn.Sequential(resnet(width, **stack), nn.ConvTranspose1d(width, out, 2 * s, s, s // 2))
            for s, out in zip(strides, outs, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upsample x [B, in_dim, T] by the product of the strides."""
        x = self.inp(x)
        for stage in self.stages:
            x = stage(x)
        return x
