"""Distances between waveforms."""

import torch
from torch import Tensor


def best_cosine(kernels: Tensor, signals: Tensor) -> Tensor:
    """Cosine of log-mel spectrograms over the best alignment: kernels [K, L, M], signals [S, T >= L, M] -> [S, K].

    The kernel slides over the signal and is compared as a vector at each position.
    """
    kernels, signals = kernels.transpose(1, 2), signals.transpose(1, 2)
    products = torch.nn.functional.conv1d(signals, kernels)  # [S, K, alignments]
    window = torch.ones(1, 1, kernels.shape[2])
    energy = torch.nn.functional.conv1d(signals.square().sum(1, keepdim=True), window).clamp_min(0)
    norms = kernels.flatten(1).norm(dim=1)[:, None] * energy.sqrt()
    return (products / norms.clamp_min(1e-8)).amax(-1)


def mel_distance(one: Tensor, other: Tensor) -> float:
    """Distance of two log-mel spectrograms [frames, bands] over the best alignment: 0 equal, 1 nothing in common."""
    short, long = sorted((one, other), key=len)
    return 1 - best_cosine(short[None], long[None]).item()


def si_sdr(target: Tensor, output: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis (Le Roux et al., 2019); means are removed."""
    target, output = (x - x.mean(-1, keepdim=True) for x in (target, output))
    energy = target.square().sum(-1, keepdim=True).clamp_min(1e-12)
    projection = (output * target).sum(-1, keepdim=True) / energy * target
    noise = (output - projection).square().sum(-1).clamp_min(1e-12)
    return 10 * (projection.square().sum(-1).clamp_min(1e-12) / noise).log10()


def log_stft_distance(target: Tensor, output: Tensor, minimum: float = 1e-5) -> Tensor:
    """Mean absolute difference of log-magnitude spectrograms in dB, over three resolutions: waveforms [B, N] -> [B].

    Windows of 2048, 1024 and 512 samples, with a hop of a quarter; magnitudes are clamped to at least `minimum`.
    """
    distances = []
    for size in (2048, 1024, 512):
        window = torch.hann_window(size, device=target.device, dtype=target.dtype)
        logs = [
            20 * torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(minimum).log10()
            for x in (target, output)
        ]
        distances.append((logs[0] - logs[1]).abs().mean((1, 2)))
    return torch.stack(distances).mean(0)
