"""Networks that tag audio with AudioSet classes: YAMNet, whose weights ship with the package, and PaSST.

YAMNet has 521 classes. The scores of its 8-bit model have steps of 1/256 and are mostly zero, which is not usable for
KL divergences: the embedding is read instead, and the last layer is computed from its stored weights in full precision.

PaSST is the usual tagger for KL and accuracy, a vision transformer on log-mel patches with 527 classes. Source:
Koutini et al., 2022, `passt_s_swa_p16_128_ap476`; front end and weight layout as in hear21passt.
"""

import io
import threading
import warnings
import zipfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.compliance.kaldi
from torch import Tensor, nn

from im2wav.evaluation.networks import Network, NetworkOutputs, checked_file, load_into, read_state
from im2wav.files import file_sha256

YAMNET_PATH = Path(__file__).parents[1] / "assets" / "yamnet" / "yamnet.tflite"
YAMNET_SHA256 = "10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de"
YAMNET_FRAME, YAMNET_HOP = 15600, 7680  # samples: 0.975 s per input, and 0.48 s, as in YAMNet's own code
# tensor names; the indices depend on the converter
EMBEDDING = "tower0/network/layer28/reduce_mean"
WEIGHTS = "tower0/network/layer29/fc/MatMul"
BIASES = "network/layer29/fc/biases"

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


@lru_cache(maxsize=1)
def yamnet_labels(path: Path = YAMNET_PATH) -> tuple[str, ...]:
    """Names of the 521 classes, from the archive at the end of the file."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return tuple(archive.read("yamnet_label_list.txt").decode().splitlines())


class Yamnet(Network):
    """YAMNet; ValueError where the file is not the published one, or the interpreter is not installed."""

    name = "yamnet"
    sample_rate = 16000
    dim = 1024
    uses = frozenset({"distance", "classes"})

    def __init__(self, path: Path = YAMNET_PATH):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(f"suite=offline needs ai-edge-litert ({error}): pip install 'im2wav[eval]'") from error
        if not path.is_file():
            raise ValueError(f"{path} does not exist: expected YAMNet's weights, which ship with im2wav")
        self.sha256 = file_sha256(path)
        if self.sha256 != YAMNET_SHA256:
            raise ValueError(
                f"{path} has sha256 {self.sha256[:12]}…, expected {YAMNET_SHA256[:12]}…: damaged file or another "
                "network"
            )
        self.labels = yamnet_labels(path)
        self._make = partial(Interpreter, str(path), num_threads=1, experimental_preserve_all_tensors=True)
        self._of_thread = threading.local()
        details = {d["name"]: d for d in self._net.get_tensor_details()}
        self._embedding = details[EMBEDDING]
        self._input = self._net.get_input_details()[0]["index"]
        self._weights = self._read(details[WEIGHTS]).T.contiguous()  # [1024, 521]
        self._biases = self._read(details[BIASES])  # [521]

    @property
    def _net(self) -> Any:
        """Interpreter of this thread (it is stateful)."""
        if not hasattr(self._of_thread, "net"):
            # the memory overhead that it warns about is small
            warnings.filterwarnings("ignore", r".*experimental_preserve_all_tensors", UserWarning)
            net = self._make()
            net.allocate_tensors()
            self._of_thread.net = net
        return self._of_thread.net

    def _read(self, detail: dict) -> Tensor:
        """Dequantise a tensor."""
        scale, zero = detail["quantization"]
        return (torch.from_numpy(self._net.get_tensor(detail["index"])).double() - zero) * scale

    def analyse(self, wav: Tensor) -> NetworkOutputs:
        """Analyse wav [N] at 16 kHz: mean over frames; an incomplete last frame is dropped.

        Audio shorter than a frame is padded with silence.
        """
        samples = wav.float().numpy()
        if len(samples) < YAMNET_FRAME:
            samples = np.pad(samples, (0, YAMNET_FRAME - len(samples)))
        net, frames = self._net, []
        for start in range(0, len(samples) - YAMNET_FRAME + 1, YAMNET_HOP):
            net.set_tensor(self._input, samples[start : start + YAMNET_FRAME])
            net.invoke()
            frames.append(self._read(self._embedding).flatten())
        embedding = torch.stack(frames)  # [frames, 1024]
        logits = embedding @ self._weights + self._biases  # [frames, 521]
        return NetworkOutputs.of_file(
            rows=embedding.mean(0, keepdim=True).float(),
            logits=logits.mean(0).float(),
            scores=logits.sigmoid().mean(0).float(),
        )


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
            raise ValueError(f"PaSST needs timm ({error}): pip install timm") from error
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
    """PaSST with its weights, whose sizes are read from the file; ValueError where it is missing, wrong or another."""

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
    def analyse(self, wav: Tensor) -> NetworkOutputs:
        """Analyse the first 10 s of wav [N] at 32 kHz; shorter audio is padded with silence, as in av-benchmark."""
        samples = round(SECONDS * self.sample_rate)
        wav = nn.functional.pad(wav[:samples], (0, max(0, samples - len(wav))))
        logits, features = self.net(passt_log_mel(wav)[None, None])
        return NetworkOutputs.of_file(features, logits[0], logits[0].sigmoid())
