"""PaSST, the usual tagger for KL and accuracy: a vision transformer on log-mel patches, 527 AudioSet classes.

Source: Koutini et al., 2022, `passt_s_swa_p16_128_ap476`; front end and weight layout as in hear21passt.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio.compliance.kaldi
from torch import Tensor, nn

from im2wav.evaluation.network import Network, NetworkOutput
from im2wav.evaluation.network_weights import checked_file, load_into, read_state
from im2wav.evaluation.yamnet import labels as yamnet_labels

SECONDS = 10.0  # input duration; shorter audio is padded with silence
N_FFT, WINDOW, HOP, MELS = 1024, 800, 320, 128
HIGH = 15000.0  # Hz; half the sample rate minus half the range of the training augmentation
# AudioSet classes missing in YAMNet, by their index among all 527
LEFT_OUT = {
    1: "Male speech, man speaking",
    2: "Female speech, woman speaking",
    12: "Battle cry",
    32: "Male singing",
    33: "Female singing",
    277: "Funny music",
}


def audioset_labels() -> tuple[str, ...]:
    """Names of the 527 AudioSet classes in order."""
    names = list(yamnet_labels())
    for number, name in LEFT_OUT.items():  # in ascending order
        names.insert(number, name)
    return tuple(names)


def passt_log_mel(wav: Tensor, rate: int = 32000) -> Tensor:
    """Log-mel spectrogram [128, frames] of wav [N]: pre-emphasis, power spectrogram, Kaldi mel bands, scaling."""
    wav = wav[1:] - 0.97 * wav[:-1]
    window = torch.hann_window(WINDOW, periodic=False)
    power = torch.stft(wav, N_FFT, HOP, WINDOW, window, return_complex=True).abs().square()
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(MELS, N_FFT, float(rate), 0.0, HIGH, 100.0, -500.0, 1.0)
    mel = nn.functional.pad(bands, (0, 1)) @ power
    return ((mel + 1e-5).log() + 4.5) / 5.0


class PasstNet(nn.Module):
    """Spectrograms [B, 1, 128, frames] -> logits [B, classes] and features [B, width].

    Args:
        width, depth, heads: sizes of the transformer.
        grid: patches over frequency and time with position embeddings.
        classes: number of classes.

    Raises:
        ValueError: timm is not installed.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        grid: tuple[int, int] = (12, 99),
        classes: int = 527,
    ):
        super().__init__()
        try:
            from timm.models.vision_transformer import Block
        except ImportError as error:
            raise ValueError(f"PaSST needs timm ({error}): pip install 'im2wav[clip]'") from error
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))  # positions of the two tokens
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, grid[0], 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, grid[1]))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, 16, stride=10)})
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
        self.head_dist = nn.Linear(width, classes)  # in the weights file, not used

    def forward(self, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features."""
        patches = self.patch_embed["proj"](spectrograms)
        patches = patches + self.time_new_pos_embed[..., : patches.shape[-1]] + self.freq_new_pos_embed
        tokens = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        x = torch.cat([tokens.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = self.norm(self.blocks(x))
        features = (x[:, 0] + x[:, 1]) / 2
        return self.head(features), features


class Passt(Network):
    """PaSST with its weights.

    Args:
        folder: folder of the weights file.
        check: reject files other than the published one. Without the check, sizes are read from the file.

    Raises:
        ValueError: the file is missing, wrong, or has another layout.
    """

    name = "passt"
    sample_rate = 32000
    uses = frozenset({"distance", "classes"})

    def __init__(self, folder: Path, check: bool = True):
        path, self.sha256 = checked_file(folder, "passt", check)
        state = read_state(path)
        try:
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            width = state["cls_token"].shape[-1]
            grid = (state["freq_new_pos_embed"].shape[2], state["time_new_pos_embed"].shape[3])
        except (ValueError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is not a PaSST checkpoint: {error}") from error
        self.labels = audioset_labels()
        self.net = PasstNet(width, depth, max(1, width // 64), grid, len(self.labels))
        self.dim = width
        load_into(self.net, state, path)

    @torch.inference_mode()
    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Analyse the first 10 s of wav [N] at 32 kHz; shorter audio is padded with silence, as in av-benchmark."""
        samples = round(SECONDS * self.sample_rate)
        wav = nn.functional.pad(wav[:samples], (0, max(0, samples - len(wav))))
        logits, features = self.net(passt_log_mel(wav)[None, None])
        return NetworkOutput(features, logits[0], logits[0].sigmoid())
