"""The files of an evaluation: report.json, report.md, report.html, items.csv and times.json."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from im2wav.evaluation import summary
from im2wav.evaluation.audio_files import Judged, Reading, format_names
from im2wav.evaluation.evaluation_inputs import Inputs
from im2wav.evaluation.figures import Plan
from im2wav.evaluation.items import ranked
from im2wav.evaluation.network import Network
from im2wav.files import IMAGE_SUFFIXES, table_bytes, write_atomic
from im2wav.media.reading import read_frames
from im2wav.report import Card, Cards, Image, Plot, Table, inline_audio, inline_image, render_page
from im2wav.report.page import as_markdown
from im2wav.report.plots import plot_confusion, plot_histograms, plot_intervals

COLOURS = {
    summary.SETS["generated"]: "#3b6fb6",
    summary.SETS["draft"]: "#8fb3dd",
    summary.SETS["real"]: "#5a9e6f",
    summary.SETS["reconstruction"]: "#c9a227",
    summary.SETS["shuffled"]: "#b65a5a",
    "real": "#5a9e6f",
}
PLOTTED = ("fd", "fd_half", "fd_inf", "kad", "kl", "is", "agree@1", "acc@1", "acc_30way", "cs", "retrieval")
BY_LABEL = {
    "acc_30way": "30-way accuracy",
    "acc@1": "top tag",
    "acc@5": "in top 5",
    "agree@1": "top tag of reference",
    "kl": "KL",
}
INTRODUCTION = (
    "Real-real baseline: one half of the references against the other half. Codec reconstruction: the references "
    "through the codec, an upper bound. Shuffled baseline: each generated file judged for another image. Distances "
    "depend on the number of files, their length and the network: compare only figures of one protocol."
)


@dataclass(frozen=True)
class Examples:
    """Examples of the page: `count` best and worst audio files as ranked by the tagger."""

    count: int
    tagger: Network | None
    plan: Plan
    images: Mapping[str, Path]
    reading: Reading


def warnings_for(
    judged: Mapping[str, Judged], networks: Sequence[Network], found: Inputs, reading: Reading
) -> list[str]:
    """Return warnings about the metrics."""
    found_warnings = []
    for names, description in (
        (found.unmatched.generated, "generated audio files"),
        (found.unmatched.reference, "references"),
    ):
        if names:
            found_warnings.append(
                f"{len(names)} {description} have no counterpart and are left out: {format_names(names, 20)}"
            )
    count = len(judged["generated"].set.files)
    for network in networks:
        if "distance" in network.uses and "reference" in judged and count < network.dim:
            found_warnings.append(
                f"{count} audio files are fewer than the {network.dim} dimensions of an embedding of {network.name}: "
                "the Fréchet distance is mostly bias and falls with more files; compare it only at the same number of "
                "files, and prefer the kernel distance (KAD)"
            )
    for name, one in judged.items():
        silent = [s.name for s, x in zip(one.set.files, one.levels.tolist(), strict=True) if x[1]]
        if silent:
            found_warnings.append(
                f"{len(silent)} audio files of {name} are silent and are judged as silence: {format_names(silent)}"
            )
        short = [s.name for s in one.set.files if s.seconds < reading.seconds - 1e-3]
        if short and name != "reconstruction":
            found_warnings.append(f"{len(short)} audio files of {name} are repeated to {reading.seconds:.3f} s")
    lengths = {round(s.seconds, 3) for s in judged["generated"].set.files}
    if len(lengths) > 1:
        found_warnings.append(
            f"generated audio files differ in length; the first {reading.seconds:.3f} s of each are judged"
        )
    return found_warnings


def _image(path: Path | None) -> Image | None:
    """The photo, or the first frame of the video."""
    if path is None or path.suffix.lower() in IMAGE_SUFFIXES:
        return inline_image(path) if path else None
    return inline_image(PIL.Image.fromarray(next(read_frames(path, 1.0, 1))[0]))


def example_cards(judged: Mapping[str, Judged], rows: Sequence[Mapping[str, Any]], examples: Examples) -> list[Cards]:
    """The best and the worst audio files, each beside its image and its reference."""
    generated, tagger, reading = judged["generated"], examples.tagger, examples.reading
    if tagger is None or not rows or not examples.count:
        return []
    order = ranked(rows, generated, tagger, examples.plan).tolist()
    reference = {s.name: s for s in judged["reference"].set.files} if "reference" in judged else {}
    by = "KL to the tags of the reference" if "kl" in rows[0] else "the score of the label"

    def card(number: int) -> Card:
        file, row = generated.set.files[number], rows[number]
        audio = {"generated": inline_audio(reading.raw(file, generated.set.process), reading.rate)}
        if file.target in reference:
            audio["real"] = inline_audio(reading.raw(reference[file.target]), reading.rate)
        note = f"{file.name}: tags {row['tags']}" + (f"; KL {row['kl']:.2f}" if "kl" in row else "")
        return Card(row["label"] or file.name, _image(examples.images.get(file.target)), audio, note)

    count = min(examples.count, len(order) // 2 or 1)
    return [
        Cards("Best examples", f"The best {count} by {by}.", [card(i) for i in order[:count]]),
        Cards("Worst examples", f"The worst {count} by {by}.", [card(i) for i in order[::-1][:count]]),
    ]


def _intervals(rows: Mapping[str, Mapping[str, Any]]) -> str:
    panels: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for name in summary.ordered(rows.values()):
        if name.partition("/")[0] in PLOTTED:
            panels[summary.title(name)] = {
                label: tuple(rows[kind][name][key] for key in ("value", "low", "high"))
                for kind, label in summary.SETS.items()
                if name in rows.get(kind, {})
            }
    return plot_intervals(panels, COLOURS)


def _distributions(judged: Mapping[str, Judged], rows: Sequence[Mapping[str, Any]]) -> str:
    panels: dict[str, dict[str, list[float]]] = {}
    if rows and "kl" in rows[0]:
        panels["KL to the reference"] = {"generated": [row["kl"] for row in rows]}
    names = {"generated": "generated", "reference": "real"}
    levels = {kind: judged[name].levels[:, 0].tolist() for name, kind in names.items() if name in judged}
    return plot_histograms(panels | {"RMS level, dB": levels}, COLOURS)


def _label_rows(classes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    shown = [name for name in BY_LABEL if any(name in line for line in classes)]
    lines = [["label", "audio files", *(BY_LABEL[name] for name in shown), "most frequent tags"]]
    for line in classes:
        values = [summary.number(line[name]) if name in line else "-" for name in shown]
        lines.append([line["label"], str(line["count"]), *values, line["tags"]])
    return lines


def _fact_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Table of sets, networks and protocol."""
    lines = [["name", "value"]]
    for name, about in report["sets"].items():
        seconds = about["seconds"]
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in about["sample_rate"].items())
        lengths = f"{seconds['min']:.2f} to {seconds['max']:.2f} s"
        lines.append([name, f"{about['n']} audio files of {about['items']} items, {lengths}, {rates}"])
    if report["recordings"]:
        lines.append(["retrieval", f"among {report['recordings']} recordings"])
    for name, about in report["networks"].items():
        lines.append([f"network {name}", f"{about['sample_rate']} Hz, sha256 {about['sha256']}"])
    lines += [[name, str(value)] for name, value in report["protocol"].items()]
    return [*lines, ["protocol sha256", report["protocol_sha256"]]]


