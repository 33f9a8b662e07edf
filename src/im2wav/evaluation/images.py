"""CLIP embeddings of images, half of the score CS."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from im2wav.evaluation.audio_files import format_names
from im2wav.evaluation.network_weights import checked_file
from im2wav.files import IMAGE_SUFFIXES
from im2wav.media.encoder import ClipEncoder
from im2wav.media.reading import read_frames, read_image

VIDEO_FPS = 1.0  # frames per second of a video: one of 30, as in published figures


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
