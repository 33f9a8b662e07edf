"""Embeddings for audio without images: what the image encoder would make of images of its label.

An image encoder knows directions of classes: the rows of its classifier, or texts. A pseudo-embedding is the mean of
real images, moved into the direction of its class, with the deviation of a real image from the mean and a little noise.
The part of the deviation that says which of the classes the real image is of is left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from im2wav.data.pairs import CLASSES_FILE
from im2wav.files import write_atomic
from im2wav.media.encoder import ImageEncoder
from im2wav.media.reading import read_image
from im2wav.prepare.sources import Source, demo_sources

# How far the mean, whose norm is 0.58, moves into the direction of a class: embeddings of the shipped photos (norm 1)
# lie 0.11 to 0.42 from the mean in the direction of the class that EfficientNet-Lite2 reads. The largest factor of the
# deviation of a real photo, whose norm is 0.82 on average, and the norm of the noise.
STRENGTH, DEVIATION, NOISE = (0.15, 0.5), 0.9, 0.05

Classes = Mapping[str, Sequence[int | str]]


def read_classes(path: str) -> Classes:
    """Classes of the image encoder, or texts, for each label: a YAML file with lines such as `cat: [281, 282]`.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    expected = "expected lines such as `cat: [281, 282]` (ImageNet classes) or `cat: [a photo of a cat]` (texts)"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # errors of files, YAML and OmegaConf
        raise ValueError(f"encoder.pseudo_embeddings={path} cannot be read: {error}; {expected}") from error
    if not isinstance(content, dict):
        raise ValueError(f"encoder.pseudo_embeddings={path}: {expected}")
    classes = {str(label): keys if isinstance(keys, list) else [keys] for label, keys in content.items()}
    for label, keys in classes.items():
        if not keys or not all(isinstance(key, int | str) and not isinstance(key, bool) for key in keys):
            raise ValueError(f"encoder.pseudo_embeddings={path}: {label}: {keys}; {expected}")
    return classes


def check_labels(sources: Sequence[Source], classes: Classes, path: str) -> None:
    """Raise ValueError if a source without image has a label that is not in `classes`."""
    missing = sorted({source.label for source in sources if source.is_audio and source.label not in classes})
    if missing:
        names = ", ".join(label or "(no label)" for label in missing[:5])
        raise ValueError(
            f"{len(missing)} labels of audio without images are not in encoder.pseudo_embeddings={path}: {names}"
            f"{', ...' if len(missing) > 5 else ''}; add them to it, or add images"
        )


class PseudoEmbeddings:
    """Makes embeddings for labels. Those of a label and an id are always the same.

    Args:
        encoder: knows the directions of classes.
        classes: see `read_classes`.

    Raises:
        ValueError: a class that the encoder does not know.
    """

    def __init__(self, encoder: ImageEncoder, classes: Classes):
        keys = list(dict.fromkeys(key for some in classes.values() for key in some))
        found = dict(zip(keys, encoder.class_directions(keys).cpu(), strict=True))
        images = [read_image(source.path) for source in demo_sources()]
        real = torch.cat([encoder.encode(images[start : start + 8]) for start in range(0, len(images), 8)])
        basis = torch.linalg.qr(torch.stack(list(found.values())).t()).Q  # [D, directions]
        self.mean, deviations = real.mean(0), real - real.mean(0)
        self.deviations = deviations - deviations @ basis @ basis.t()
        self.directions = {label: torch.stack([found[key] for key in some]) for label, some in classes.items()}

    def write(self, folder: Path) -> None:
        """Write the directions of all labels to a pairs folder, for priors with class scores as a condition.

        Raises:
            ValueError: the folder cannot be written.
        """
        counts = torch.tensor([len(rows) for rows in self.directions.values()])
        tensors = {
            "directions": torch.cat(list(self.directions.values())),
            "mean": self.mean,
            "label_of_row": torch.arange(len(counts)).repeat_interleave(counts),
        }
        write_atomic(folder / CLASSES_FILE, save(tensors, {"labels": json.dumps(list(self.directions))}))

    def __call__(self, label: str, name: str) -> Tensor:
        """An embedding of unit norm, [1, D], for the source `name` of a label."""
        draw = np.random.default_rng(list(name.encode()))
        rows = self.directions[label]
        one, other = (rows[draw.integers(len(rows))] for _ in range(2))
        direction = F.normalize(torch.lerp(one, other, draw.uniform() if draw.random() < 0.5 else 0.0), dim=0)
        deviation = self.deviations[draw.integers(len(self.deviations))]
        noise = F.normalize(torch.from_numpy(draw.standard_normal(len(one))).float(), dim=0)
        changes = draw.uniform(*STRENGTH) * direction + draw.uniform(0, DEVIATION) * deviation + NOISE * noise
        return F.normalize(self.mean + changes, dim=0)[None]
