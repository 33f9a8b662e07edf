"""Crop the central square of an image and scale it bicubically with antialiasing, as uint8.

Photos are scaled by Pillow, as in the training of the encoders. Video frames are arrays and are scaled by torch, which
is four times faster; values differ by at most 2 of 255.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

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
