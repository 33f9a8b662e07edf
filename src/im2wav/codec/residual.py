"""A residual codec: audio <-> frames of codes at 50 Hz, from and to short-time spectra.

Every frame has `codebooks` codes: a coarse one, and codes of what remains, one after another. Level `low` is the first
`low_codebooks` of them, level `up` is all of them, so that each level decodes to audio on its own.

Letters: B batch, N samples, T frames of codes, S = 2 T short-time spectra, Q codebooks, L latent width.
Sources: residual quantisation with quantiser dropout, Zeghidour et al. 2021 (SoundStream); spectral output, Siuzdak
2023 (Vocos); ConvNeXt blocks, Liu et al. 2022.
"""

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.codec.codec import LEVELS, Codec, CodecOutput, Reach, check_levels, check_wav, exact_fp32, measured_reach
from im2wav.codec.quantizer import Codebook, ResidualQuantizer
from im2wav.codec.spectra import (
    BINS,
    HOP,
    LEAST,
    PER_FRAME,
    WINDOW,
    band_filters,
    bin_weights,
    code_noise,
    spectra,
    waveform,
    with_noise,
)

log = logging.getLogger(__name__)

LARGEST = math.log(1e3)  # of a log magnitude
SMALL_SHARE = 0.15  # of noise, in magnitude


