"""Wav2CLIP, which embeds audio in the space of CLIP image embeddings, for the CLIP score (CS).

Source: Wu et al., 2022 (lyrebird-wav2clip): a ResNet-18 on the logarithm of a power spectrogram, then two linear
layers. Each item is normalised on its own, independently of the batch.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchaudio.transforms
from torch import Tensor, nn

from im2wav.evaluation.network import Network, NetworkOutput
from im2wav.evaluation.network_weights import checked_file, load_into, read_state

N_FFT, HOP = 512, 353  # samples
ENCODER, TRANSFORM = "audio_encoder.", "audio_transform."
# unused entries of the weights file: a spectrogram buffer and the pre-training heads
UNUSED = ("audio_encoder.spectrogram.", "audio_encoder.fc.", "image_transform.")


class Wav2ClipNet(nn.Module):
    """Waveforms [B, N] at 16 kHz -> embeddings [B, 512].

    Raises:
        ValueError: torchvision is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchvision.models import resnet18
        except ImportError as error:
            raise ValueError(f"Wav2CLIP needs torchvision ({error}): pip install 'im2wav[clip]'") from error
        self.audio_encoder = resnet18(weights=None)
        self.audio_encoder.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.audio_encoder.fc = nn.Identity()
        self.audio_transform = nn.ModuleDict(
            {"sequential": nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 512))}
        )
        self._spectrogram = torchaudio.transforms.Spectrogram(N_FFT, hop_length=HOP)
        self._spectrogram.register_buffer("window", self._spectrogram.window, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Return embeddings."""
        logs = (self._spectrogram(wav[:, None]) + 1e-7).log()
        mean, spread = logs.mean((1, 2, 3), keepdim=True), logs.std((1, 2, 3), keepdim=True)
        return self.audio_transform["sequential"](self.audio_encoder((logs - mean) / (spread + 1e-9)))


class Wav2Clip(Network):
    """Wav2CLIP with its weights.

    Raises:
        ValueError: the file is missing, wrong, or has another layout.
    """

    name = "wav2clip"
    sample_rate = 16000
    dim = 512
    uses = frozenset({"image"})
    labels: Sequence[str] = ()

    def __init__(self, folder: Path, check: bool = True):
        path, self.sha256 = checked_file(folder, "wav2clip", check)
        self.net = Wav2ClipNet()
        load_into(self.net, {k: v for k, v in read_state(path).items() if not k.startswith(UNUSED)}, path)

    @torch.inference_mode()
    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Analyse wav [N] at 16 kHz."""
        return NetworkOutput(self.net(wav[None]))
