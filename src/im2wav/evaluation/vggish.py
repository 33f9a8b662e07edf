"""VGGish, the network of the Fréchet audio distance (FAD).

Source: Hershey et al., 2017; weight layout of torchvggish. As usual for FAD: frames of 0.96 s, no
post-processing, no final ReLU.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from im2wav.evaluation.network import Network, NetworkOutput
from im2wav.evaluation.network_weights import checked_file, load_into, read_state

WINDOW, HOP, N_FFT = 400, 160, 512  # samples: 25 ms, 10 ms
MELS, LOW, HIGH = 64, 125.0, 7500.0  # bands from LOW to HIGH Hz
FRAMES = 96  # spectra per example: 0.96 s
OFFSET = 0.01  # added before the logarithm
WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0)  # channels of the convolutions; 0 is a max pooling layer


def mel_matrix(rate: int) -> Tensor:
    """Triangular bands [257, 64], linear on the HTK mel scale, 1127 ln(1 + f / 700), without the DC bin."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0, rate / 2, N_FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([LOW, HIGH], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, MELS + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bands = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0)
    bands[0] = 0
    return bands.float()


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
    """VGGish with its weights.

    Raises:
        ValueError: the file is missing, wrong, or has another layout.
    """

    name = "vggish"
    sample_rate = 16000
    dim = 128
    uses = frozenset({"distance"})
    labels: Sequence[str] = ()

    def __init__(self, folder: Path, check: bool = True):
        path, self.sha256 = checked_file(folder, "vggish", check)
        with torch.device("meta"):
            self.net = VggishNet()
        self.net.to_empty(device="cpu")
        state = {k: v for k, v in read_state(path).items() if not k.startswith("pproc.")}
        load_into(self.net, state, path)

    @torch.inference_mode()
    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Embeddings of the 0.96 s examples of wav [N] at 16 kHz."""
        return NetworkOutput(self.net(examples(wav)))
