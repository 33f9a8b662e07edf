"""Reconstruction losses of the codec. Waves are [B, 1, N]; every loss is a scalar.

Source: Jukebox (Dhariwal et al., 2020) with the weights of Im2Wav. Each loss is divided by the same quantity of the
training sounds themselves (`Bandwidth`), which makes the terms comparable and keeps quiet collections trainable.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from im2wav.codec.codec import CodecOutput

# (n_fft, hop, window) in samples
SPECTRAL = (2048, 256, 1536)
MULTISPECTRAL = ((2048, 240, 1200), (1024, 120, 600), (512, 50, 240))


def magnitude(wav: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """Magnitude spectrogram of wav [B, 1, N]: [B, n_fft // 2 + 1, frames]; Hann window, centred, reflected edges."""
    hann = torch.hann_window(window, device=wav.device, dtype=wav.dtype)
    return torch.stft(wav.squeeze(1), n_fft, hop, window, hann, return_complex=True).abs()


def _norm(x: Tensor) -> Tensor:
    """Frobenius norm of each item, [B, ...] -> [B]."""
    return x.flatten(1).norm(dim=1)


def spectral_distance(target: Tensor, output: Tensor, stft: tuple[int, int, int] = SPECTRAL) -> Tensor:
    """Norm of the difference of the magnitude spectrograms, for each item [B]."""
    return _norm(magnitude(target, *stft) - magnitude(output, *stft))


def multispectral_distance(target: Tensor, output: Tensor) -> Tensor:
    """Mean of `spectral_distance` over three resolutions, for each item [B]."""
    return torch.stack([spectral_distance(target, output, stft) for stft in MULTISPECTRAL]).mean(0)


def spectral_convergence(target: Tensor, output: Tensor, epsilon: float = 2e-3) -> Tensor:
    """`spectral_distance` relative to the target's norm, for each item [B]; 0 where the target is silent."""
    size = _norm(magnitude(target, *SPECTRAL))
    return torch.where(size > epsilon, spectral_distance(target, output) / size.clamp_min(epsilon), 0.0)


def linf(residual: Tensor, k: int) -> Tensor:
    """Mean of the k largest squared residuals of each item, averaged over items: [B, 1, N] -> scalar."""
    squared = residual.square().flatten(1)
    return squared.topk(min(k, squared.shape[1]), dim=1).values.mean()


@dataclass(frozen=True)
class Bandwidth:
    """How large the training sounds are, by the measures that the losses use."""

    l1: float = 1.0  # mean of |x|
    l2: float = 1.0  # variance of x
    spec: float = 1.0  # mean Frobenius norm of the magnitude spectrogram of a window

    @classmethod
    def measure(cls, windows: Iterable[Tensor]) -> "Bandwidth":
        """Measure over windows of the training sounds, each [1, N].

        Raises:
            ValueError: there is no window, or all of them are silent.
        """
        count, norms = 0, []
        total = absolute = squared = torch.zeros((), dtype=torch.float64)
        for wav in windows:
            x = wav.double()
            count += x.numel()
            total, absolute, squared = total + x.sum(), absolute + x.abs().sum(), squared + x.square().sum()
            norms.append(_norm(magnitude(wav[None], *SPECTRAL)).item())
        if not count or not squared:
            raise ValueError("the training sounds are silent or absent: the losses cannot be normalised by them")
        variance = squared / count - (total / count) ** 2
        return cls(l1=float(absolute / count), l2=float(variance), spec=sum(norms) / len(norms))

    def to_dict(self) -> dict[str, float]:
        """As plain numbers, for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class CodecLoss:
    """The training objective: a weighted sum over both levels.

    Attributes:
        commit: weight of the commitment loss.
        spectral: weight of the distance at one resolution (0 in Im2Wav).
        multispectral: weight of the mean distance at three resolutions.
        linf: weight of the largest residuals, relative to the squared error (weight 1).
        linf_k: how many of the largest residuals of an item count.
    """

    commit: float = 0.02
    spectral: float = 0.0
    multispectral: float = 1.0
    linf: float = 0.02
    linf_k: int = 2048

    def __call__(self, target: Tensor, output: CodecOutput, bandwidth: Bandwidth) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its named parts, for target [B, 1, N]."""
        parts: dict[str, Tensor] = {}
        for level, wav in output.wav.items():
            residual = wav.float() - target
            l2 = residual.square().mean() / bandwidth.l2
            parts[f"recons/{level}"] = l2 + self.linf * linf(residual, self.linf_k) / bandwidth.l2
            parts[f"multispectral/{level}"] = multispectral_distance(target, wav.float()).mean() / bandwidth.spec
            parts[f"commit/{level}"] = output.commit_loss[level]
            if self.spectral:
                parts[f"spectral/{level}"] = spectral_distance(target, wav.float()).mean() / bandwidth.spec
        weights = {"recons": 1.0, "multispectral": self.multispectral, "commit": self.commit, "spectral": self.spectral}
        total = torch.stack([weights[name.split("/")[0]] * value for name, value in parts.items()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}
