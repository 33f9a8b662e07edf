"""Reconstruction losses of the codec. Audio is [B, 1, N]; every loss is a scalar.

Source: Jukebox (Dhariwal et al., 2020) with the weights of Im2Wav. Each loss is divided by the same
statistic of the training audio (`Bandwidth`), which makes the terms comparable and independent of the loudness.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.codec.codec import CodecOutput

# (n_fft, hop, window) in samples
SPECTRAL = (2048, 256, 1536)
MULTISPECTRAL = ((2048, 240, 1200), (1024, 120, 600), (512, 50, 240))


def magnitude(wav: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """Magnitude spectrogram [B, n_fft // 2 + 1, frames] of wav [B, 1, N]: Hann window, centred, reflection padding."""
    hann = torch.hann_window(window, device=wav.device, dtype=wav.dtype)
    return torch.stft(wav.squeeze(1), n_fft, hop, window, hann, return_complex=True).abs()


def _norm(x: Tensor) -> Tensor:
    """Frobenius norm of each item, [B, ...] -> [B]."""
    return x.flatten(1).norm(dim=1)


def spectral_distance(target: Tensor, output: Tensor, stft: tuple[int, int, int] = SPECTRAL) -> Tensor:
    """Norm of the difference of the magnitude spectrograms per item, [B]."""
    return _norm(magnitude(target, *stft) - magnitude(output, *stft))


def multispectral_distance(target: Tensor, output: Tensor) -> Tensor:
    """Mean of `spectral_distance` over three resolutions per item, [B]."""
    return torch.stack([spectral_distance(target, output, stft) for stft in MULTISPECTRAL]).mean(0)


def spectral_convergence(target: Tensor, output: Tensor, epsilon: float = 2e-3) -> Tensor:
    """`spectral_distance` divided by the norm of the target per item, [B]; 0 for silent targets."""
    size = _norm(magnitude(target, *SPECTRAL))
    return torch.where(size > epsilon, spectral_distance(target, output) / size.clamp_min(epsilon), 0.0)


def linf(residual: Tensor, k: int) -> Tensor:
    """Mean of the k largest squared residuals per item, averaged over the batch: [B, 1, N] -> scalar."""
    squared = residual.square().flatten(1)
    return squared.topk(min(k, squared.shape[1]), dim=1).values.mean()


@dataclass(frozen=True)
class Bandwidth:
    """Statistics of the training audio that normalise the losses."""

    l1: float = 1.0  # mean of |x|
    l2: float = 1.0  # variance of x
    spec: float = 1.0  # mean Frobenius norm of the magnitude spectrogram of a window

    @classmethod
    def measure(cls, windows: Iterable[Tensor]) -> "Bandwidth":
        """Compute the statistics from windows [1, N] of the training audio.

        Raises:
            ValueError: there are no windows, or all windows are silent.
        """
        count, norms = 0, []
        total = absolute = squared = torch.zeros((), dtype=torch.float64)
        for wav in windows:
            x = wav.double()
            count += x.numel()
            total, absolute, squared = total + x.sum(), absolute + x.abs().sum(), squared + x.square().sum()
            norms.append(_norm(magnitude(wav[None], *SPECTRAL)).item())
        if not count or not squared:
            raise ValueError("the training audio is silent or missing: cannot normalise the losses")
        variance = squared / count - (total / count) ** 2
        return cls(l1=float(absolute / count), l2=float(variance), spec=sum(norms) / len(norms))

    def to_dict(self) -> dict[str, float]:
        """Convert to a plain dict for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class CodecLoss:
    """Training objective: a weighted sum of losses over both levels.

    Attributes:
        commit: weight of the commitment loss.
        spectral: weight of the spectral distance at one resolution (0 in Im2Wav).
        multispectral: weight of the spectral distance averaged over three resolutions.
        linf: weight of the largest residuals relative to the squared error, whose weight is 1.
        linf_k: number of largest residuals per item.
    """

    commit: float = 0.02
    spectral: float = 0.0
    multispectral: float = 1.0
    linf: float = 0.02
    linf_k: int = 2048

    def __call__(self, target: Tensor, output: CodecOutput, bandwidth: Bandwidth) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its named terms for target [B, 1, N]."""
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


# (n_fft, hop, window) in samples, number of mel bands
MEL_SPECTRAL = (((2048, 512, 2048), 160), ((1024, 256, 1024), 80), ((512, 128, 512), 40), ((256, 64, 256), 20))
FLATNESS = ((2048, 320), (256, 64))  # (n_fft, hop)
FLATNESS_BANDS, FLATNESS_CELL, FLATNESS_STEP = 12, 2240, 320  # mel bands; samples of a cell, and between cells


@lru_cache
def mel_filters(n_fft: int, bands: int, sample_rate: int) -> np.ndarray:
    """Triangular mel filters [n_fft // 2 + 1, bands] for magnitude spectra (HTK's mel scale), float32.

    An array, because a tensor made while memory is counted would be fake, and stay in the cache.
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)  # Hz
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.minimum(rising, falling).clip(0).astype(np.float32)


def texture_distance(target: Tensor, output: Tensor, sample_rate: int, least: float) -> Tensor:
    """Mean absolute difference of the log spectral flatness of audio [B, 1, N] in cells of a mel band and 140 ms.

    Flatness is the geometric mean of the power divided by its arithmetic mean. Noise has about 0.56, tones less in long
    windows, clicks less in short ones; it does not depend on which noise it is, as distances of spectra do. Source:
    Gray and Markel 1974.
    """
    distances = []
    for n_fft, hop in FLATNESS:
        filters = torch.from_numpy(mel_filters(n_fft, FLATNESS_BANDS, sample_rate)).to(target)
        filters, cell, step = filters / filters.sum(0), FLATNESS_CELL // hop, FLATNESS_STEP // hop
        flatness = []
        for wav in (target, output.float()):
            power = magnitude(wav, n_fft, hop, n_fft).square().transpose(1, 2) + least**2
            means = torch.cat([power @ filters, power.log() @ filters], 2).transpose(1, 2)
            means = F.avg_pool1d(means, cell, step, cell // 2, count_include_pad=False)
            arithmetic, geometric = means.chunk(2, 1)
            flatness.append(geometric - arithmetic.log())
        distances.append((flatness[0] - flatness[1]).abs().mean())
    return torch.stack(distances).mean()


@dataclass(frozen=True)
class SpectralLoss:
    """Training objective of residual codecs, over several resolutions of the short-time Fourier transform (STFT).

    It compares spectra, not samples: the codec does not encode phases.

    Attributes:
        commit: weight of the commitment loss.
        mel: weight of the mean absolute difference of log mel spectra (natural logarithm).
        stft: weight of the same of log magnitudes, which see single bins.
        texture: for codecs that add noise: weight of the distance of spectral flatness, which teaches the shares of
            noise, see `texture_distance`.
        sample_rate: Hz.
        least: added to magnitudes before the logarithm.
    """

    commit: float = 0.25
    mel: float = 1.0
    stft: float = 0.5
    texture: float = 1.0
    sample_rate: int = 16000
    least: float = 1e-2

    def __call__(self, target: Tensor, output: CodecOutput, bandwidth: Bandwidth) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its named terms for target [B, 1, N]; `bandwidth` is not needed."""
        parts: dict[str, Tensor] = {}
        for level, wav in output.wav.items():
            parts[f"mel/{level}"], parts[f"stft/{level}"] = self._distances(target, wav)
            parts[f"commit/{level}"] = output.commit_loss[level]
            if level in output.noisy:
                parts[f"texture/{level}"] = texture_distance(target, output.noisy[level], self.sample_rate, self.least)
        weights = {"mel": self.mel, "stft": self.stft, "commit": self.commit, "texture": self.texture}
        total = torch.stack([weights[name.split("/")[0]] * value for name, value in parts.items()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    def _distances(self, target: Tensor, wav: Tensor) -> tuple[Tensor, Tensor]:
        """Distances of log mel spectra and of log magnitudes, means over the resolutions."""
        mel, stft = [], []
        for size, bands in MEL_SPECTRAL:
            filters = torch.from_numpy(mel_filters(size[0], bands, self.sample_rate)).to(target)
            both = [magnitude(x.float(), *size) for x in (target, wav)]
            stft.append(self._distance(*both))
            mel.append(self._distance(*(x.transpose(1, 2) @ filters for x in both)))
        return torch.stack(mel).mean(), torch.stack(stft).mean()

    def _distance(self, target: Tensor, output: Tensor) -> Tensor:
        return ((target + self.least).log() - (output + self.least).log()).abs().mean()
