"""What an encoder sees of a picture: a central square, scaled bicubically and with antialiasing, as bytes."""

import numpy as np
from PIL import Image


def resized_centre(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's way: the shorter side is brought to `size`, then the centre is cut out. uint8 [3, size, size].

    Only what is kept is computed. Source: OpenAI's CLIP, `_transform`, with torchvision's rounding.
    """
    short = min(image.size)
    wide, high = (size * side // short for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    across, down = image.width / wide, image.height / high
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return _square(image, size, box if short != size else (left, top, left + size, top + size))


def resized_square(image: Image.Image, size: int) -> np.ndarray:
    """The central square of the picture, brought to `size`: uint8 [3, size, size]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _square(image, size, (left, top, left + side, top + side))


def _square(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    image = image.convert("RGB")
    if box[2] - box[0] == box[3] - box[1] == size:  # nothing to scale
        cut = image.crop(tuple(map(int, box)))  # type: ignore[arg-type]
    else:
        cut = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))
