"""Retrieval: whether the recording nearest to generated audio belongs to its image."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from im2wav.evaluation.distance import best_cosine


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
        hits = []
        for nearest_one, item in ((a, b) for a, b, has in zip(found, items, known, strict=True) if has):
            hit = keys.get(nearest_one) == keys[item]
            hits.append((counts[keys.get(nearest_one, "")] - hit) / others if shuffled else float(hit))
        values[name] = (torch.tensor(known), torch.tensor(hits))
    return values