class ConvNeXtBlock(nn.Module):
    """`x + scale * MLP(norm(depthwise convolution(x)))` over time, [B, W, T] -> the same shape."""

    def __init__(self, width: int, kernel: int = 7, expansion: int = 3):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, expansion * width)
        self.mlp_out = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to x [B, W, T]."""
        h = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.mlp_out(F.gelu(self.mlp_in(h)))).transpose(1, 2)


def _stack(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))


class SpectralEncoder(nn.Module):
    """Audio [B, 1, N] -> latents [B, L, T]: a linear map of a frame's log magnitudes, and a network that adds to it."""

    def __init__(self, width: int, depth: int, latent: int):
        super().__init__()
        self.linear = nn.Conv1d(PER_FRAME * BINS, latent, 1)
        self.inp = nn.Conv1d(PER_FRAME * BINS, width, 3, padding=1)
        self.blocks = _stack(width, depth)
        self.out = nn.Conv1d(width, latent, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    @staticmethod
    def features(wav: Tensor) -> Tensor:
        """Log magnitudes of the spectra of each frame, [B, PER_FRAME * BINS, T], about -1 to 1."""
        log = (spectra(wav.float()).abs() + LEAST).log() / math.log(1 / LEAST)
        return log.unflatten(2, (-1, PER_FRAME)).permute(0, 3, 1, 2).flatten(1, 2)

    def forward(self, wav: Tensor) -> Tensor:
        """Encode audio [B, 1, N]."""
        features = self.features(wav).to(self.linear.weight.dtype)
        return self.linear(features) + self.out(self.blocks(self.inp(features)))


class SpectralDecoder(nn.Module):
    """Quantised latents [B, L, T] -> audio [B, 1, N] through magnitudes and phases of the spectra of each frame.

    With `noise_bands`, the spectra are mixtures of such phases and of noise, whose share of each band is predicted, as
    in vocoders: rain has no phases to predict.
    """

    def __init__(self, width: int, depth: int, latent: int, noise_bands: int = 0):
        super().__init__()
        self.share = nn.Linear(width, noise_bands) if noise_bands else None
        if self.share is not None:
            nn.init.zeros_(self.share.weight)
            nn.init.constant_(self.share.bias, -1.0)
        self.linear = nn.Conv1d(latent, PER_FRAME * BINS, 1)
        self.inp = nn.Conv1d(latent, width, 7, padding=3)
        self.blocks = _stack(width, depth)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3 * PER_FRAME * BINS)
        with torch.no_grad():  # magnitudes begin as the linear map; phases begin spread over the circle
            magnitude, phase = self.out.weight[: PER_FRAME * BINS], self.out.weight[PER_FRAME * BINS :]
            magnitude.zero_()
            phase.normal_(std=1 / width**0.5)
            self.out.bias.zero_()

    def spectrum(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Complex spectra without noise [B, BINS, S] of latents [B, L, T], and the shares of noise in them, if any."""
        h = self.norm(self.blocks(self.inp(latents)).transpose(1, 2))
        log, real, imaginary = self.out(h).float().transpose(1, 2).chunk(3, 1)
        log = (log + self.linear(latents).float()) * math.log(1 / LEAST)
        log, real, imaginary = (
            x.unflatten(1, (PER_FRAME, BINS)).permute(0, 2, 3, 1).flatten(2) for x in (log, real, imaginary)
        )
        magnitude = log.clamp_max(LARGEST).exp() - LEAST
        scale = magnitude.clamp_min(0.0) * (real.square() + imaginary.square() + 1e-6).rsqrt()
        spectrum = torch.complex(scale * real, scale * imaginary)
        if self.share is None:
            return spectrum, None
        share = self.share(h).float().sigmoid() @ band_filters(self.share.out_features, h.device)
        return spectrum, share.transpose(1, 2).repeat_interleave(PER_FRAME, 2)

    def forward(self, latents: Tensor, noise: Tensor | None = None, other: Tensor | None = None) -> Any:
        """Decode latents [B, L, T] to audio [B, 1, N], N = T * PER_FRAME * HOP.

        Args:
            latents: [B, L, T].
            noise: of unit variance, [B, 1, N]; None: decode without noise.
            other: the same for a second output, to learn the shares of noise from. The gradient of the first output
                does not reach them, and that of the second one nothing else of the spectra: their distances would teach
                that noise only costs.
        """
        spectrum, share = self.spectrum(latents)
        if share is None or noise is None:
            return waveform(spectrum)
        # small shares are left out: a little noise makes tones rough, a little less does not change noise
        audible = ((share.detach() - SMALL_SHARE) / (1 - SMALL_SHARE)).clamp_min(0.0)
        wav = waveform(with_noise(spectrum, audible, noise))
        return wav if other is None else (wav, waveform(with_noise(spectrum.detach(), share, other)))


class ResidualCodec(Codec):
    """Codec with a residual quantiser at 50 frames a second (16 kHz). It has the interface of `AudioCodec`.

    Args:
        codebook_size: codes of each codebook.
        codebooks: codes of a frame, Q; 8 codebooks of 1,024 are 4 kbit/s.
        low_codebooks: how many of them are level `low`.
        latent: width of the latents, L.
        encoder_width, encoder_depth, decoder_width, decoder_depth: sizes of the networks.
        dropout: fraction of the training items that are decoded from a random number of codebooks, at least
            `low_codebooks`, so that both levels decode well.
        codebook: additional options of `Codebook`.
        noise_bands: bands of the mel scale in which the decoder adds noise, which is a function of the codes; 0: none.

    Raises:
        ValueError: `low_codebooks` is not 1 to `codebooks` - 1.
    """

    def __init__(
        self,
        codebook_size: int = 1024,
        codebooks: int = 8,
        low_codebooks: int = 2,
        latent: int = 64,
        encoder_width: int = 192,
        encoder_depth: int = 4,
        decoder_width: int = 256,
        decoder_depth: int = 6,
        dropout: float = 0.5,
        codebook: Mapping | None = None,
        noise_bands: int = 0,
    ):
        super().__init__()
        if not 0 < low_codebooks < codebooks:
            raise ValueError(f"low_codebooks={low_codebooks}: expected 1 to codebooks - 1 = {codebooks - 1}")
        self.codebook_size, self.code_dim, self.dropout = codebook_size, latent, dropout
        self.hop_lengths = dict.fromkeys(LEVELS, PER_FRAME * HOP)
        self.code_shapes = {"low": (low_codebooks,), "up": (codebooks,)}
        self.encoder = SpectralEncoder(encoder_width, encoder_depth, latent)
        self.quantizer = ResidualQuantizer(codebooks, codebook_size, latent, **(codebook or {}))
        self.decoder = SpectralDecoder(decoder_width, decoder_depth, latent, noise_bands)
        self._reach: Reach | None = None

    def encode(self, wav: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """Encode audio [B, 1, N] to codes [B, N / 320, codebooks of the level] by level; see `AudioCodec.encode`.

        Raises:
            ValueError: audio is not mono, N is not a multiple of 320, or a level is unknown.
        """
        check_wav(wav, self.hop_lengths["low"])
        check_levels(levels)
        most = max(self.code_shapes[level][0] for level in levels)
        with exact_fp32(wav.device):
            codes = self.quantizer.encode(self.encoder(wav), most)
        return {level: codes[..., : self.code_shapes[level][0]] for level in levels}

    def decode(self, codes: Tensor | Mapping[str, Tensor], level: str) -> Tensor:
        """Decode the codes [B, T, codebooks] of one level, or the dict returned by `encode`, to audio [B, 1, T * 320].

        Raises:
            ValueError: unknown level.
        """
        check_levels([level])
        if isinstance(codes, Mapping):
            codes = codes[level]
        with exact_fp32(next(self.parameters()).device):
            return self.decoder(self.quantizer.decode(codes), self._noise(codes))

    def _noise(self, codes: Tensor, salt: int = 0) -> Tensor | None:
        return None if self.decoder.share is None else code_noise(codes, salt)

    def counts(self, seeds: Sequence[int]) -> Tensor:
        """Number of codebooks that training items are decoded from, [B], for a seed of each (quantiser dropout)."""
        low, most = self.code_shapes["low"][0], self.code_shapes["up"][0]
        draws = [random.Random(seed) for seed in seeds]
        return torch.tensor([d.randint(low, most) if d.random() < self.dropout else most for d in draws])

    def forward(self, wav: Tensor, counts: Tensor | None = None) -> CodecOutput:
        """Encode, quantise and decode audio [B, 1, N]; update the codebooks in training mode.

        Args:
            wav: N is a multiple of 320.
            counts: number of codebooks that each item is decoded from, [B]: there is one reconstruction, `up`. None:
                one of each level.
        """
        check_wav(wav, self.hop_lengths["low"])
        latents = self.encoder(wav)
        if counts is not None:
            found = {"up": self.quantizer(latents, counts.to(wav.device))}
        else:
            found = {level: self.quantizer(latents, torch.tensor(self.code_shapes[level])) for level in LEVELS}
        waves: dict[str, Tensor] = {}
        noisy: dict[str, Tensor] = {}
        for level, q in found.items():
            noise = self._noise(q.codes[..., : self.code_shapes[level][0]])
            if noise is None or not self.training:
                waves[level] = self.decoder(q.latents, noise)
            else:
                waves[level], noisy[level] = self.decoder(q.latents, noise, self._noise(q.codes, salt=1))
        return CodecOutput(
            wav=waves,
            noisy=noisy,
            codes={level: q.codes for level, q in found.items()},
            commit_loss={level: q.commit_loss for level, q in found.items()},
            metrics={level: q.metrics for level, q in found.items()},
        )

    def named_codebooks(self) -> dict[str, Codebook]:
        """The codebooks, by number."""
        return {str(number): book for number, book in enumerate(self.quantizer.codebooks)}  # type: ignore[misc]

    def regions(self) -> list[nn.Module]:
        """Parts that can be compiled and sharded, see `AudioCodec.regions`."""
        return [self.encoder, self.decoder]

    @torch.inference_mode()
    def reach(self, level: str) -> Reach:
        """Receptive field of the decoder, the same for both levels; see `AudioCodec.reach`.

        Raises:
            ValueError: the receptive field is not bounded.
        """
        if self._reach is None:
            self._reach = measured_reach(self.decoder, self.code_dim, self.hop_lengths[level])
        return self._reach

    @property
    def encoder_reach(self) -> int:
        """Maximum distance in samples that a code depends on."""
        kernels = [m.kernel_size[0] for m in self.encoder.modules() if isinstance(m, nn.Conv1d)]
        return sum(kernel // 2 for kernel in kernels) * self.hop_lengths["low"] + WINDOW

    def training_output(self, wav: Tensor, seeds: Sequence[int]) -> CodecOutput:
        """The forward pass of a training step, with quantiser dropout."""
        return self(wav, self.counts(seeds))

    @torch.no_grad()
    def initialise_from(self, windows: Iterable[Tensor]) -> None:
        """Initialise from training audio, windows [1, N]: a codec of log magnitudes without gradients.

        The linear maps become the principal components (PCA) of the log magnitudes and their inverse, the codebooks the
        k-means centres of what the codebooks before leave. Deterministic, so that all processes of a training agree.
        """
        log.info("initialising the codec from training audio")
        weights = bin_weights().repeat(PER_FRAME)
        features = (
            torch.cat([self.encoder.features(wav[None].float()) for wav in windows], 2)[0].t() * weights
        )  # [M, bins]
        mean = features.mean(0)
        components = torch.linalg.eigh(((features - mean).t() @ (features - mean)).double()).eigenvectors
        components = components[:, -self.code_dim :].flip(1).float()  # [bins, L]
        latents = (features - mean) @ components
        scale = latents.square().mean().sqrt().clamp_min(1e-6)
        self.encoder.linear.weight.copy_((weights[:, None] * components).t()[..., None] / scale)
        self.encoder.linear.bias.copy_(-(mean @ components) / scale)  # type: ignore[union-attr]
        self.decoder.linear.weight.copy_((components / weights[:, None])[..., None] * scale)
        self.decoder.linear.bias.copy_(mean / weights)  # type: ignore[union-attr]
        self.quantizer.initialise_from(latents / scale)
