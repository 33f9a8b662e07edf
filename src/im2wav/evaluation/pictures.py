"""CLIP embeddings of pictures, half of the score CS."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from im2wav.data.encoder import ClipEncoder
from im2wav.data.media import IMAGE_SUFFIXES, read_frames, read_image
from im2wav.evaluation.sounds import listed
from im2wav.evaluation.weights import checked_file

VIDEO_FPS = 1.0  # frames a second of a video: one of every 30, as published figures have it


def embed_pictures(
    pictures: Mapping[str, Path], items: Sequence[str], weights_dir: Path, check: bool, device: str
) -> dict[str, Tensor]:
    """Embedding [512] of each item's picture by CLIP ViT-B/32; of a video the mean over a frame a second.

    Raises:
        ValueError: items without a picture, or weights that are missing or wrong.
    """
    missing = [item for item in items if item not in pictures]
    if missing:
        raise ValueError(
            f"CS compares sounds with pictures, but {len(missing)} of {len(items)} have none: {listed(missing)}; "
            "give images=DIR with pictures called like the sounds"
        )
    path, _ = checked_file(weights_dir, "clip", check)
    encoder = ClipEncoder(weights=str(path)).to(device)
    found = {}
    for item in items:
        if pictures[item].suffix.lower() in IMAGE_SUFFIXES:
            found[item] = encoder.encode([read_image(pictures[item])])[0]
        else:
            found[item] = torch.cat([encoder.encode(c) for c in read_frames(pictures[item], VIDEO_FPS)]).mean(0)
    return found
