"""Metrics as torchmetrics classes, independent of batch order and batch size.

Letters: B batch, D dimension of an embedding, C classes, N samples, T codes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from im2wav.evaluation import set_statistics
from im2wav.evaluation.distance import log_stft_distance, si_sdr


class ItemMean(Metric):
    """Mean over items of a metric that subclasses compute per item in `values`."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def values(self, *items: Any) -> Tensor:
        """Metric of each item, [B]."""
        raise NotImplementedError

    def update(self, *items: Any) -> None:
        """Add a batch of items."""
        values = self.values(*items).double()
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Return the mean; NaN without items."""
        return self.total / self.count


def divergence(logits: Tensor, reference: Tensor, convention: str = "softmax") -> Tensor:
    """KL divergence of the class distribution of each item from its reference: sum_c p log(p / q), [B].

    p is from the reference, q from the generated audio, given logits [B, C]. `softmax` is the usual KL on VGGSound;
    `sigmoid` treats classes as independent and omits the terms of (1 - p), like the usual implementation.

    Raises:
        ValueError: unknown convention.
    """
    logs = {"softmax": lambda x: x.log_softmax(-1), "sigmoid": F.logsigmoid}
    if convention not in logs:
        raise ValueError(f"convention={convention!r}: expected one of {tuple(logs)}")
    q, p = logs[convention](logits.double()), logs[convention](reference.double())
    return (p.exp() * (p - q)).sum(-1)


class KLDivergence(ItemMean):
    """Mean of `divergence` over paired items."""

    def __init__(self, convention: str = "softmax", **options: Any):
        super().__init__(**options)
        self.convention = convention

    def values(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Logits [B, C] of generated and reference audio -> [B]."""
        return divergence(logits, reference, self.convention)


def hits(scores: Tensor, wanted: Tensor, top: int = 1, masked: Tensor | None = None) -> Tensor:
    """Whether a correct class is among the `top` highest scores of each item: [B] of 0 and 1.

    Args:
        scores: [B, C].
        wanted: correct classes, bool [B, C].
        top: number of highest scores.
        masked: bool [C], excluded classes (general AudioSet classes).
    """
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    best = scores.topk(top, dim=1).indices
    return wanted.gather(1, best).any(1).double()


class Accuracy(ItemMean):
    """Fraction of items with a correct class among the `top` highest scores, excluding `masked` classes."""

    def __init__(self, top: int = 1, masked: Tensor | None = None, **options: Any):
        super().__init__(**options)
        self.top, self.masked = top, masked

    def values(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Scores [B, C] and correct classes, bool [B, C] -> [B]."""
        return hits(scores, wanted, self.top, self.masked)


def group_scores(scores: Tensor, groups: Tensor) -> Tensor:
    """Highest score within each group of classes: scores [B, C], groups bool [K, C] -> [B, K]."""
    return torch.stack([scores[:, group].amax(1) for group in groups], 1)


def group_hits(scores: Tensor, groups: Tensor, target: Tensor) -> Tensor:
    """Whether the correct group of each item has the highest score, [B]; a tie of n groups counts 1 / n.

    Args:
        scores: [B, C].
        groups: bool [K, C], classes of each group.
        target: [B], index of the correct group.
    """
    best = group_scores(scores, groups)
    top = best == best.amax(1, keepdim=True)
    return top.gather(1, target[:, None])[:, 0].double() / top.sum(1)


class GroupAccuracy(Metric):
    """Mean of `group_hits`, and the confusion matrix of the groups (ties split)."""

    full_state_update = False
    table: Tensor

    def __init__(self, groups: Tensor, **options: Any):
        super().__init__(**options)
        self.groups = groups
        shape = (len(groups), len(groups))
        self.add_state("table", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add scores [B, C] of items of groups `target` [B]."""
        best = group_scores(scores, self.groups)
        top = (best == best.amax(1, keepdim=True)).double()
        self.table.index_add_(0, target, top / top.sum(1, keepdim=True))

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, and `table` [K, K] of counts: rows are correct groups, columns predicted groups."""
        return {"accuracy": self.table.diagonal().sum() / self.table.sum(), "table": self.table}


class CosineScore(ItemMean):
    """Mean cosine similarity of two embeddings times 100: CLIP score (CS) with CLIP and Wav2CLIP."""

    def values(self, one: Tensor, other: Tensor) -> Tensor:
        """Embeddings [B, D] and [B, D] -> [B]."""
        return 100 * F.cosine_similarity(one.double(), other.double(), dim=-1)


class SiSdr(ItemMean):
    """Mean scale-invariant signal-to-distortion ratio, dB."""

    def values(self, target: Tensor, output: Tensor) -> Tensor:
        """Waveforms [B, N] -> [B]."""
        return si_sdr(target, output)


class LogStftDistance(ItemMean):
    """Mean distance of log-magnitude spectrograms at three resolutions, dB."""

    def values(self, target: Tensor, output: Tensor) -> Tensor:
        """Waveforms [B, N] -> [B]."""
        return log_stft_distance(target, output)


class BitsPerCode(ItemMean):
    """Mean bits per code of a prior: negative log-likelihood to base 2."""

    def values(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Logits [B, T, K] and codes [B, T] -> [B]."""
        return F.cross_entropy(logits.transpose(1, 2).float(), codes, reduction="none").mean(1) / math.log(2)


class CodeUsage(Metric):
    """Fraction of codes used and perplexity of a codebook."""

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int, **options: Any):
        super().__init__(**options)
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add codes of any shape."""
        self.counts += codes.flatten().bincount(minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`used`, the fraction of codes that occur, and `perplexity`."""
        probabilities = self.counts / self.counts.sum()
        return {
            "used": (probabilities > 0).double().mean(),
            "perplexity": torch.special.entr(probabilities).sum().exp(),
        }


