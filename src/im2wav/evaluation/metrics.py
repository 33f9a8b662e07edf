"""Metrics of single audio files and of codes; each gives one value per item.

Letters: B batch, D dimension of an embedding, C classes, K groups of classes, N samples, T codes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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


def wanted_classes(names: Sequence[Sequence[str]], labels: Sequence[str]) -> Tensor:
    """Correct classes of each item: class names -> bool [B, C]; unknown names are ignored."""
    index = {label: i for i, label in enumerate(labels)}
    wanted = torch.zeros(len(names), len(labels), dtype=torch.bool)
    for row, wants in enumerate(names):
        wanted[row, [index[name] for name in wants if name in index]] = True
    return wanted


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


def best_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """The group of classes that has the highest score: float64 [B, K], rows sum to 1; a tie of n groups is 1 / n each.

    Args:
        scores: [B, C].
        groups: bool [K, C], classes of each group.
    """
    best = torch.stack([scores[:, group].amax(1) for group in groups], 1)
    top = (best == best.amax(1, keepdim=True)).double()
    return top / top.sum(1, keepdim=True)


def cosine_score(one: Tensor, other: Tensor) -> Tensor:
    """100 times the cosine of embeddings [B, D] and [B, D]: CLIP score (CS) with CLIP and Wav2CLIP, [B]."""
    return 100 * F.cosine_similarity(one.double(), other.double(), dim=-1)


def si_sdr(target: Tensor, output: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis (Le Roux et al., 2019); means are removed."""
    target, output = (x - x.mean(-1, keepdim=True) for x in (target, output))
    energy = target.square().sum(-1, keepdim=True).clamp_min(1e-12)
    projection = (output * target).sum(-1, keepdim=True) / energy * target
    noise = (output - projection).square().sum(-1).clamp_min(1e-12)
    return 10 * (projection.square().sum(-1).clamp_min(1e-12) / noise).log10()


def log_stft_distance(target: Tensor, output: Tensor, minimum: float = 1e-5) -> Tensor:
    """Mean absolute difference of log-magnitude spectrograms in dB, over three resolutions: waveforms [B, N] -> [B].

    Windows of 2048, 1024 and 512 samples, with a hop of a quarter; magnitudes are clamped to at least `minimum`.
    """
    distances = []
    for size in (2048, 1024, 512):
        window = torch.hann_window(size, device=target.device, dtype=target.dtype)
        logs = [
            20 * torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(minimum).log10()
            for x in (target, output)
        ]
        distances.append((logs[0] - logs[1]).abs().mean((1, 2)))
    return torch.stack(distances).mean(0)


def code_usage(counts: Tensor) -> dict[str, float]:
    """`used`, the fraction of codes that occur, and `perplexity`, given how often each occurs [codebook size]."""
    probabilities = counts.double() / counts.sum()
    used, perplexity = (probabilities > 0).double().mean(), torch.special.entr(probabilities).sum().exp()
    return {"used": used.item(), "perplexity": perplexity.item()}


def best_cosine(kernels: Tensor, signals: Tensor) -> Tensor:
    """Cosine of log-mel spectrograms over the best alignment: kernels [K, L, M], signals [S, T >= L, M] -> [S, K].

    The kernel slides over the signal and is compared as a vector at each position.
    """
    kernels, signals = kernels.transpose(1, 2), signals.transpose(1, 2)
    products = F.conv1d(signals, kernels)  # [S, K, alignments]
    window = torch.ones(1, 1, kernels.shape[2])
    energy = F.conv1d(signals.square().sum(1, keepdim=True), window).clamp_min(0)
    norms = kernels.flatten(1).norm(dim=1)[:, None] * energy.sqrt()
    return (products / norms.clamp_min(1e-8)).amax(-1)


def nearest(queries: Tensor, recordings: Sequence[Tensor]) -> list[int]:
    """The index of the recording nearest to each query, by the cosine over the best alignment.

    Args:
        queries: log-mel spectrograms of one length, [Q, L, bands].
        recordings: log-mel spectrograms of any length, [T, bands] each.
    """
    scores = [
        best_cosine(queries, mel[None])[0] if len(mel) >= queries.shape[1] else best_cosine(mel[None], queries)[:, 0]
        for mel in recordings
    ]
    return torch.stack(scores, 1).argmax(1).tolist()


def retrieval_values(
    found: Sequence[str],
    items: Sequence[str],
    recordings: Mapping[str, str],
    labels: Mapping[str, str],
    shuffled: bool = False,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Whether the nearest recording is the item's own (`retrieval`), or has its label (`retrieval_label`).

    Args:
        found: name of the recording nearest to each generated one, S of them.
        items: the item of each.
        recordings: name -> label ("" if unknown) of all recordings that were searched.
        labels: item -> label.
        shuffled: mean over all other items instead (shuffled baseline).

    Returns:
        Name -> (mask of known items, bool [S]; values). Metrics without known items are omitted.
    """
    values: dict[str, tuple[Tensor, Tensor]] = {}
    for name, keys in (
        ("retrieval", {recording: recording for recording in recordings}),
        ("retrieval_label", {**recordings, **labels}),
    ):
        known = [bool(keys.get(item)) for item in items]
        counts = Counter(keys[item] for item in {item for item, has in zip(items, known, strict=True) if has})
        others = counts.total() - 1
        if not counts or (shuffled and not others):
            continue
        own = []
        for nearest_one, item in ((a, b) for a, b, has in zip(found, items, known, strict=True) if has):
            hit = keys.get(nearest_one) == keys[item]
            own.append((counts[keys.get(nearest_one, "")] - hit) / others if shuffled else float(hit))
        values[name] = (torch.tensor(known), torch.tensor(own))
    return values
