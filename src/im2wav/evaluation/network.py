"""Interface of the evaluation networks and their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a network for one audio file. D dimension of the embedding, C classes (0 without classes)."""

    rows: Tensor  # [M, D], one embedding per file or per frame
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))  # [C]
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))  # [C], class probabilities


class Network:
    """An evaluation network; `labels` are the names of its classes, if any.

    `uses` selects its metrics: `distance` between sets, `classes`, `image`: cosine similarity with image embeddings.
    """

    name: str
    uses: frozenset[str]
    sha256: str
    sample_rate: int  # Hz
    dim: int
    labels: Sequence[str]

    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Analyse wav [N] at the sample rate of the network."""
        raise NotImplementedError


@dataclass(frozen=True)
class SetOutputs:
    """Outputs of a network for S audio files."""

    rows: Tensor  # [M, D]
    owner: Tensor  # [M], file index of each row
    logits: Tensor  # [S, C]
    scores: Tensor  # [S, C]

    @classmethod
    def join(cls, outputs: Sequence[NetworkOutput]) -> "SetOutputs":
        """Stack the outputs of single files."""
        counts = torch.tensor([len(h.rows) for h in outputs])
        return cls(
            rows=torch.cat([h.rows for h in outputs]),
            owner=torch.arange(len(outputs)).repeat_interleave(counts),
            logits=torch.stack([h.logits for h in outputs]),
            scores=torch.stack([h.scores for h in outputs]),
        )

    @classmethod
    def concat(cls, parts: Sequence["SetOutputs"]) -> "SetOutputs":
        """Concatenate outputs."""
        before, owners = 0, []
        for part in parts:
            owners.append(part.owner + before)
            before += len(part.logits)
        return cls(
            rows=torch.cat([part.rows for part in parts]),
            owner=torch.cat(owners),
            logits=torch.cat([part.logits for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
        )
