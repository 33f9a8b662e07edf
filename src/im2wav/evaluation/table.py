"""A report's figures as text: the table that is printed, Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

# row -> what it is
ROWS = {
    "generated": "generated",
    "draft": "draft (low prior)",
    "floor": "real / real (floor)",
    "ceiling": "codec (ceiling)",
    "chance": "shuffled (chance)",
}
# figure -> what it is, which way is better
METRICS = {
    "fd": ("Fréchet distance", "lower"),
    "fd_half": ("Fréchet distance of halves", "lower"),
    "fd_inf": ("Fréchet distance at infinite N", "lower"),
    "kad": ("kernel distance (KAD)", "lower"),
    "kl": ("KL, softmax", "lower"),
    "kl_sigmoid": ("KL, sigmoid", "lower"),
    "is": ("inception score", "higher"),
    "agree@1": ("top tag as the reference's", "higher"),
    "agree@5": ("reference's top tag in 5", "higher"),
    "acc@1": ("label is the top tag", "higher"),
    "acc@5": ("label in the top 5", "higher"),
    "acc_30way": ("ImageHear, right of 30", "higher"),
    "cs": ("CS, CLIP picture and sound", "higher"),
    "loudness_db": ("RMS level, dB", ""),
    "silent": ("share silent", ""),
    "clipped": ("share clipped", ""),
}

# of a codec and of priors, by level
CODEC = {
    "si_sdr_db": "SI-SDR, dB",
    "log_stft_db": "log-STFT distance, dB",
    "codes_used": "share of codes used",
    "codes_perplexity": "perplexity",
    "codebook_size": "codebook",
}
PRIORS = {
    "condition": "bits with its picture",
    "shuffled": "with another's",
    "none": "with none",
    "gain_over_shuffled": "gain over another's",
    "gain_over_none": "gain over none",
}


def number(value: float | None) -> str:
    """A figure with three significant digits, never in powers of ten; a count as it is."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def cell(figure: Mapping[str, Any] | None, sounds: int | None = None) -> str:
    """A figure with its interval, and its number of sounds where that is not `sounds`."""
    if figure is None:
        return "-"
    counted = f" N={figure['n']}" if sounds not in (None, figure["n"]) else ""
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]{counted}"


def title(name: str) -> str:
    """What a figure is called: `fd/yamnet` -> Fréchet distance, yamnet."""
    metric, _, network = name.partition("/")
    text, better = METRICS[metric]
    arrow = {"lower": " ↓", "higher": " ↑", "": ""}[better]
    return f"{text}{', ' + network if network else ''}{arrow}"


def figure_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The main table: a line for each figure, a column for each set; the first line holds the column names."""
    sets = [name for name in ROWS if name in rows]
    found = {name: None for row in rows.values() for name in row}
    order = list(METRICS)
    names = sorted(found, key=lambda n: (n.partition("/")[2] or "~", order.index(n.partition("/")[0])))
    lines = [["figure [95 % interval]", *(ROWS[s] for s in sets)]]
    counts = {s: max((f["n"] for f in rows[s].values()), default=0) for s in sets}
    for name in names:
        lines.append([title(name), *(cell(rows[s].get(name), counts[s]) for s in sets)])
    return [*lines, ["sounds (N)", *(str(counts[s]) for s in sets)]]


def level_lines(levels: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> list[list[str]]:
    """A table by level of the codec or of the priors; `names`: key -> heading."""
    lines = [["level", *names.values()]]
    for level, found in levels.items():
        cells = (found.get(key) for key in names)
        lines.append([level, *(cell(x) if isinstance(x, dict) else number(x) for x in cells)])
    return lines


def model_tables(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Title and lines of the tables about a model's nets; none where only sounds were judged."""
    parts = (("Codec", "codec", CODEC), ("Priors, bits per code", "priors", PRIORS))
    return [(name, level_lines(report[key], names)) for name, key, names in parts if report.get(key)]


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Lines as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines as a Markdown table."""
    head, *rest = lines
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in rest)]) + "\n"


def as_json(report: Mapping[str, Any]) -> bytes:
    """The report as JSON; the same report gives the same bytes."""
    return (json.dumps(report, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def as_csv(items: Sequence[Mapping[str, Any]]) -> bytes:
    """One line for each sound."""
    buffer = io.StringIO(newline="")
    columns = list(dict.fromkeys(name for item in items for name in item))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(items)
    return buffer.getvalue().encode()


def sweep_lines(reports: Mapping[str, Mapping[str, Any]], row: str = "generated") -> list[list[str]]:
    """Several reports side by side: a line for each, a column for each figure of one row."""
    found = {name: None for report in reports.values() for name in report["rows"].get(row, {})}
    order = list(METRICS)
    names = sorted(found, key=lambda n: (n.partition("/")[2] or "~", order.index(n.partition("/")[0])))
    names = [n for n in names if n not in ("silent", "clipped")]
    lines = [["setting", *map(title, names)]]
    for setting, report in reports.items():
        for kind in (row, "draft"):
            figures = report["rows"].get(kind)
            if figures:
                said = setting if kind == row else f"{setting}, draft of the low prior"
                lines.append([said, *(cell(figures.get(name)) for name in names)])
    for kind in ("chance", "floor", "ceiling"):
        figures = next(iter(reports.values()))["rows"].get(kind)
        if figures:
            lines.append([f"{ROWS[kind]}, first setting", *(cell(figures.get(name)) for name in names)])
    return lines
