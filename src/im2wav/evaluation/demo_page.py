"""Figures and page of the demo, from the evaluations of its two splits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from im2wav.checkpoint import STARTER
from im2wav.data.pairs import PairsFolder
from im2wav.evaluation import summary
from im2wav.files import IMAGE_SUFFIXES, item_names, list_files, write_atomic
from im2wav.media.reading import read_audio
from im2wav.report import Audio, Card, Cards, Plot, Table, Text, inline_audio, inline_image, render_page
from im2wav.report.plots import plot_curves
from im2wav.tables import read_table

INTRODUCTION = (
    "The starter model, which is part of im2wav, generated audio for photos that it has never seen. Then three small "
    "models were trained on {sounds} images and their recordings, all in {minutes:.0f} minutes, and generated the rest "
    "of the audio. They memorise their few recordings: they show that everything works end to end. Their full "
    "evaluations are evaluation/train/report.html and evaluation/valid/report.html in the folder of this page."
)
UNSEEN_PHOTOS = (
    "Audio for photos that it was not trained on, at its default settings, one seed, none left out. Its card is below."
)
UNSEEN = (
    "These images were not used in training, but other images of the same label were. With so little data, expect the "
    "audio of a similar image, or a mixture."
)


SPLITS = ("train", "valid")
# key in metrics.json -> (row of the evaluation of the training split, name on the page, meaning on the page)
RETRIEVAL = {
    "retrieval_train": ("generated", "generated", "the demo passes at 0.7"),
    "retrieval_shuffled": ("shuffled", "generated, images shuffled", "shuffled baseline"),
    "retrieval_draft": ("draft", "drafts of the low prior", "before the up prior refines them"),
    "retrieval_reconstruction": ("reconstruction", "codec reconstruction", "an upper bound"),
}


def read_curves(run_folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Loss curves of a training run, from its newest csv log."""
    newest = max((run_folder / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime_ns)
    rows = read_table(newest, {"step"})
    points = {n: [(float(r["step"]), float(r[n])) for r in rows if r.get(n)] for n in ("train/loss", "valid/loss")}
    return {name: curve for name, curve in points.items() if curve}


def _values(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures without their intervals."""
    return {name: figure["value"] if isinstance(figure, dict) else figure for name, figure in figures.items()}


def write_demo(out: Path, stages: Sequence[str], own: str | None, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write index.html and metrics.json, and return the content of metrics.json.

    Args:
        out: folder of the demo, with `pairs`, `evaluation/SPLIT`, the runs of the stages, and for images of the user
            `own`.
        stages: names of the models.
        own: folder of the user's images, if any.
        seconds: time of each command.
    """
    folder = PairsFolder(out / "pairs")
    pairs = {pair.id: pair for pair in folder.pairs}
    reports = {split: json.loads((out / "evaluation" / split / "report.json").read_text()) for split in SPLITS}
    rows = {split: read_table(out / "evaluation" / split / "items.csv", {"item", "nearest"}) for split in SPLITS}
    seen = {Path(pair.source).read_bytes() for pair in pairs.values() if pair.split == "train"}
    rows["valid"] = [row for row in rows["valid"] if Path(pairs[row["item"]].source).read_bytes() not in seen]
    found = reports["train"]["rows"]
    bits = {
        split: {
            f"{level}_prior": {way: of[way]["value"] for way in ("condition", "shuffled", "none") if way in of}
            for level, of in report["priors"].items()
        }
        for split, report in reports.items()
    }
    figures = {
        **{name: found[row]["retrieval"]["value"] for name, (row, _, _) in RETRIEVAL.items()},
        "sounds": found["generated"]["retrieval"]["n"],
        "unseen_same_label": sum(pairs[row["nearest"]].label == row["label"] for row in rows["valid"]),
        "unseen_sounds": len(rows["valid"]),
        "codec": {level: _values(of_level) for level, of_level in reports["train"]["codec"].items()},
        "bits_per_code": bits,
        "seconds": dict(seconds),
    }
    curves = {stage: read_curves(out / stage) for stage in stages}
    write_atomic(out / "index.html", demo_page(out, folder, figures, reports, rows, curves, own))
    write_atomic(out / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    return figures


def demo_page(
    out: Path,
    folder: PairsFolder,
    figures: Mapping[str, Any],
    reports: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, str]]],
    curves: Mapping[str, Any],
    own: str | None,
) -> bytes:
    """Render the page: images with their real and generated audio, the figures and the loss curves.

    Args:
        out: folder of the demo, with `evaluation/SPLIT/sounds` and, for images of the user, `own`.
        folder: the pairs.
        figures: the content of metrics.json.
        reports: the content of report.json by split.
        rows: the rows of items.csv that are shown, by split.
        curves: loss curves by model.
        own: folder of the user's images, if any.
    """
    rate, pairs = folder.info.sample_rate, {pair.id: pair for pair in folder.pairs}

    def generated(where: Path, name: str) -> dict[str, Audio]:
        levels = {"generated": "up", "draft (low)": "low"}
        return {k: inline_audio(read_audio(where / v / f"{name}_00.wav", rate), rate) for k, v in levels.items()}

    def card(split: str, row: Mapping[str, str]) -> Card:
        pair, nearest = pairs[row["item"]], row["nearest"]
        window = round(reports[split]["protocol"]["seconds"] * rate)
        audio = {"real": inline_audio(folder.read_wav(pair)[:window], rate)}
        audio |= generated(out / "evaluation" / split / "sounds", pair.id)
        note = f"{pair.id}: nearest training recording is {nearest}{' (its own)' if nearest == pair.id else ''}"
        return Card(pair.label, inline_image(Path(pair.source)), audio, note)

    def photo_cards(title: str, text: str, photos: Path, made: Path) -> Cards:
        paths = list_files(photos, IMAGE_SUFFIXES)
        files = dict(zip(item_names(paths, photos), paths, strict=True))
        shown = {name: path for name, path in files.items() if (made / "up" / f"{name}_00.wav").is_file()}
        return Cards(title, text, [Card(n, inline_image(path), generated(made, n)) for n, path in shown.items()])

    parts: list[Any] = [photo_cards("The starter model: unseen photos", UNSEEN_PHOTOS, out / "photos", out / "starter")]
    if own:
        text = f"From {own}, by the starter model."
        parts.insert(0, photo_cards("Your own images", text, Path(own), out / "own"))
    retrieval: list[Any] = [("audio", "fraction", "meaning")]
    retrieval += [(name, figures[key], meaning) for key, (_, name, meaning) in RETRIEVAL.items()]
    parts.append(Table("Trained here: how often is the nearest training recording the image's own?", retrieval))
    parts.append(Cards("Trained here: unseen images", UNSEEN, [card("valid", row) for row in rows["valid"]]))
    parts.append(Cards("Trained here: images of the training set", "", [card("train", row) for row in rows["train"]]))
    for split, report in reports.items():
        parts += [Table(f"{name}, {split} split", lines) for name, lines in summary.model_tables(report)]
    parts += [Table("Time", [("stage", "seconds"), *figures["seconds"].items()]), Plot("Loss", plot_curves(curves))]
    card_text = (STARTER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]  # without its metadata
    parts.append(Text("The starter model: its card", card_text.strip()))
    text = INTRODUCTION.format(sounds=figures["sounds"], minutes=figures["seconds"]["total"] / 60)
    return render_page("im2wav: generated audio of the demo", text, parts)