class FrechetDistance(Metric):
    """Fréchet distance of generated and real embeddings, from running sums: memory does not grow with the set."""

    full_state_update = False

    def __init__(self, dim: int, **options: Any):
        super().__init__(**options)
        for kind in ("real", "generated"):
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: Tensor, real: bool) -> None:
        """Add embeddings [B, D] of real or generated audio."""
        kind, rows = "real" if real else "generated", rows.double()
        for name, value in (("count", len(rows)), ("sum", rows.sum(0)), ("outer", rows.T @ rows)):
            setattr(self, f"{kind}_{name}", getattr(self, f"{kind}_{name}") + value)

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        count, total, outer = (getattr(self, f"{kind}_{name}") for name in ("count", "sum", "outer"))
        if count < 2:
            raise ValueError(f"{int(count)} {kind} audio files: the Fréchet distance needs at least two")
        mean = total / count
        return mean, (outer - count * mean.outer(mean)) / (count - 1)

    def compute(self) -> Tensor:
        """Return the distance.

        Raises:
            ValueError: fewer than two files in a set.
        """
        return set_statistics.frechet(*self._moments("generated"), *self._moments("real"))


class KernelDistance(Metric):
    """Kernel audio distance (`set_statistics.kernel_distance`). Stores all embeddings."""

    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, bandwidth: float | None = None, **options: Any):
        super().__init__(**options)
        self.bandwidth = bandwidth
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, real: bool) -> None:
        """Add embeddings [B, D] of real or generated audio."""
        (self.real if real else self.generated).append(rows)

    def compute(self) -> Tensor:
        """Return the distance."""
        rows = [dim_zero_cat(x).cpu() for x in (self.generated, self.real)]
        return set_statistics.kernel_distance(rows[0], rows[1], self.bandwidth)[0]


class InceptionScore(Metric):
    """Inception score (`set_statistics.inception_score`)."""

    full_state_update = False
    logits: list[Tensor]

    def __init__(self, splits: int = 10, seed: int = 2020, **options: Any):
        super().__init__(**options)
        self.splits, self.seed = splits, seed
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor) -> None:
        """Add logits [B, C]."""
        self.logits.append(logits)

    def compute(self) -> Tensor:
        """Return the score."""
        probabilities = dim_zero_cat(self.logits).cpu().double().softmax(-1)
        return set_statistics.inception_score(probabilities, self.splits, self.seed)[0]


def wanted_classes(names: Sequence[Sequence[str]], labels: Sequence[str]) -> Tensor:
    """Correct classes of each item: class names -> bool [B, C]; unknown names are ignored."""
    index = {label: i for i, label in enumerate(labels)}
    wanted = torch.zeros(len(names), len(labels), dtype=torch.bool)
    for row, wants in enumerate(names):
        wanted[row, [index[name] for name in wants if name in index]] = True
    return wanted