def report_page(
    report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Judged], examples: Examples
) -> bytes:
    """The page of an evaluation."""
    # an interval does not break over lines
    figures = [[text.replace(", ", ",\u00a0") for text in row] for row in summary.figure_rows(report["rows"])]
    parts: list[Any] = [Table("Figures", figures)]
    if report["warnings"]:
        parts.append(Table("Warnings", [["warning"], *([text] for text in report["warnings"])]))
    parts.append(Plot("Overview", _intervals(report["rows"]), "Error bars are 95 % intervals."))
    parts.append(Plot("Distributions", _distributions(judged, rows)))
    parts += example_cards(judged, rows, examples)
    if report.get("classes"):
        parts.append(Table("By label", _label_rows(report["classes"])))
    if report.get("confusion"):
        shown = plot_confusion(report["confusion"]["labels"], report["confusion"]["table"])
        parts.append(Plot("Confusion matrix", shown, "The label with the highest score, among these labels."))
    parts += [Table(name, lines) for name, lines in summary.model_tables(report)]
    parts.append(Table("Protocol", _fact_rows(report)))
    title = "im2wav: ImageHear" if report["protocol"].get("benchmark") else "im2wav: evaluation"
    return render_page(title, INTRODUCTION, parts)


def write_files(
    out: Path,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Judged],
    examples: Examples,
    times: dict[str, float],
    start: float,
) -> None:
    """Write all files. Times are in a separate file: the others are reproducible byte by byte."""
    text = as_markdown(summary.figure_rows(report["rows"]))
    text += "".join(f"\n{name}\n\n{as_markdown(lines)}" for name, lines in summary.model_tables(report))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_atomic(out / "items.csv", table_bytes(columns, rows))
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", report_page(report, rows, judged, examples))
    write_atomic(out / "report.json", summary.as_json(report))
    times["total"] = round(time.monotonic() - start, 3)
    write_atomic(out / "times.json", summary.as_json(times))
