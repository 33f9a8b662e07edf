"""Write the files of an evaluation: report.json, report.md, report.html and items.csv; and the av-benchmark export."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from im2wav.evaluation import summary
from im2wav.evaluation.audio_files import AudioFile, Judged, Reading, format_names
from im2wav.evaluation.evaluation_inputs import Inputs
from im2wav.evaluation.networks import Network
from im2wav.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, path_inside, table_bytes, wav_bytes, write_atomic
from im2wav.media.video import read_frames
from im2wav.report import Card, Cards, Image, Plot, Table, inline_audio, inline_image, render_page
from im2wav.report.page import as_markdown
from im2wav.report.plots import plot_confusion, plot_histograms, plot_intervals

log = logging.getLogger(__name__)

COLOURS = {
    summary.SETS["generated"]: "#3b6fb6",
    summary.SETS["draft"]: "#8fb3dd",
    summary.SETS["real"]: "#5a9e6f",
    summary.SETS["reconstruction"]: "#c9a227",
    summary.SETS["shuffled"]: "#b65a5a",
    "real": "#5a9e6f",
}
PLOTTED = ("fd", "fd_half", "fd_inf", "kad", "kl", "is", "agree@1", "acc@1", "acc_30way", "cs", "retrieval")
INTRODUCTION = (
    "Real-real baseline: one half of the references against the other half. Codec reconstruction: the references "
    "encoded and decoded by the codec (upper bound). Shuffled baseline: each generated file evaluated as if it "
    "belonged to another image. Distances depend on the number of files, their length and the network: compare only "
    "figures of the same protocol."
)


def warnings_for(
    judged: Mapping[str, Judged], networks: Sequence[Network], found: Inputs, reading: Reading
) -> list[str]:
    """Return warnings about the metrics."""
    warnings = []
    for name, description in (("generated", "generated audio files"), ("reference", "references")):
        if names := found.unmatched[name]:
            warnings.append(
                f"{len(names)} {description} have no counterpart and are left out: {format_names(names, 20)}"
            )
    files = judged["generated"].set.files
    for network in networks:
        if "distance" in network.uses and "reference" in judged and len(files) < network.dim:
            warnings.append(
                f"{len(files)} audio files are fewer than the {network.dim} dimensions of an embedding of "
                f"{network.name}: the Fréchet distance is mostly bias and decreases with more files; compare it only "
                "at the same number of files, and prefer the kernel distance (KAD)"
            )
    for name, one in judged.items():
        silent = [s.name for s, x in zip(one.set.files, one.levels.tolist(), strict=True) if x[1]]
        if silent:
            warnings.append(
                f"{len(silent)} audio files of {name} are silent and are evaluated as silence: {format_names(silent)}"
            )
        short = sum(s.seconds < reading.seconds - 1e-3 for s in one.set.files)
        if short and name != "reconstruction":
            warnings.append(f"{short} audio files of {name} are repeated to {reading.seconds:.3f} s")
    if len({round(s.seconds, 3) for s in files}) > 1:
        warnings.append(
            f"generated audio files differ in length; the first {reading.seconds:.3f} s of each are evaluated"
        )
    return warnings


def _image(path: Path | None) -> Image | None:
    """Return the photo, or the first frame of the video."""
    if path is None or path.suffix.lower() in IMAGE_SUFFIXES:
        return inline_image(path) if path else None
    return inline_image(PIL.Image.fromarray(next(read_frames(path, 1.0, 1))[0]))


def example_cards(
    judged: Mapping[str, Judged],
    rows: Sequence[Mapping[str, Any]],
    order: Sequence[int],
    count: int,
    found: Inputs,
    reading: Reading,
) -> list[Cards]:
    """Return cards of the `count` best and worst generated files, with image and reference; `order`: best first."""
    if not order or not count:
        return []
    generated = judged["generated"].set
    reference = {s.name: s for s in judged["reference"].set.files} if "reference" in judged else {}

    def card(number: int) -> Card:
        file, row = generated.files[number], rows[number]
        audio = {"generated": inline_audio(reading.raw(file, generated.process), reading.rate)}
        if file.target in reference:
            audio["real"] = inline_audio(reading.raw(reference[file.target]), reading.rate)
        note = f"{file.name}: tags {row['tags']}" + (f"; KL {row['kl']:.2f}" if "kl" in row else "")
        return Card(row["label"] or file.name, _image(found.images.get(file.target)), audio, note)

    count = min(count, len(order) // 2 or 1)
    by = "KL to the tags of the reference" if "kl" in rows[0] else "the score of the label"
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
    shown = [name for name in summary.BY_LABEL if any(name in line for line in classes)]
    lines = [["label", "audio files", *(summary.BY_LABEL[name] for name in shown), "most frequent tags"]]
    for line in classes:
        values = [summary.number(line[name]) if name in line else "-" for name in shown]
        lines.append([line["label"], str(line["count"]), *values, line["tags"]])
    return lines


def _fact_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of sets, networks and protocol."""
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
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Judged],
    examples: Sequence[Cards],
) -> bytes:
    """Render the page of an evaluation; `rows` are those of items.csv."""
    # non-breaking spaces, so that an interval stays on one line
    figures = [[text.replace(", ", ",\u00a0") for text in row] for row in summary.figure_rows(report["rows"])]
    parts: list[Any] = [Table("Figures", figures)]
    if report["warnings"]:
        parts.append(Table("Warnings", [["warning"], *([text] for text in report["warnings"])]))
    parts.append(Plot("Overview", _intervals(report["rows"]), "Error bars are 95 % intervals."))
    parts.append(Plot("Distributions", _distributions(judged, rows)))
    parts += examples
    if report.get("classes"):
        parts.append(Table("By label", _label_rows(report["classes"])))
    if report.get("confusion"):
        shown = plot_confusion(report["confusion"]["labels"], report["confusion"]["table"])
        parts.append(
            Plot("Confusion matrix", shown, "Predicted label: the one with the highest score among these labels.")
        )
    parts += [Table(name, lines) for name, lines in summary.model_tables(report)]
    parts.append(Table("Protocol", _fact_rows(report)))
    title = "im2wav: ImageHear" if report["protocol"].get("benchmark") else "im2wav: evaluation"
    return render_page(title, INTRODUCTION, parts)


