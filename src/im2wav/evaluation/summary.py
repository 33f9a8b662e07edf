"""A report's figures as rows of tables, and their names; results for each audio file and each label."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from im2wav.evaluation import imagehear
from im2wav.evaluation.audio_files import Judged
from im2wav.evaluation.figures import Plan, paired_figures, recognition_values
from im2wav.evaluation.metrics import best_groups, wanted_classes
from im2wav.evaluation.networks import Network

# set -> its name in tables and plots
SETS = {
    "generated": "generated",
    "draft": "draft (low prior)",
    "real": "real-real baseline",
    "reconstruction": "codec reconstruction",
    "shuffled": "shuffled baseline",
}
# figure -> its name, which direction is better
METRICS = {
    "fd": ("Fréchet distance", "lower"),
    "fd_half": ("Fréchet distance of halves", "lower"),
    "fd_inf": ("Fréchet distance at infinite N", "lower"),
    "kad": ("kernel distance (KAD)", "lower"),
    "kl": ("KL, softmax", "lower"),
    "kl_sigmoid": ("KL, sigmoid", "lower"),
    "is": ("inception score", "higher"),
    "agree@1": ("same top tag as the reference", "higher"),
    "agree@5": ("reference's top tag in the top 5", "higher"),
    "acc@1": ("label is the top tag", "higher"),
    "acc@5": ("label in the top 5", "higher"),
    "acc_30way": ("ImageHear, 30-way accuracy", "higher"),
    "cs": ("CS, CLIP image and audio", "higher"),
    "retrieval": ("retrieval: own recording is nearest", "higher"),
    "retrieval_label": ("retrieval: nearest has the same label", "higher"),
    "loudness_db": ("RMS level, dB", ""),
    "silent": ("fraction silent", ""),
    "clipped": ("fraction clipped", ""),
}

# figure of a label -> its name
BY_LABEL = {
    "acc_30way": "30-way accuracy",
    "acc@1": "top tag",
    "acc@5": "in top 5",
    "agree@1": "top tag of reference",
    "kl": "KL",
}
# of a codec and of priors, by level
CODEC = {
    "si_sdr_db": "SI-SDR, dB",
    "log_stft_db": "log-STFT distance, dB",
    "codes_used": "fraction of codes used",
    "codes_perplexity": "perplexity",
    "codebook_size": "codebook size",
}
PRIORS = {
    "condition": "its image",
    "shuffled": "another image",
    "none": "unconditional",
    "gain_over_shuffled": "gain over another image",
    "gain_over_none": "gain over unconditional",
}


def number(value: float | None) -> str:
    """Format a number with three significant digits, without exponent; integers unchanged."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def cell(figure: Mapping[str, Any] | None, files: int | None = None) -> str:
    """A figure with its interval, and its N where that is not `files`."""
    if figure is None:
        return "-"
    counted = f" N={figure['n']}" if files not in (None, figure["n"]) else ""
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]{counted}"


def title(name: str) -> str:
    """The name of a figure: `fd/yamnet` -> Fréchet distance, yamnet."""
    metric, _, network = name.partition("/")
    text, better = METRICS[metric]
    arrow = {"lower": " ↓", "higher": " ↑", "": ""}[better]
    return f"{text}{', ' + network if network else ''}{arrow}"


def ordered(rows: Iterable[Iterable[str]]) -> list[str]:
    """The figures that occur in rows: by network, then in the order of `METRICS`; those without a network last."""
    order = list(METRICS)
    found = {name.partition("/")[::2]: name for row in rows for name in row}
    return [found[key] for key in sorted(found, key=lambda key: (key[1] or "~", order.index(key[0])))]


def figure_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The main table: a row for each figure, a column for each set."""
    sets, names = [name for name in SETS if name in rows], ordered(rows.values())
    lines = [["figure [95 % interval]", *(SETS[s] for s in sets)]]
    counts = {s: max((f["n"] for f in rows[s].values()), default=0) for s in sets}
    for name in names:
        lines.append([title(name), *(cell(rows[s].get(name), counts[s]) for s in sets)])
    return [*lines, ["audio files (N)", *(str(counts[s]) for s in sets)]]


def level_lines(levels: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> list[list[str]]:
    """A table by level of the codec or of the priors; `names`: key -> heading."""
    lines = [["level", *names.values()]]
    for level, found in levels.items():
        cells = (found.get(key) for key in names)
        lines.append([level, *(cell(x) if isinstance(x, dict) else number(x) for x in cells)])
    return lines


def model_tables(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Title and rows of the tables about a model's networks; none without a model."""
    parts = (("Codec reconstruction", "codec", CODEC), ("Priors, bits per code with", "priors", PRIORS))
    return [(name, level_lines(report[key], names)) for name, key, names in parts if report.get(key)]


