"""The report of an evaluation as one HTML file: figures, plots, sounds to hear."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from im2wav.evaluation import page, table

COLOURS = {
    "generated": "#3b6fb6",
    "draft": "#8fb3dd",
    "floor": "#5a9e6f",
    "ceiling": "#c9a227",
    "chance": "#b65a5a",
}
BARS = ("fd", "fd_half", "fd_inf", "kad", "kl", "is", "agree@1", "acc@1", "acc_30way", "cs")


def bars(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures with their intervals, a panel each, a bar for each set."""
    from matplotlib.figure import Figure

    found = {name: None for row in rows.values() for name in row if name.partition("/")[0] in BARS}
    names = sorted(found, key=lambda n: (n.partition("/")[2], BARS.index(n.partition("/")[0])))
    columns = 3
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(12, 2.6 * max(lines, 1)), layout="constrained")
    axes = figure.subplots(max(lines, 1), columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for place, kind in enumerate(k for k in table.ROWS if name in rows.get(k, {})):
            value = rows[kind][name]
            axis.bar(place, value["value"], color=COLOURS[kind], label=table.ROWS[kind])
            if value["low"] is not None:
                spread = [[max(value["value"] - value["low"], 0)], [max(value["high"] - value["value"], 0)]]
                axis.errorbar(place, value["value"], yerr=spread, color="black", capsize=3)
        axis.set(title=table.title(name), xticks=[])
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    for axis in axes[len(names) :]:
        axis.axis("off")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    return page.svg(figure)


def histograms(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Distributions of scores, a panel each: title -> {set: values}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * max(len(panels), 1), 3.2), layout="constrained")
    for axis, (name, sets) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels.items(), strict=False
    ):
        every = [x for values in sets.values() for x in values]
        low, high = min(every), max(every)
        edges = [low + (high - low or 1.0) * i / 30 for i in range(31)]
        for kind, values in sets.items():
            weights = [1 / len(values)] * len(values)
            style = {"color": COLOURS[kind], "label": table.ROWS[kind], "alpha": 0.6}
            axis.hist(values, edges, weights=weights, **style)
        axis.set(title=name, ylabel="share of sounds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return page.svg(figure)


def heatmap(found: Mapping[str, Any]) -> str:
    """The table of confusions, each line as shares of its sounds."""
    from matplotlib.figure import Figure

    labels, counts = found["labels"], found["table"]
    shares = [[x / (sum(line) or 1) for x in line] for line in counts]
    side = max(4.0, 0.34 * len(labels) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(shares, cmap="magma", vmin=0, vmax=1)
    ticks = range(len(labels))
    axis.set_xticks(ticks, labels, rotation=90, fontsize="small")
    axis.set_yticks(ticks, labels, fontsize="small")
    axis.set(xlabel="heard", ylabel="shown")
    figure.colorbar(shown, ax=axis, label="share of the label's sounds", shrink=0.6)
    return page.svg(figure)


def class_lines(classes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table by label."""
    names = {"acc_30way": "right of 30", "acc@1": "top tag", "acc@5": "in top 5", "agree@1": "as reference", "kl": "KL"}
    shown = [name for name in names if any(name in line for line in classes)]
    lines = [["label", "sounds", *(names[name] for name in shown), "heard most"]]
    for line in classes:
        values = [table.number(line[name]) if name in line else "-" for name in shown]
        lines.append([line["label"], str(line["sounds"]), *values, line["heard"]])
    return lines


def facts(report: Mapping[str, Any]) -> list[list[str]]:
    """What a figure needs to be trusted: sets, networks, protocol."""
    lines = [["what", "value"]]
    for name, about in report["sets"].items():
        seconds = about["seconds"]
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in about["sample_rate"].items())
        lengths = f"{seconds['min']:.2f} to {seconds['max']:.2f} s"
        lines.append([name, f"{about['n']} sounds of {about['items']} items, {lengths}, {rates}"])
    for name, about in report["networks"].items():
        lines.append([f"network {name}", f"{about['sample_rate']} Hz, sha256 {about['sha256']}"])
    lines += [[name, str(value)] for name, value in report["protocol"].items()]
    return [*lines, ["protocol sha256", report["protocol_sha256"]]]


def write_report(
    path: Path, report: Mapping[str, Any], panels: Mapping[str, Any], sections: Sequence[page.Section], rate: int
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        report: what the JSON file holds.
        panels: scores of single sounds, for `histograms`.
        sections: the best and worst examples.
        rate: of their sounds, Hz.
    """
    # an interval does not break over lines
    lines = [[text.replace(", ", ",\u00a0") for text in line] for line in table.figure_rows(report["rows"])]
    parts = [page.table("Figures", lines)]
    if report["warnings"]:
        parts.append(page.table("Mind", [["warning"], *([text] for text in report["warnings"])]))
    parts.append(page.plot("At a glance", "Whiskers are 95 % intervals.", bars(report["rows"])))
    if panels:
        parts.append(page.plot("Distribution of scores", "", histograms(panels)))
    parts += [page.cards(section, rate) for section in sections]
    if report.get("classes"):
        parts.append(page.table("By label", class_lines(report["classes"])))
    if report.get("confusion"):
        parts.append(
            page.plot("What is heard for which label", "Among these labels alone.", heatmap(report["confusion"]))
        )
    parts += [page.table(name, lines) for name, lines in table.model_tables(report)]
    parts.append(page.table("How it was measured", facts(report)))
    title = "im2wav: ImageHear" if report["protocol"].get("benchmark") else "im2wav: evaluation"
    text = (
        "Floor: one half of the real sounds against the other. Ceiling: real sounds through the codec. Chance: each "
        "sound judged for another picture. Distances depend on the number of sounds, the length and the network: "
        "compare only figures of one protocol."
    )
    page.write_html(path, title, text, parts)
