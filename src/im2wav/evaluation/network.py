"""What a network that judges sounds offers, and what it heard in a set of sounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class NetworkOutput:
    """What a network makes of one sound. D width of the embedding, C classes: none where the network has none."""

    rows: Tensor  # [M, D], one embedding for the sound or one for each of its frames
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))  # [C]
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))  # [C], probability of each class


class Network:
    """A network that judges sounds; `labels` are the names of its classes, none where it has no classes.

    `uses` says which figures it is for: `distance` of sets, `classes` that are heard, `picture`: cosine with a picture.
    """

    name: str
    uses: frozenset[str]
    sha256: str
    sample_rate: int  # Hz
    dim: int
    labels: Sequence[str]

    def analyse(self, wav: Tensor) -> NetworkOutput:
        """Judge wav [N] at the network's sample rate."""
        raise NotImplementedError


@dataclass(frozen=True)
class SetOutputs:
    """What a network heard in S sounds."""

    rows: Tensor  # [M, D]
    owner: Tensor  # [M], which sound each row belongs to
    logits: Tensor  # [S, C]
    scores: Tensor  # [S, C]

    @classmethod
    def join(cls, outputs: Sequence[NetworkOutput]) -> "SetOutputs":
        """Of single sounds, in their order."""
        counts = torch.tensor([len(h.rows) for h in outputs])
        return cls(
            rows=torch.cat([h.rows for h in outputs]),
            owner=torch.arange(len(outputs)).repeat_interleave(counts),
            logits=torch.stack([h.logits for h in outputs]),
            scores=torch.stack([h.scores for h in outputs]),
        )

    @classmethod
    def concat(cls, parts: Sequence["SetOutputs"]) -> "SetOutputs":
        """Of several lots of sounds, one after the other."""
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
