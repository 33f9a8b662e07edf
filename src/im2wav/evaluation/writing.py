"""Writing what was found: report.json, report.md, items.csv, times.json and the page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from im2wav.data.media import IMAGE_SUFFIXES, read_frames
from im2wav.data.pairs import write_atomic
from im2wav.evaluation import table
from im2wav.evaluation.figures import Plan
from im2wav.evaluation.inputs import Inputs
from im2wav.evaluation.items import ranked
from im2wav.evaluation.network import Network
from im2wav.evaluation.page import Card, Section
from im2wav.evaluation.report import write_report
from im2wav.evaluation.sounds import Judged, Reading, listed


@dataclass(frozen=True)
class Examples:
    """What the page plays: `count` of the best and of the worst sounds, as the tagger ranks them."""

    count: int
    tagger: Network | None
    plan: Plan
    pictures: Mapping[str, Path]
    reading: Reading


def warnings_for(
    judged: Mapping[str, Judged], networks: Sequence[Network], found: Inputs, reading: Reading
) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    for names, who in ((found.unmatched.generated, "generated sounds"), (found.unmatched.reference, "references")):
        if names:
            said.append(f"{len(names)} {who} have no partner and are left out: {listed(names, 20)}")
    count = len(judged["generated"].set.sounds)
    for network in networks:
        if "distance" in network.uses and "reference" in judged and count < network.dim:
            said.append(
                f"{count} sounds are fewer than the {network.dim} numbers of an embedding of {network.name}: the "
                "Fréchet distance is mostly bias, it falls as sounds are added; compare it only at the same number of "
                "sounds, and trust the kernel distance (KAD) before it"
            )
    for name, sounds in judged.items():
        silent = [s.name for s, x in zip(sounds.set.sounds, sounds.levels.tolist(), strict=True) if x[1]]
        if silent:
            said.append(f"{len(silent)} sounds of {name} are silent and are judged as silence: {listed(silent)}")
        short = [s.name for s in sounds.set.sounds if s.seconds < reading.seconds - 1e-3]
        if short and name != "ceiling":
            said.append(f"{len(short)} sounds of {name} are shorter than {reading.seconds:.3f} s and were repeated")
    lengths = {round(s.seconds, 3) for s in judged["generated"].set.sounds}
    if len(lengths) > 1:
        said.append(f"generated sounds differ in length; the first {reading.seconds:.3f} s of each are judged")
    return said


def _picture(path: Path | None, folder: Path) -> Path | None:
    """A picture to show: the photo, or the first frame of the video, written beside the page for its making."""
    if path is None or path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    frame = folder / f".{path.stem}.png"
    Image.fromarray(next(read_frames(path, 1.0, 1))[0]).save(frame)
    return frame


def sections(judged: Mapping[str, Judged], rows: Sequence[Mapping[str, Any]], examples: Examples, folder: Path) -> list:
    """The best and the worst sounds as cards, each beside its picture and its reference."""
    generated, tagger = judged["generated"], examples.tagger
    if tagger is None or not rows or not examples.count:
        return []
    order = ranked(rows, generated, tagger, examples.plan).tolist()
    reference = {s.name: s for s in judged["reference"].set.sounds} if "reference" in judged else {}
    by = "by KL to the reference's tags" if "kl" in rows[0] else "by the score of the label"

    def card(number: int) -> Card:
        sound, row = generated.set.sounds[number], rows[number]
        waves = {"generated": examples.reading.raw(sound, generated.set.process)}
        if sound.target in reference:
            waves["real"] = examples.reading.raw(reference[sound.target])
        note = f"heard: {row['heard']}" + (f"; KL {row['kl']:.2f}" if "kl" in row else "")
        picture = _picture(examples.pictures.get(sound.target), folder)
        return Card(row["label"] or sound.name, picture, waves, f"{sound.name}: {note}")

    count = min(examples.count, len(order) // 2 or 1)
    return [
        Section("Best sounds", f"The best {count}, {by}.", [card(i) for i in order[:count]]),
        Section("Worst sounds", f"The worst {count}, {by}.", [card(i) for i in order[::-1][:count]]),
    ]


def panels(judged: Mapping[str, Judged], rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Scores of single sounds whose distributions the page shows."""
    found: dict[str, dict[str, list[float]]] = {}
    if rows and "kl" in rows[0]:
        found["KL to the reference"] = {"generated": [row["kl"] for row in rows]}
    names = {"generated": "generated", "reference": "floor"}
    found["RMS level, dB"] = {
        kind: judged[name].levels[:, 0].tolist() for name, kind in names.items() if name in judged
    }
    return found


def write_all(
    out: Path,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Judged],
    examples: Examples,
    times: dict[str, float],
    start: float,
) -> None:
    """Write all files. Times go to a file of their own: the others are the same whenever the same is measured."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "items.csv", table.as_csv(rows))
    text = table.as_markdown(table.figure_rows(report["rows"]))
    text += "".join(f"\n{name}\n\n{table.as_markdown(lines)}" for name, lines in table.model_tables(report))
    write_atomic(out / "report.md", text.encode())
    try:
        shown = sections(judged, rows, examples, out)
        write_report(out / "report.html", report, panels(judged, rows), shown, examples.reading.rate)
    finally:
        for frame in out.glob(".*.png"):
            frame.unlink()
    write_atomic(out / "report.json", table.as_json(report))
    times["total"] = round(time.monotonic() - start, 3)
    write_atomic(out / "times.json", table.as_json(times))