def write_files(out: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], page: bytes) -> None:
    """Write report.md, report.html, report.json, and items.csv with `rows`."""
    text = as_markdown(summary.figure_rows(report["rows"]))
    text += "".join(f"\n{name}\n\n{as_markdown(lines)}" for name, lines in summary.model_tables(report))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_atomic(out / "items.csv", table_bytes(columns, rows))
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", page)
    write_atomic(out / "report.json", summary.as_json(report))


def av_benchmark(out: Path, found: Inputs, reading: Reading) -> dict[str, Any]:
    """Write the folders that av-benchmark reads, with matching names.

    These are `gt_audio/NAME.wav` and `pred_audio/NAME.wav`, cut to one length; `video/NAME.mp4` if the images are
    videos; and `captions.csv` (name, caption) if there are labels. av-benchmark uses one file per reference, so only
    the first generated file of each reference is exported.

    Raises:
        ValueError: there are no references.
    """
    if found.reference is None:
        raise ValueError("export=av-benchmark needs a reference: reference=DIR, or model=DIR with data=PAIRS")
    taken: dict[str, AudioFile] = {}
    for file in found.sets["generated"].files:
        taken.setdefault(file.target, file)
    for folder in ("gt_audio", "pred_audio", "video"):
        shutil.rmtree(out / folder, ignore_errors=True)
    real = {file.name: file for file in found.reference.files}
    videos = 0
    for name, file in taken.items():
        flat = name.replace("/", "_")
        path_inside(out / "gt_audio", flat, "name of an item")
        write_atomic(out / "gt_audio" / f"{flat}.wav", wav_bytes(reading.raw(real[name]), reading.rate))
        write_atomic(out / "pred_audio" / f"{flat}.wav", wav_bytes(reading.raw(file), reading.rate))
        video = found.images.get(name)
        if video is not None and video.suffix.lower() in VIDEO_SUFFIXES:
            (out / "video").mkdir(exist_ok=True)
            shutil.copyfile(video, out / "video" / f"{flat}{video.suffix.lower()}")
            videos += 1
    if any(found.labels.get(name) for name in taken):
        captions = [{"name": name.replace("/", "_"), "caption": found.labels.get(name, "")} for name in taken]
        write_atomic(out / "captions.csv", table_bytes(("name", "caption"), captions))
    left = len(found.sets["generated"].files) - len(taken)
    log.info(
        "%d pairs, %d videos in %s%s\nnext, in av-benchmark: python evaluate.py --gt_audio %s --gt_cache %s "
        "--pred_audio %s --pred_cache %s --audio_length=%g%s",
        len(taken),
        videos,
        out,
        f"; {left} further files of the same references were left out" if left else "",
        *(out / name for name in ("gt_audio", "gt_cache", "pred_audio", "pred_cache")),
        reading.seconds,
        "" if videos else " --skip_video_related",
    )
    return {"pairs": len(taken), "videos": videos, "left_out": left, "seconds": reading.seconds, "rate": reading.rate}
