"""The `inspect` command: statistics of a pairs folder, what looks wrong in it, and a page of examples."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from im2wav.data.manifest import Manifest, groups, split_rows
from im2wav.data.pairs import PairsFolder, open_folder
from im2wav.files import IMAGE_SUFFIXES, write_atomic
from im2wav.media.reading import MediaError, read_image
from im2wav.media.video import read_frames
from im2wav.report import Card, Cards, Plot, Table, inline_audio, inline_image, render_page
from im2wav.report.page import Rows, as_text
from im2wav.report.plots import plot_counts, plot_histograms
from im2wav.system import track_progress
from im2wav.tables import read_table

log = logging.getLogger(__name__)

QUANTILES = {"minimum": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "maximum": 1.0}
CLIPPED, SILENT = 0.999, -60.0  # full scale is 1; dB
STEADY = 0.1  # a frame rate may differ from the stated one by this fraction of it
LINES, MOST_ROWS, MOST_SECONDS = 15, 100, 10  # rows of a table in the terminal and on the page; of each audio there


@dataclass
class Survey:
    """Tables by heading, what looks wrong, and the values behind the plots."""

    tables: dict[str, Rows] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)


def spread(values: Mapping[str, np.ndarray]) -> Rows:
    """Quantiles and mean of several sets of numbers."""
    rows: list = [("", *QUANTILES, "mean")]
    for name, numbers in values.items():
        if len(numbers):
            quantiles = np.quantile(numbers, list(QUANTILES.values()))
            rows.append((name, *map(float, quantiles), float(numbers.mean())))
    return rows


def _count(survey: Survey, folder: PairsFolder, splits: Mapping[str, np.ndarray], seconds: np.ndarray) -> None:
    pairs, info = folder.pairs, folder.info
    labels = np.array(list(pairs.strings("label")), dtype=object)
    keys = np.array(groups(pairs), dtype=object)
    survey.tables["Contents"] = [
        ("", ""),
        ("pairs", len(pairs)),
        ("with audio", int((seconds > 0).sum())),
        ("hours of audio", float(seconds.sum() / 3600)),
        ("labels", len(set(labels) - {""})),
        ("encoder", f"{info.encoder}, {info.dim} dimensions"),
        ("frames per second", "photos" if info.fps is None else f"{info.fps:g}"),
        ("sample rate", f"{info.sample_rate} Hz"),
    ]
    rows: list = [("split", "pairs", "hours", "labels", "groups")]
    for split, taken in splits.items():
        named = set(labels[taken]) - {""}
        rows.append((split, len(taken), float(seconds[taken].sum() / 3600), len(named), len(set(keys[taken]))))
    survey.tables["Splits"] = rows
    if not len(splits["train"]):
        survey.findings.append("no pair is in the training split")
    counts = Counter(labels)
    by_split = {split: Counter(labels[taken]) for split, taken in splits.items()}
    rows = [("label", "pairs", *splits)]
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        rows.append((label or "(none)", count, *(by_split[split][label] for split in splits)))
    survey.tables["Labels"] = rows
    never = sorted(label for label in counts if label and not by_split["train"][label])
    if never and len(splits["train"]):
        survey.findings.append(f"{len(never)} labels have no training pair: {_some(never)}")


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _measure(survey: Survey, folder: PairsFolder, seconds: np.ndarray, num_samples: int) -> None:
    pairs, info = folder.pairs, folder.info
    sounding = seconds[seconds > 0]
    window = num_samples / info.sample_rate
    spreads = {"seconds": sounding, "frames": pairs.column("frames")}
    survey.values["seconds"] = sounding
    short = int((sounding < window).sum())
    if short:
        survey.findings.append(
            f"{short} recordings are shorter than a window of {window:g} s: data.short sets how they are read"
        )
    if info.fps is not None and len(sounding):
        rates = pairs.column("frames")[seconds > 0] / sounding
        spreads["frames per second"] = survey.values["frames per second"] = rates
        odd = int((np.abs(rates / info.fps - 1) > STEADY).sum())
        if odd:
            survey.findings.append(
                f"{odd} clips have {STEADY:.0%} more or fewer frames than {info.fps:g} per second of their audio: the "
                "video or the audio track ends early"
            )
    survey.tables["Lengths"] = spread(spreads)


def _repeats(survey: Survey, pairs: Manifest, splits: Mapping[str, np.ndarray]) -> None:
    where = np.full(len(pairs), "", dtype=object)
    for split, rows in splits.items():
        where[rows] = split
    table: list = [("what", "occur more than once", "pairs affected", "in several splits")]
    for column, what in (("sound", "identical recordings"), ("source", "images or videos"), ("group", "groups")):
        places: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(pairs.strings(column)):
            if value:
                places[value].append(row)
        if not places:
            table.append((what, "not in the manifest", "", ""))
            continue
        several = [rows for rows in places.values() if len(rows) > 1]
        torn = [rows for rows in several if len(set(where[rows])) > 1]
        table.append((what, len(several), sum(map(len, several)), len(torn)))
        if torn:
            names = [pairs[row].id for row in torn[0]]
            survey.findings.append(
                f"{len(torn)} {what} are in more than one split, such as {_some(names)}: they leak into validation; "
                "data.split=group keeps them together"
            )
    survey.tables["Duplicates"] = table


def _measure_loudness(survey: Survey, folder: PairsFolder, rows: np.ndarray) -> None:
    loudness, peaks, broken = [], [], []
    for row in track_progress(rows, desc="loudness", unit="file", total=len(rows)):
        try:
            wav = folder.read_wav(folder.pairs[int(row)])
        except ValueError as error:
            broken.append(str(error))
            continue
        peaks.append(wav.abs().max().item() if len(wav) else 0.0)
        loudness.append(10 * np.log10(max(wav.square().mean().item(), 1e-10)) if len(wav) else -100.0)
    level, peak = np.array(loudness), np.array(peaks)
    survey.values["loudness, dB"] = level
    survey.tables[f"Loudness of {len(level)} recordings"] = spread({"RMS, dB of full scale": level, "peak": peak})
    silent, clipped = int((level < SILENT).sum()), int((peak >= CLIPPED).sum())
    if silent:
        survey.findings.append(f"{silent} of {len(level)} recordings are silent (below {SILENT:g} dB)")
    if clipped:
        survey.findings.append(f"{clipped} of {len(level)} recordings reach full scale and may be clipped")
    if broken:
        survey.findings.append(f"{len(broken)} of {len(rows)} recordings cannot be read: {broken[0]}")


def _skipped(root: Path) -> Rows:
    """Why inputs could not be used when the pairs were made, from skipped.csv."""
    path = root / "skipped.csv"
    rows = read_table(path, {"reason"}, exact=True) if path.is_file() else []
    reasons = Counter(row["reason"] for row in rows)
    return [("reason", "inputs"), *(reasons.most_common() or [("nothing skipped", 0)])]


def draw_rows(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` random rows in their order; all if there are no more."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def survey(folder: PairsFolder, splits: Mapping[str, np.ndarray], num_samples: int, measured: np.ndarray) -> Survey:
    """Statistics of all rows of the manifest, and of the recordings of the `measured` rows.

    Args:
        folder: the pairs.
        splits: rows of each split.
        num_samples: of a training window.
        measured: rows whose recordings are read for their loudness.

    Raises:
        ValueError: the folder has no pairs.
    """
    if not len(folder.pairs):
        raise ValueError(f"{folder.root / 'manifest.csv'} has no rows: nothing to inspect")
    found = Survey()
    seconds = folder.pairs.column("samples") / folder.info.sample_rate
    _count(found, folder, splits, seconds)
    _measure(found, folder, seconds, num_samples)
    _measure_loudness(found, folder, measured)
    _repeats(found, folder.pairs, splits)
    found.tables["Skipped when the pairs were made"] = _skipped(folder.root)
    return found


def survey_text(found: Survey) -> str:
    """The tables and the findings for a terminal."""
    parts = [f"{heading}\n{as_text(rows, LINES)}" for heading, rows in found.tables.items()]
    findings = [f"  - {text}" for text in found.findings or ["nothing looks wrong"]]
    return "\n\n".join([*parts, "\n".join(["Findings", *findings])])


def _image(source: Path) -> Image.Image | None:
    """The photo, or the middle frame of the video; None if it cannot be read."""
    try:
        if source.suffix.lower() in IMAGE_SUFFIXES:
            return read_image(source)
        frames = [frame for chunk in read_frames(source, 1.0, 8) for frame in chunk]
        return Image.fromarray(frames[len(frames) // 2])
    except (MediaError, IndexError, OSError):
        return None


def _card(folder: PairsFolder, row: int) -> Card:
    """A pair: image, audio, and its row of the manifest."""
    pair, rate, audio = folder.pairs[row], folder.info.sample_rate, {}
    note = [pair.label or "no label", pair.split, f"{pair.frames} frames" if folder.info.fps else "photo"]
    if pair.samples:
        try:
            audio["audio"] = inline_audio(folder.read_wav(pair, 0, min(pair.samples, MOST_SECONDS * rate)), rate)
            note.append(f"{pair.samples / rate:.2f} s")
        except ValueError as error:
            note.append(str(error))
    image = _image(Path(pair.source)) if Path(pair.source).is_file() else None
    note += [pair.note] * bool(pair.note) + ["its image is missing"] * (image is None)
    return Card(pair.id, inline_image(image) if image else None, audio, "; ".join(note))


def survey_page(folder: PairsFolder, found: Survey, examples: np.ndarray) -> bytes:
    """A page of the tables, the findings, histograms, and the pairs in some rows."""
    text = f"{len(examples)} of {len(folder.pairs)} pairs, drawn at random; audio is cut after {MOST_SECONDS} s."
    contents, *others = [Table(name, rows[: MOST_ROWS + 1]) for name, rows in found.tables.items()]
    counts = [row[1] for row in found.tables["Labels"][1:]]
    return render_page(
        f"The pairs in {folder.root}",
        "",
        [
            contents,
            Table("Findings", [("what looks wrong",), *((text,) for text in found.findings or ["nothing"])]),
            Cards("Examples", text, [_card(folder, int(row)) for row in examples]),
            Plot("Distributions", plot_histograms({name: {name: values} for name, values in found.values.items()})),
            Plot("Pairs by label", plot_counts(counts, "labels, most frequent first")),
            *others,
        ],
    )


def run_survey(cfg: DictConfig) -> Survey:
    """Compute the statistics of a pairs folder, print them and write the page.

    Raises:
        ValueError: there are no pairs, a split is invalid, or the page cannot be written.
    """
    folder = open_folder(cfg.data.root, cfg.data.chunks)
    with_audio = np.flatnonzero(folder.pairs.column("samples") > 0)
    measured = with_audio if cfg.full else draw_rows(with_audio, cfg.num_measured, cfg.seed)
    splits = split_rows(folder.pairs, cfg.data.split, cfg.data.split_fractions)
    found = survey(folder, splits, cfg.data.num_samples, measured)
    log.info("%s", survey_text(found))
    if cfg.out:
        examples = draw_rows(np.arange(len(folder.pairs)), cfg.cards, cfg.seed)
        write_atomic(Path(cfg.out), survey_page(folder, found, examples))
        log.info("\npage: %s", Path(cfg.out).resolve())
    return found
