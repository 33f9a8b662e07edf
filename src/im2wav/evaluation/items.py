"""Results for each audio file and each label, for tables, examples and the confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from im2wav.evaluation import imagehear
from im2wav.evaluation.audio_files import Judged
from im2wav.evaluation.figures import Plan, paired_figures, recognition_values
from im2wav.evaluation.metrics import GroupAccuracy, wanted_classes
from im2wav.evaluation.network import Network


def tagger_of(networks: Sequence[Network]) -> Network | None:
    """The first network that has classes."""
    return next((network for network in networks if "classes" in network.uses), None)


def item_rows(judged: Judged, network: Network, plan: Plan, reference: Judged | None) -> list[dict[str, Any]]:
    """A row for each audio file: its item, label, figures, top tags and nearest recording."""
    outputs, targets = judged.outputs[network.name], judged.set.targets
    labels = plan.labels or {}
    rows: list[dict[str, Any]] = [
        {"name": file.name, "item": file.target, "label": labels.get(file.target, "")} for file in judged.set.files
    ]
    if reference is not None:
        for name, values in paired_figures(network, outputs, targets, reference, plan, targets).items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = round(value, 6)
    for name, (of, values) in recognition_values(network, outputs, targets, plan).items():
        answers = iter(values.tolist())
        for row, known in zip(rows, of.tolist(), strict=True):
            row[name] = round(next(answers), 6) if known else ""
    masked = imagehear.general_mask(network.labels)
    best = outputs.scores.masked_fill(masked, -torch.inf).topk(3, dim=1)
    for row, level, values, places in zip(
        rows, judged.levels.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
    ):
        row["loudness_db"], row["silent"], row["clipped"] = round(level[0], 3), int(level[1]), int(level[2])
        row["tags"] = "; ".join(f"{network.labels[p]} {v:.2f}" for v, p in zip(values, places, strict=True))
    for row, recording in zip(rows, judged.nearest, strict=False):
        row["nearest"] = recording
    return rows


def confusion(judged: Judged, network: Network, plan: Plan) -> dict[str, Any] | None:
    """The confusion matrix of the labels of the data that name AudioSet classes.

    All 30 classes where the labels are ImageHear's. Labels with the same AudioSet classes count as one.

    Returns:
        `labels` and `table` (rows: true; columns: the label whose classes score highest, ties split); None
        with fewer than two labels.
    """
    labels = plan.labels or {}
    item_labels = [labels.get(target, "") for target in judged.set.targets]
    if all(imagehear.class_of(label) for label in item_labels):
        item_labels, names = [imagehear.class_of(label) or "" for label in item_labels], imagehear.class_names()
    else:
        names = sorted(set(item_labels))
    groups: dict[tuple[str, ...], str] = {}
    place: dict[str, str] = {}
    for name in names:
        classes = tuple(sorted(imagehear.audioset_names(name, network.labels)))
        if wanted_classes([classes], network.labels).any():
            place[name] = groups.setdefault(classes, name)
    if len(groups) < 2:
        return None
    order = list(groups.values())
    keep = torch.tensor([label in place for label in item_labels])
    target = torch.tensor([order.index(place[label]) for label in item_labels if label in place])
    if not len(target):
        return None
    metric = GroupAccuracy(wanted_classes([list(classes) for classes in groups], network.labels))
    metric.update(judged.outputs[network.name].scores[keep], target)
    return {"labels": order, "table": [[round(x, 6) for x in row] for row in metric.table.tolist()]}


def label_rows(rows: Sequence[dict[str, Any]], judged: Judged, network: Network) -> list[dict[str, Any]]:
    """A row for each label: its number of audio files, the means of its figures, its most frequent tags."""
    by_label: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_label.setdefault(row["label"] or "(no label)", []).append(number)
    masked = imagehear.general_mask(network.labels)
    scores = judged.outputs[network.name].scores.masked_fill(masked, 0.0)
    found = []
    for label, numbers in sorted(by_label.items()):
        line: dict[str, Any] = {"label": label, "count": len(numbers)}
        for name in ("acc_30way", "acc@1", "acc@5", "agree@1", "kl"):
            values = [rows[i][name] for i in numbers if isinstance(rows[i].get(name), int | float)]
            if values:
                line[name] = round(sum(values) / len(values), 6)
        top = scores[torch.tensor(numbers)].mean(0).topk(3)
        line["tags"] = "; ".join(
            f"{network.labels[p]} {v:.2f}" for v, p in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        )
        found.append(line)
    return found


def ranked(rows: Sequence[Mapping[str, Any]], judged: Judged, network: Network, plan: Plan) -> Tensor:
    """Indices from the best to the worst audio file: by KL to the reference, else by the score of the label."""
    if rows and "kl" in rows[0]:
        return torch.tensor([row["kl"] for row in rows], dtype=torch.float64).argsort(stable=True)
    labels = plan.labels or {}
    names = [imagehear.audioset_names(labels.get(t, ""), network.labels) for t in judged.set.targets]
    own = judged.outputs[network.name].scores.masked_fill(~wanted_classes(names, network.labels), 0.0).amax(1)
    return own.argsort(descending=True, stable=True)
