"""What is in a folder of pairs, in numbers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from im2wav.data.manifest import Manifest
from im2wav.data.pairs import PairsFolder
from im2wav.data.splits import groups

Table = list[Sequence[Any]]  # the first row holds the column names
QUANTILES = {"least": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "most": 1.0}
CLIPPED, SILENT = 0.999, -60.0  # full scale is 1; dB
STEADY = 0.1  # a frame rate may differ from the stated one by this share of it


@dataclass
class Survey:
    """Tables by heading, what looks wrong, and the values behind the plots."""

    tables: dict[str, Table] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)


def spread(values: Mapping[str, np.ndarray]) -> Table:
    """Quantiles and mean of several sets of numbers."""
    rows: Table = [("", *QUANTILES, "mean")]
    for name, numbers in values.items():
        if len(numbers):
            quantiles = np.quantile(numbers, list(QUANTILES.values()))
            rows.append((name, *map(float, quantiles), float(numbers.mean())))
    return rows


def _count(survey: Survey, folder: PairsFolder, splits: Mapping[str, np.ndarray], seconds: np.ndarray) -> None:
    pairs, info = folder.pairs, folder.info
    labels = np.array(list(pairs.strings("label")), dtype=object)
    keys = np.array(groups(pairs), dtype=object)
    survey.tables["What is there"] = [
        ("", ""),
        ("pairs", len(pairs)),
        ("with a sound", int((seconds > 0).sum())),
        ("hours of sound", float(seconds.sum() / 3600)),
        ("labels", len(set(labels) - {""})),
        ("encoder", f"{info.encoder}, {info.dim} numbers for a frame"),
        ("frames a second", "photos" if info.fps is None else f"{info.fps:g}"),
        ("sample rate", f"{info.sample_rate} Hz"),
    ]
    rows: Table = [("split", "pairs", "hours", "labels", "groups")]
    for split, taken in splits.items():
        named = set(labels[taken]) - {""}
        rows.append((split, len(taken), float(seconds[taken].sum() / 3600), len(named), len(set(keys[taken]))))
    survey.tables["Splits"] = rows
    if not len(splits["train"]):
        survey.findings.append("no pair is for training")
    counts = Counter(labels)
    by_split = {split: Counter(labels[taken]) for split, taken in splits.items()}
    rows = [("label", "pairs", *splits)]
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        rows.append((label or "(none)", count, *(by_split[split][label] for split in splits)))
    survey.tables["Labels"] = rows
    never = sorted(label for label in counts if label and not by_split["train"][label])
    if never and len(splits["train"]):
        survey.findings.append(f"{len(never)} labels are never trained on: {_some(never)}")


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
            f"{short} sounds are shorter than a window of {window:g} s: data.short says how they are read"
        )
    if info.fps is not None and len(sounding):
        rates = pairs.column("frames")[seconds > 0] / sounding
        spreads["frames a second"] = survey.values["frames a second"] = rates
        odd = int((np.abs(rates / info.fps - 1) > STEADY).sum())
        if odd:
            survey.findings.append(
                f"{odd} clips have {STEADY:.0%} more or fewer frames than {info.fps:g} a second of their sound: the "
                "picture or the sound ends early"
            )
    survey.tables["Lengths"] = spread(spreads)


def _repeats(survey: Survey, pairs: Manifest, splits: Mapping[str, np.ndarray]) -> None:
    where = np.full(len(pairs), "", dtype=object)
    for split, rows in splits.items():
        where[rows] = split
    table: Table = [("what", "come more than once", "pairs that they make", "lie in several splits")]
    for column, what in (("sound", "sounds, to the sample"), ("source", "pictures or videos"), ("group", "groups")):
        places: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(pairs.strings(column)):
            if value:
                places[value].append(row)
        if not places:
            table.append((what, "not noted in the manifest", "", ""))
            continue
        several = [rows for rows in places.values() if len(rows) > 1]
        torn = [rows for rows in several if len(set(where[rows])) > 1]
        table.append((what, len(several), sum(map(len, several)), len(torn)))
        if torn:
            names = [pairs[row].id for row in torn[0]]
            survey.findings.append(
                f"{len(torn)} {what} lie in more than one split, such as {_some(names)}: validation would know them; "
                "data.split=group keeps them together"
            )
    survey.tables["Duplicates"] = table


def _listen(
    survey: Survey, folder: PairsFolder, rows: np.ndarray, progress: Callable[[np.ndarray], Any] | None
) -> None:
    loudness, peaks, broken = [], [], []
    for row in progress(rows) if progress else rows:
        pair = folder.pairs[int(row)]
        try:
            wav = folder.read_wav(pair)
        except ValueError as error:
            broken.append(str(error))
            continue
        peaks.append(wav.abs().max().item() if len(wav) else 0.0)
        loudness.append(10 * np.log10(max(wav.square().mean().item(), 1e-10)) if len(wav) else -100.0)
    level, peak = np.array(loudness), np.array(peaks)
    survey.values["loudness, dB"] = level
    survey.tables[f"Loudness of {len(level)} sounds"] = spread({"RMS, dB of full scale": level, "peak": peak})
    for count, what in (
        (int((level < SILENT).sum()), f"are silent (below {SILENT:g} dB)"),
        (int((peak >= CLIPPED).sum()), "reach full scale and may be clipped"),
    ):
        if count:
            survey.findings.append(f"{count} of {len(level)} sounds {what}")
    if broken:
        survey.findings.append(f"{len(broken)} of {len(rows)} sounds cannot be read: {broken[0]}")


def survey(
    folder: PairsFolder,
    splits: Mapping[str, np.ndarray],
    num_samples: int,
    listen_to: np.ndarray,
    progress: Callable[[np.ndarray], Any] | None = None,
) -> Survey:
    """Look at all rows of the manifest, and listen to some of the sounds.

    Args:
        folder: the pairs.
        splits: rows of each split.
        num_samples: of a training window.
        listen_to: rows whose sounds are read.
        progress: wraps these rows, to show how far it is.
    """
    found = Survey()
    seconds = folder.pairs.column("samples") / folder.info.sample_rate
    _count(found, folder, splits, seconds)
    _measure(found, folder, seconds, num_samples)
    _listen(found, folder, listen_to, progress)
    _repeats(found, folder.pairs, splits)
    return found
