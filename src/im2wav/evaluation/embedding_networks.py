"""Networks that embed audio and images: VGGish, and Wav2CLIP with CLIP.

VGGish is the network of the Fréchet audio distance (FAD). Source: Hershey et al., 2017; weight layout of torchvggish.
As usual for FAD: frames of 0.96 s, no post-processing, no final ReLU.

Wav2CLIP embeds audio in the space of CLIP image embeddings, for the CLIP score (CS). Source: Wu et al., 2022
(lyrebird-wav2clip): a ResNet-18 on the logarithm of a power spectrogram, then two linear layers. Each item is
normalised on its own, independently of the batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchaudio.compliance.kaldi
import torchaudio.transforms
from torch import Tensor, nn

from im2wav.evaluation.audio_files import format_names
from im2wav.evaluation.networks import Network, NetworkOutputs, checked_file, load_into, read_state
from im2wav.files import IMAGE_SUFFIXES
from im2wav.media.encoder import ClipEncoder
from im2wav.media.reading import read_image
from im2wav.media.video import read_frames

WINDOW, HOP, N_FFT = 400, 160, 512  # samples: 25 ms, 10 ms
MELS, LOW, HIGH = 64, 125.0, 7500.0  # bands from LOW to HIGH Hz
FRAMES = 96  # spectra per example: 0.96 s
OFFSET = 0.01  # added before the logarithm
WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0)  # channels of the convolutions; 0 is a max pooling layer

CLIP_N_FFT, CLIP_HOP = 512, 353  # samples
# unused entries of the weights file: a spectrogram buffer and the pre-training heads
UNUSED = ("audio_encoder.spectrogram.", "audio_encoder.fc.", "image_transform.")
VIDEO_FPS = 1.0  # frames per second of a video: one of 30, as in published figures


def mel_matrix(rate: int) -> Tensor:
    """Triangular bands [257, 64], linear on the HTK mel scale, 1127 ln(1 + f / 700)."""
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(MELS, N_FFT, float(rate), LOW, HIGH, 100.0, -500.0, 1.0)
    return nn.functional.pad(bands, (0, 1)).T


def examples(wav: Tensor, rate: int = 16000) -> Tensor:
    """Log-mel examples [M, 1, 96, 64] of wav [N]; an incomplete last example is dropped.

    Audio shorter than one example is padded with silence.
    """
    needed = (FRAMES - 1) * HOP + WINDOW
    wav = nn.functional.pad(wav, (0, max(0, needed - len(wav))))
    frames = wav.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    mel = torch.fft.rfft(frames, N_FFT).abs() @ mel_matrix(rate)
    logs = (mel + OFFSET).log()
    count = len(logs) // FRAMES
    return logs[: count * FRAMES].reshape(count, 1, FRAMES, MELS)


class VggishNet(nn.Module):
    """Examples [M, 1, 96, 64] -> embeddings [M, 128]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in WIDTHS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, spectra: Tensor) -> Tensor:
        """Return embeddings; channels are last before the linear layers, as in the TensorFlow original."""
        return self.embeddings(self.features(spectra).permute(0, 2, 3, 1).flatten(1))


class Vggish(Network):
    """VGGish with its weights; ValueError where the file is missing, wrong, or has another layout."""

    name = "vggish"
    sample_rate = 16000
    dim = 128
    uses = frozenset({"distance"})

    def __init__(self, folder: Path, check: bool = True):
        path, self.sha256 = checked_file(folder, "vggish", check)
        with torch.device("meta"):
            self.net = VggishNet()
        self.net.to_empty(device="cpu")
        state = {k: v for k, v in read_state(path).items() if not k.startswith("pproc.")}
        load_into(self.net, state, path)

    @torch.inference_mode()
    def analyse(self, wav: Tensor) -> NetworkOutputs:
        """Embeddings of the 0.96 s examples of wav [N] at 16 kHz."""
        return NetworkOutputs.of_file(self.net(examples(wav)))


class Wav2ClipNet(nn.Module):
    """Waveforms [B, N] at 16 kHz -> embeddings [B, 512]."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchvision.models import resnet18
        except ImportError as error:
            raise ValueError(f"Wav2CLIP needs torchvision ({error}): pip install torchvision") from error
        self.audio_encoder = resnet18(weights=None)
        self.audio_encoder.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.audio_encoder.fc = nn.Identity()
        self.audio_transform = nn.ModuleDict(
            {"sequential": nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 512))}
        )
        self._spectrogram = torchaudio.transforms.Spectrogram(CLIP_N_FFT, hop_length=CLIP_HOP)
        self._spectrogram.register_buffer("window", self._spectrogram.window, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Return embeddings."""
        logs = (self._spectrogram(wav[:, None]) + 1e-7).log()
        mean, spread = logs.mean((1, 2, 3), keepdim=True), logs.std((1, 2, 3), keepdim=True)
        return self.audio_transform["sequential"](self.audio_encoder((logs - mean) / (spread + 1e-9)))


class Wav2Clip(Network):
    """Wav2CLIP with its weights; ValueError where the file is missing, wrong, or has another layout."""

    name = "wav2clip"
    sample_rate = 16000
    dim = 512
    uses = frozenset({"image"})

    def __init__(self, folder: Path, check: bool = True):
        path, self.sha256 = checked_file(folder, "wav2clip", check)
        self.net = Wav2ClipNet()
        load_into(self.net, {k: v for k, v in read_state(path).items() if not k.startswith(UNUSED)}, path)

    @torch.inference_mode()
    def analyse(self, wav: Tensor) -> NetworkOutputs:
        """Analyse wav [N] at 16 kHz."""
        return NetworkOutputs.of_file(self.net(wav[None]))


def embed_images(
    images: Mapping[str, Path], items: Sequence[str], weights_dir: Path, check: bool, device: str
) -> dict[str, Tensor]:
    """Embedding [512] of each item's image by CLIP ViT-B/32; for a video the mean over one frame per second.

    Raises:
        ValueError: items without an image, or weights that are missing or wrong.
    """
    missing = [item for item in items if item not in images]
    if missing:
        raise ValueError(
            f"CS compares audio with images, but {len(missing)} of {len(items)} have none: {format_names(missing)}; "
            "give images=DIR with images named like the audio files"
        )
    path, _ = checked_file(weights_dir, "clip", check)
    encoder = ClipEncoder(weights=str(path)).to(device)
    found = {}
    for item in items:
        if images[item].suffix.lower() in IMAGE_SUFFIXES:
            found[item] = encoder.encode([read_image(images[item])])[0]
        else:
            found[item] = torch.cat([encoder.encode(c) for c in read_frames(images[item], VIDEO_FPS)]).mean(0)
    return found
