"""The page of the demo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from im2wav.data.pairs import PairsFolder
from im2wav.evaluation import summary
from im2wav.files import IMAGE_SUFFIXES, item_name, list_files
from im2wav.media.reading import read_audio
from im2wav.report import Audio, Card, Cards, Plot, Table, inline_audio, inline_image, render_page
from im2wav.report.plots import plot_curves

INTRODUCTION = (
    "Three small models, trained on {sounds} images and their recordings in {minutes:.0f} minutes, generated the audio "
    "on this page from the images alone. Models this small, with so few examples, memorise their recordings: the demo "
    "proves that every part works together. Generating audio for new images takes more data and larger models. The "
    "full evaluations are evaluation/train/report.html and evaluation/valid/report.html beside this page."
)
UNSEEN = (
    "Held out of training, while other images of the same label were not. With so little data, expect the audio of a "
    "similar image, or a mixture."
)


def _retrieval(figures: Mapping[str, Any]) -> list[Sequence[Any]]:
    return [
        ("audio", "fraction", "meaning"),
        ("generated", figures["retrieval_train"], "the demo passes at 0.7"),
        ("generated, images shuffled", figures["retrieval_shuffled"], "shuffled baseline"),
        ("drafts of the low prior", figures["retrieval_draft"], "before the up prior refines them"),
        (
            "codec reconstruction",
            figures["retrieval_reconstruction"],
            "an upper bound",
        ),
    ]


def demo_page(
    out: Path,
    folder: PairsFolder,
    figures: Mapping[str, Any],
    reports: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, str]]],
    curves: Mapping[str, Any],
    own: str | None,
) -> bytes:
    """Images with their real and generated audio, the figures and the loss curves.

    Args:
        out: folder of the demo, with `evaluation/SPLIT/sounds` and, for images of the user, `own`.
        folder: the pairs.
        figures: the content of metrics.json.
        reports: the content of report.json by split.
        rows: the rows of items.csv that are shown, by split.
        curves: loss curves by model.
        own: folder of the user's images.
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

    parts: list[Any] = [Table("Is the nearest training recording the image's own?", _retrieval(figures))]
    if own:
        files = {item_name(path, Path(own)): path for path in list_files(Path(own), IMAGE_SUFFIXES)}
        shown = {name: path for name, path in files.items() if (out / "own" / "up" / f"{name}_00.wav").is_file()}
        cards = [Card(name, inline_image(path), generated(out / "own", name)) for name, path in shown.items()]
        parts.append(Cards("Your own images", f"From {own}.", cards))
    parts.append(Cards("Unseen images", UNSEEN, [card("valid", row) for row in rows["valid"]]))
    parts.append(Cards("Images of the training set", "", [card("train", row) for row in rows["train"]]))
    for split, report in reports.items():
        parts += [Table(f"{name}, {split} split", lines) for name, lines in summary.model_tables(report)]
    parts += [Table("Time", [("stage", "seconds"), *figures["seconds"].items()]), Plot("Loss", plot_curves(curves))]
    text = INTRODUCTION.format(sounds=figures["sounds"], minutes=figures["seconds"]["total"] / 60)
    return render_page("im2wav: generated audio of the demo", text, parts)
