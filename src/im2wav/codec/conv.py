"""Convolutional encoder and decoder of one codec level. Tensors are [B, C, T]."""

from collections.abc import Sequence

from torch import Tensor, nn

from im2wav.layers import UpsampleStack, check_strides, resnet


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
