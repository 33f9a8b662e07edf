"""A report's figures as rows of tables, and their names."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

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
