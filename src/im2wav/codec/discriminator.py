"""A light discriminator of short-time spectra at several resolutions, and its losses, for training codecs.

Sources: multi-resolution STFT discriminator, Défossez et al. 2022 (EnCodec); hinge loss and feature matching, Kumar et
al. 2019 (MelGAN).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A convolution over bins and frames that strides over bins."""
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(inputs, outputs, 3, (stride, 1), 1))


def _item_means(x: Tensor) -> Tensor:
    """Mean of each item, [B, ...] -> [B]: losses are means over items, so that several processes train as one."""
    return x.flatten(1).mean(1)


class SpectrumDiscriminator(nn.Module):
    """Audio [B, 1, N] -> features of each layer; the last one holds the scores, [B, 1, bins / 16, frames]."""

    def __init__(self, n_fft: int, channels: int):
        super().__init__()
        self.n_fft = n_fft
        widths = [3, channels, channels, 2 * channels, 2 * channels]
        self.layers = nn.ModuleList(_convolution(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths)))
        self.score = _convolution(widths[-1], 1, 2)

    def forward(self, wav: Tensor) -> list[Tensor]:
        """Log magnitude and phase (as cosine and sine) through the convolutions."""
        window = torch.hann_window(self.n_fft, device=wav.device)
        spectrum = torch.stft(wav.float().squeeze(1), self.n_fft, self.n_fft // 4, window=window, return_complex=True)
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-6).sqrt()
        x = torch.stack([(magnitude + 1e-2).log(), spectrum.real / magnitude, spectrum.imag / magnitude], 1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.score(x)]


class Discriminator(nn.Module):
    """Tells recordings from reconstructions, at several resolutions.

    Args:
        n_ffts: window lengths in samples.
        channels: of the first convolutions.
        adversarial: weight of the adversarial loss of the codec.
        matching: weight of the feature matching loss of the codec.
        start_step: training step from which the codec is trained with it.
    """

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 256),
        channels: int = 12,
        adversarial: float = 0.2,
        matching: float = 0.5,
        start_step: int = 0,
    ):
        super().__init__()
        self.adversarial, self.matching, self.start_step = adversarial, matching, start_step
        self.parts = nn.ModuleList(SpectrumDiscriminator(n_fft, channels) for n_fft in n_ffts)

    def forward(self, wav: Tensor) -> list[list[Tensor]]:
        """Features of audio [B, 1, N], by resolution and layer; the last layer holds the scores."""
        return [part(wav) for part in self.parts]

    def losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Losses of the codec and of the discriminator, for recordings and reconstructions [B, 1, N], and their terms.

        The gradient of each reaches one of the two only, so that their sum trains both in one step.
        """
        judged_real, judged_fake = self(real), self(fake.detach())
        own = [
            F.relu(1 - a[-1]).mean() + F.relu(1 + b[-1]).mean() for a, b in zip(judged_real, judged_fake, strict=True)
        ]
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        judged = functional_call(self, frozen, (fake,))
        adversarial = torch.stack([-part[-1].mean() for part in judged]).mean()
        matching = torch.stack(
            [
                (_item_means((b - a.detach()).abs()) / _item_means(a.detach().abs()).clamp_min(1e-4)).mean()
                for part, other in zip(judged_real, judged, strict=True)
                for a, b in zip(part[:-1], other[:-1], strict=True)
            ]
        ).mean()
        mine = torch.stack(own).mean()
        parts = {"discriminator": mine.detach(), "adversarial": adversarial.detach(), "matching": matching.detach()}
        return self.adversarial * adversarial + self.matching * matching, mine, parts
