"""Training images by label: any image of a label with any of its recordings, and augmentation of embeddings.

With few recordings of each label, and images that are not of the same event, pairs by file would teach a prior which
recording belongs to which photo. Embeddings are vectors of unit norm, so images of one label can be mixed. Source of
mixing: Zhang et al. 2018 (mixup).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.data.manifest import Manifest

if TYPE_CHECKING:
    from im2wav.data.pairs import PairsFolder

PAIRINGS = ("file", "label")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training embeddings, in this order; the result is normalised.

    Attributes:
        mixup: fraction of the windows whose embeddings are mixed with those of another image of the label, with a
            weight of 0 to 0.5.
        residual: largest factor of the difference between two images of one random label, which is added: what images
            of a label differ in.
        noise: norm of the Gaussian noise that is added.

    Raises:
        ValueError: a value out of range.
    """

    mixup: float = 0.0
    residual: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        if not 0 <= self.mixup <= 1 or self.residual < 0 or self.noise < 0:
            raise ValueError(f"{self}: expected mixup of 0 to 1, and residual and noise of 0 or more")


def rows_by_label(pairs: Manifest) -> dict[str, np.ndarray]:
    """Rows of each label, by label in the order of the alphabet."""
    labels = np.array(list(pairs.strings("label")))
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


class TrainingImages:
    """Embeddings of training windows.

    Args:
        folder: of the pairs.
        pairs: training pairs, with or without audio; images are drawn from them.
        pairing: `file`: a window has the image of its recording; `label`: of any pair with its label.
        augmentation: random changes.

    Raises:
        ValueError: an unknown pairing, or labels that are missing.
    """

    def __init__(self, folder: "PairsFolder", pairs: Manifest, pairing: str, augmentation: Augmentation):
        if pairing not in PAIRINGS:
            raise ValueError(f"data.pairing={pairing!r}: expected one of {PAIRINGS}")
        self.folder, self.pairs, self.pairing, self.augmentation = folder, pairs, pairing, augmentation
        self.rows: dict[str, np.ndarray] = {}
        if pairing == "label" or augmentation.mixup or augmentation.residual:
            self.rows = rows_by_label(pairs)
            if "" in self.rows:
                raise ValueError(
                    f"{folder.root}/manifest.csv: {len(self.rows[''])} training pairs have no label, which "
                    "data.pairing=label, mixup and residual need: fill the column `label`, or use data.pairing=file"
                )
        self.labels = list(self.rows)

    def embedding(self, label: str, own: Tensor, seed: int) -> Tensor:
        """Embeddings [F, D] for a window with a label; `own` are those of its own image."""
        draw, change = np.random.default_rng(seed), self.augmentation
        clip = self._any(self.rows[label], draw).expand_as(own) if self.pairing == "label" else own
        if draw.random() < change.mixup:
            clip = torch.lerp(clip, self._any(self.rows[label], draw), draw.uniform(0, 0.5))
        if change.residual:
            other = self.rows[self.labels[draw.integers(len(self.labels))]]
            clip = clip + draw.uniform(0, change.residual) * (self._any(other, draw) - self._any(other, draw))
        if change.noise:
            noise = torch.from_numpy(draw.standard_normal(clip.shape[-1])).float()
            clip = clip + change.noise * F.normalize(noise, dim=0)
        return F.normalize(clip, dim=-1)

    def _any(self, rows: np.ndarray, draw: np.random.Generator) -> Tensor:
        """A random frame of a random one of the rows, [D]."""
        pair = self.pairs[int(rows[draw.integers(len(rows))])]
        return self.folder.read_clip(pair, np.array([draw.integers(pair.frames)]))[0]


def balanced_order(labels: Sequence[str], length: int, generator: torch.Generator) -> Tensor:
    """`length` rows in random order in which all labels occur equally often, and the rows of a label too."""
    names, numbers = np.unique(labels, return_inverse=True)
    of_row = torch.from_numpy(numbers)
    rounds = -(-length // len(names))
    drawn = torch.cat([torch.randperm(len(names), generator=generator) for _ in range(rounds)])[:length]
    order = torch.empty(length, dtype=torch.long)
    for number in range(len(names)):
        places, rows = (drawn == number).nonzero()[:, 0], (of_row == number).nonzero()[:, 0]
        turns = -(-len(places) // len(rows))
        mixed = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(turns)]
        if mixed:
            order[places] = torch.cat(mixed)[: len(places)]
    return order