def as_json(report: Mapping[str, Any]) -> bytes:
    """The report as JSON; the same report gives the same bytes."""
    return (json.dumps(report, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def sweep_lines(reports: Mapping[str, Mapping[str, Any]], row: str = "generated") -> list[list[str]]:
    """Several reports side by side: a row for each, a column for each figure of one set."""
    names = ordered(report["rows"].get(row, {}) for report in reports.values())
    names = [name for name in names if name not in ("silent", "clipped")]
    lines = [["setting", *map(title, names)]]
    for setting, report in reports.items():
        for kind in (row, "draft"):
            figures = report["rows"].get(kind)
            if figures:
                label = setting if kind == row else f"{setting}, {SETS[kind]}"
                lines.append([label, *(cell(figures.get(name)) for name in names)])
    for kind in ("shuffled", "real", "reconstruction"):
        figures = next(iter(reports.values()))["rows"].get(kind)
        if figures:
            lines.append([f"{SETS[kind]}, first setting", *(cell(figures.get(name)) for name in names)])
    return lines


def _format_tags(scores: Tensor, network: Network, fill: float) -> str:
    """The three classes with the highest scores [C], without general ones."""
    values, places = scores.masked_fill(imagehear.general_mask(network.labels), fill).topk(3)
    tags = zip(values.tolist(), places.tolist(), strict=True)
    return "; ".join(f"{network.labels[place]} {value:.2f}" for value, place in tags)


def item_rows(judged: Judged, network: Network, plan: Plan, reference: Judged | None) -> list[dict[str, Any]]:
    """A row for each audio file: its item, label, figures, top tags and nearest recording."""
    outputs, targets = judged.outputs[network.name], judged.set.targets
    rows: list[dict[str, Any]] = [
        {"name": file.name, "item": file.target, "label": plan.labels.get(file.target, "")} for file in judged.set.files
    ]
    if reference is not None:
        for name, values in paired_figures(network, outputs, reference, targets).items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = round(value, 6)
    for name, (of, values) in recognition_values(network, outputs, targets, plan.labels).items():
        answers = iter(values.tolist())
        for row, known in zip(rows, of.tolist(), strict=True):
            row[name] = round(next(answers), 6) if known else ""
    for row, level, scores in zip(rows, judged.levels.tolist(), outputs.scores, strict=True):
        row["loudness_db"], row["silent"], row["clipped"] = round(level[0], 3), int(level[1]), int(level[2])
        row["tags"] = _format_tags(scores, network, -torch.inf)
    for row, recording in zip(rows, judged.nearest, strict=False):
        row["nearest"] = recording
    return rows


def confusion(judged: Judged, network: Network, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """The confusion matrix of the labels of the data that name AudioSet classes.

    All 30 classes where the labels are ImageHear's. Labels with the same AudioSet classes count as one.

    Returns:
        `labels` and `table` (rows: true; columns: the label whose classes score highest, ties split); None
        with fewer than two labels.
    """
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
    order = list(groups.values())
    target = torch.tensor([order.index(place[label]) for label in item_labels if label in place])
    if len(groups) < 2 or not len(target):
        return None
    keep = torch.tensor([label in place for label in item_labels])
    best = best_groups(judged.outputs[network.name].scores[keep], wanted_classes(list(groups), network.labels))
    table = torch.zeros(len(order), len(order), dtype=torch.float64).index_add_(0, target, best)
    return {"labels": order, "table": [[round(x, 6) for x in row] for row in table.tolist()]}


def label_rows(rows: Sequence[dict[str, Any]], judged: Judged, network: Network) -> list[dict[str, Any]]:
    """A row for each label: its number of audio files, the means of its figures, its most frequent tags."""
    by_label: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_label.setdefault(row["label"] or "(no label)", []).append(number)
    found = []
    for label, numbers in sorted(by_label.items()):
        line: dict[str, Any] = {"label": label, "count": len(numbers)}
        for name in BY_LABEL:
            values = [rows[i][name] for i in numbers if isinstance(rows[i].get(name), int | float)]
            if values:
                line[name] = round(sum(values) / len(values), 6)
        scores = judged.outputs[network.name].scores[torch.tensor(numbers)].mean(0)
        found.append({**line, "tags": _format_tags(scores, network, 0.0)})
    return found


def ranked(rows: Sequence[Mapping[str, Any]], judged: Judged, network: Network, labels: Mapping[str, str]) -> list[int]:
    """Indices from the best to the worst audio file: by KL to the reference, else by the score of the label."""
    if rows and "kl" in rows[0]:
        return torch.tensor([row["kl"] for row in rows], dtype=torch.float64).argsort(stable=True).tolist()
    names = [imagehear.audioset_names(labels.get(t, ""), network.labels) for t in judged.set.targets]
    own = judged.outputs[network.name].scores.masked_fill(~wanted_classes(names, network.labels), 0.0).amax(1)
    return own.argsort(descending=True, stable=True).tolist()
