"""YAMNet, a tagger of 521 AudioSet classes whose weights ship with the package.

The scores of the 8-bit model have steps of 1/256 and are mostly zero, which is not usable for KL divergences. The
embedding is read instead, and the last layer is computed from its stored weights in full precision.
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
from torch import Tensor

from im2wav.evaluation.network import Network, NetworkOutput
from im2wav.files import file_sha256

PATH = Path(__file__).parents[1] / "assets" / "yamnet" / "yamnet.tflite"
SHA256 = "10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de"
FRAME = 15600  # samples per input: 0.975 s
HOP = 7680  # 0.48 s, as in YAMNet's own code
# tensor names; the indices depend on the converter
EMBEDDING = "tower0/network/layer28/reduce_mean"
WEIGHTS = "tower0/network/layer29/fc/MatMul"
BIASES = "network/layer29/fc/biases"


@lru_cache(maxsize=1)
def labels(path: Path = PATH) -> tuple[str, ...]:
    """Names of the 521 classes, from the archive at the end of the file."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return tuple(archive.read("yamnet_label_list.txt").decode().splitlines())


class Yamnet(Network):
    """YAMNet tagger.

    Attributes:
        name, sha256: name and hash of the weights.
        uses: metrics that it is used for.
        sample_rate: Hz.
        dim: dimension of the embedding.
        labels: names of the classes.

    Raises:
        ValueError: the file is not the published one, or the interpreter is not installed.
    """

    name = "yamnet"
    sample_rate = 16000
    dim = 1024
    uses = frozenset({"distance", "classes"})

    def __init__(self, path: Path = PATH):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(f"suite=offline needs ai-edge-litert ({error}): pip install 'im2wav[eval]'") from error
        if not path.is_file():
            raise ValueError(f"{path} does not exist: expected YAMNet's weights, which ship with im2wav")
        self.sha256 = file_sha256(path)
        if self.sha256 != SHA256:
            raise ValueError(
                f"{path} has sha256 {self.sha256[:12]}…, expected {SHA256[:12]}…: damaged file or another network"
            )
        self.labels = labels(path)
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

    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Analyse wav [N] at 16 kHz: mean over frames; an incomplete last frame is dropped.

        Audio shorter than a frame is padded with silence.
        """
        samples = wav.float().numpy()
        if len(samples) < FRAME:
            samples = np.pad(samples, (0, FRAME - len(samples)))
        net, frames = self._net, []
        for start in range(0, len(samples) - FRAME + 1, HOP):
            net.set_tensor(self._input, samples[start : start + FRAME])
            net.invoke()
            frames.append(self._read(self._embedding).flatten())
        embedding = torch.stack(frames)  # [frames, 1024]
        logits = embedding @ self._weights + self._biases  # [frames, 521]
        return NetworkOutput(
            rows=embedding.mean(0, keepdim=True).float(),
            logits=logits.mean(0).float(),
            scores=logits.sigmoid().mean(0).float(),
        )
