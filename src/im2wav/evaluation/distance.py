"""How far apart two sounds are."""

import torch
import torchaudio.transforms
from torch import Tensor

FLOOR = 20.0  # dB under the loudest cell; what is weaker counts as silence, so that faint hiss does not decide


def log_mel(wav: Tensor, sample_rate: int, floor: float = FLOOR, frame: float = 0.064) -> Tensor:
    """Log-mel spectrogram of wav [N]: [frames, 64], in dB above `floor` dB under the loudest cell; 0 is silence.

    64 mel bands, Hann frames of `frame` seconds, half overlapping. The loudest cell comes to `floor`, so that the
    loudness of the whole sound does not count.
    """
    window = int(sample_rate * frame)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=window, hop_length=window // 2, n_mels=64, norm="slaney", mel_scale="htk"
    )
    decibels = 10 * mel(wav.float()).clamp_min(1e-10).log10()
    return (decibels - decibels.max() + floor).clamp_min(0).T


def mel_distance(one: Tensor, other: Tensor) -> float:
    """Distance of two log-mel spectrograms [frames, bands] over the best alignment: 0 equal, 1 nothing in common.

    The shorter one slides over the longer one; at each place the two are compared as vectors by 1 - cosine.
    """
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    windows = long.unfold(0, len(short), 1).transpose(1, 2).flatten(1)  # [alignments, frames * bands]
    return 1 - torch.nn.functional.cosine_similarity(windows, short.flatten()[None], dim=1).max().item()


def si_sdr(target: Tensor, output: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis (Le Roux et al., 2019); means are removed."""
    target, output = (x - x.mean(-1, keepdim=True) for x in (target, output))
    energy = target.square().sum(-1, keepdim=True).clamp_min(1e-12)
    projection = (output * target).sum(-1, keepdim=True) / energy * target
    noise = (output - projection).square().sum(-1).clamp_min(1e-12)
    return 10 * (projection.square().sum(-1).clamp_min(1e-12) / noise).log10()


def log_stft_distance(target: Tensor, output: Tensor, floor: float = 1e-5) -> Tensor:
    """Mean absolute difference of log-magnitude spectrograms in dB, over three resolutions: waves [B, N] -> [B].

    Windows of 2048, 1024 and 512 samples, a quarter of which is the hop; magnitudes under `floor` count as it.
    """
    distances = []
    for size in (2048, 1024, 512):
        window = torch.hann_window(size, device=target.device, dtype=target.dtype)
        logs = [
            20 * torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(floor).log10()
            for x in (target, output)
        ]
        distances.append((logs[0] - logs[1]).abs().mean((1, 2)))
    return torch.stack(distances).mean(0)
