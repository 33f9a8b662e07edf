"""Short-time spectra of the residual codec: from and to audio, and the noise in them.

Letters: B batch, N samples, T frames of codes, S = 2 T short-time spectra, Q codebooks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 640  # samples: 40 ms at 16 kHz
HOP = 160  # samples between spectra: 100 Hz
PER_FRAME = 2  # spectra in a frame of codes
BINS = WINDOW // 2 + 1
LEAST = 1e-2  # added to magnitudes before the logarithm; a full-scale sine has a magnitude of 160


def spectra(wav: Tensor) -> Tensor:
    """Audio [B, 1, N] -> complex short-time spectra [B, BINS, N / HOP], each centred on its hop."""
    padded = F.pad(wav[:, 0], ((WINDOW - HOP) // 2,) * 2)
    window = torch.hann_window(WINDOW, device=wav.device, dtype=wav.dtype)
    return torch.fft.rfft(padded.unfold(1, WINDOW, HOP) * window).transpose(1, 2)


def waveform(spectrum: Tensor) -> Tensor:
    """The inverse of `spectra`, by overlap-add: complex [B, BINS, S] -> [B, 1, S * HOP]."""
    window = torch.hann_window(WINDOW, device=spectrum.device, dtype=spectrum.real.dtype)
    count, margin = spectrum.shape[2], (WINDOW - HOP) // 2
    pieces = torch.fft.irfft(spectrum, WINDOW, dim=1) * window[:, None]
    size = {"output_size": (1, (count - 1) * HOP + WINDOW), "kernel_size": (1, WINDOW), "stride": (1, HOP)}
    summed = F.fold(pieces, **size)[:, :, 0]
    envelope = F.fold(window.square()[None, :, None].expand(1, -1, count), **size)[:, :, 0]
    return (summed / envelope.clamp_min(1e-8))[..., margin:-margin]


def code_noise(codes: Tensor, salt: int = 0) -> Tensor:
    """White noise [B, 1, T * PER_FRAME * HOP] of unit variance for codes [B, T, Q], by integer hashing of each frame.

    The same codes give the same noise on every device, wherever in a block they lie: streamed audio equals audio that
    is decoded at once. Frames of noise rarely have all codes in common, so that it does not repeat. The hash is that of
    Wellons 2018 (lowbias32).
    """

    def mix(x: Tensor) -> Tensor:  # of 32 bits in int64; products wrap around
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    frame = torch.full_like(codes[..., 0], salt, dtype=torch.int64)
    for code in codes.unbind(-1):
        frame = mix(frame * 31 + code + 1 & 0xFFFFFFFF)
    samples = torch.arange(PER_FRAME * HOP, device=codes.device)
    uniform = mix(mix(samples + 1) + frame[..., None] & 0xFFFFFFFF).float() / 2**32 - 0.5
    return (math.sqrt(12) * uniform).flatten(1)[:, None]


def band_filters(bands: int, device: torch.device | None = None) -> Tensor:
    """Weights [bands, BINS] that interpolate values of bands, evenly spaced on the mel scale, at the bins; sum 1."""
    mel = (1 + torch.linspace(0, 8000, BINS, device=device) / 700).log()
    return (1 - (mel * ((bands - 1) / mel[-1]) - torch.arange(bands, device=device)[:, None]).abs()).clamp_min(0)


def with_noise(spectrum: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """Mix noise [B, 1, N] of unit variance into spectra [B, BINS, S]; shares of its magnitude [B, BINS, S], 0 to 1."""
    random = spectra(noise) / math.sqrt(WINDOW * 3 / 8)  # the energy of the window
    rest = (1 - share.square()).clamp_min(1e-4).sqrt()  # its gradient would be infinite at 0
    return rest * spectrum + share * spectrum.abs() * random


def bin_weights() -> Tensor:
    """Weight of each bin [BINS] by the width of the mel scale that it covers, so that no octave dominates; mean 1."""
    density = (1 / (700 + torch.linspace(0, 8000, BINS))).sqrt()
    return density / density.mean()
