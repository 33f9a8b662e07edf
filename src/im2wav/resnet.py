"""Dilated residual stacks of 1-D convolutions, shared by the codec and by the up prior's conditioner.

Source: Jukebox (Dhariwal et al., 2020) as used by Im2Wav; the same two blocks serve both networks there.
All tensors are [B, C, T].
"""

from collections.abc import Sequence

from torch import Tensor, nn


class ResBlock(nn.Module):
    """`x + conv1(relu(conv3(relu(x), dilation)))`, [B, width, T] -> the same shape."""

    def __init__(self, width: int, dilation: int = 1, hidden: int | None = None):
        super().__init__()
        hidden = hidden or width
        self.dilated = nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x [B, width, T]."""
        return x + self.pointwise(self.dilated(x.relu()).relu())


def resnet(
    width: int, depth: int, growth: int, cycle: int | None = None, hidden: int | None = None, reverse: bool = False
) -> nn.Sequential:
    """Stack `depth` residual blocks with dilations growth^0, growth^1, ...

    Args:
        width: channels.
        depth: number of blocks.
        growth: ratio of the dilations of consecutive blocks.
        cycle: after this many blocks the dilations start again at 1; None for never.
        hidden: channels inside a block; `width` where None.
        reverse: largest dilation first, as in decoders.
    """
    dilations = [growth ** (d % cycle if cycle else d) for d in range(depth)]
    if reverse:
        dilations.reverse()
    return nn.Sequential(*(ResBlock(width, dilation, hidden) for dilation in dilations))


def check_strides(strides: Sequence[int]) -> None:
    """Reject strides for which kernel 2s and padding s // 2 do not divide the length exactly.

    Raises:
        ValueError: a stride is not a positive even number.
    """
    if not strides or any(s < 2 or s % 2 for s in strides):
        raise ValueError(f"strides={list(strides)}: expected even numbers from 2 up (kernel 2s, padding s/2)")


class UpsampleStack(nn.Module):
    """A 3-tap convolution, then for each stride a residual stack and a transposed convolution.

    [B, in_dim, T] -> [B, out_dim, T * prod(strides)]. Serves as a block of the codec's decoder (dilations reversed)
    and as the network that upsamples coarse codes (not reversed).
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
