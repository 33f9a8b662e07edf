"""The rows of a pairs folder, and their splits into training, validation and test.

200,000 rows are one block of JSON and a few arrays, not a million Python objects. Forked workers share them, because
reading a row changes no reference count in them.
"""

import copy
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from im2wav.tables import fit_row, read_header, read_records

COLUMNS = ("id", "label", "split", "group", "wav", "clip", "samples", "frames", "source", "sound", "note", "stamp")
SPLITS = ("train", "valid", "test")
NUMBERS = ("samples", "frames")
REQUIRED = frozenset(COLUMNS) - {"sound", "note", "stamp"}  # earlier versions did not write these
FRACTIONS = {"train": 0.9, "valid": 0.05, "test": 0.05}


@dataclass(frozen=True)
class Pair:
    """One row of the manifest."""

    id: str
    label: str
    split: str
    group: str  # pairs that share a recording or an image belong to one group
    wav: str  # path relative to the folder; empty if there is no audio
    clip: str
    samples: int
    frames: int
    source: str  # the image or video that it was made from
    sound: str = ""  # hash of the samples
    note: str = ""  # what was corrected, such as "sound cut: ..."
    stamp: str = ""  # of the source files when they were read: size and time, or size and hash


class Manifest(Sequence[Pair]):
    """A sequence of `Pair`s, each created when it is accessed.

    Args:
        rows: the fields of each row, in the order of `COLUMNS`.

    Raises:
        ValueError: `samples` or `frames` of a row is not a whole number.
    """

    def __init__(self, rows: Iterable[Sequence[str]]):
        text, ends, numbers = bytearray(), array("q", [0]), {name: array("q") for name in NUMBERS}
        for row in rows:
            text += json.dumps(row).encode()
            ends.append(len(text))
            for name, values in numbers.items():
                values.append(int(row[COLUMNS.index(name)] or 0))
        self._text, self._ends = bytes(text), np.array(ends)
        self._numbers = {name: np.array(values) for name, values in numbers.items()}
        self._rows = np.arange(len(ends) - 1)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.csv.

        Raises:
            ValueError: it does not exist, lacks a column, or has a value that is not a number where one is expected.
        """
        return cls(_ordered(path))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(index)
        row = int(self._rows[index])
        values: dict[str, Any] = dict(zip(COLUMNS, self._fields(row), strict=True))
        return Pair(**values | {name: int(numbers[row]) for name, numbers in self._numbers.items()})

    def _fields(self, row: int) -> list[str]:
        return json.loads(self._text[self._ends[row] : self._ends[row + 1]])

    def column(self, name: str) -> np.ndarray:
        """The values of `samples` or `frames`: int64 [rows]."""
        return self._numbers[name][self._rows]

    def strings(self, name: str) -> Iterator[str]:
        """The values of any other column."""
        index = COLUMNS.index(name)
        return (self._fields(row)[index] for row in self._rows.tolist())

    def take(self, rows: np.ndarray | slice) -> "Manifest":
        """The given rows, by number or as a mask [rows], without copying the text."""
        taken = copy.copy(self)
        taken._rows = self._rows[rows]
        return taken

    def where(self, name: str, test: Callable[[str], bool]) -> np.ndarray:
        """A mask [rows] of the rows whose value in a column of strings passes a test."""
        return np.fromiter(map(test, self.strings(name)), bool, len(self))


def _ordered(path: Path) -> Iterator[list[str]]:
    """The rows of a manifest.csv with their fields in the order of `COLUMNS`."""
    records = read_records(path, exact=True)
    header = read_header(path, records, REQUIRED)
    places = [header.index(name) if name in header else len(header) for name in COLUMNS]
    numbers = [COLUMNS.index(name) for name in NUMBERS]
    for record in records:
        fields = [*fit_row(path, record, header, REQUIRED), ""]  # last, the value of a missing column
        row = [fields[place] for place in places]
        for number in numbers:
            if row[number] and not row[number].isdecimal():
                raise ValueError(f"{path}, line {record[0]}: {COLUMNS[number]}={row[number]}: expected a whole number")
        yield row


def hash_fraction(text: str, purpose: str) -> float:
    """A deterministic pseudo-random number in [0, 1) from a text; different for each purpose."""
    digest = hashlib.blake2b(f"{purpose}\n{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def groups(pairs: Manifest) -> list[str]:
    """Group of each row, whose pairs stay in one split: the manifest's group; else the hash of the audio, so that
    duplicates stay together; else the id.
    """
    columns = zip(pairs.strings("group"), pairs.strings("sound"), pairs.strings("id"), strict=True)
    return [group or sound or name for group, sound, name in columns]


def split_rows(
    pairs: Manifest, by: str = "column", fractions: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Rows of each split.

    Args:
        pairs: the manifest.
        by: `column`, from the manifest; or `group`, by a hash of each group, so that a split does not change with the
            order of the rows or when rows are added.
        fractions: fractions of the groups for train, valid and test, with `group`.

    Raises:
        ValueError: unknown `by`, fractions that do not add up to 1, or an unknown split in the manifest.
    """
    if by == "column":
        found = np.array(list(pairs.strings("split")), dtype=object)
        if unknown := set(found) - set(SPLITS):
            raise ValueError(f"the manifest has rows with split={min(unknown)!r}: expected one of {SPLITS}")
        return {split: np.flatnonzero(found == split) for split in SPLITS}
    if by != "group":
        raise ValueError(f"data.split={by!r}: expected column or group")
    fractions = dict(FRACTIONS if fractions is None else fractions)
    if set(fractions) != set(SPLITS) or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"data.split_fractions={fractions}: expected fractions of {SPLITS} that add up to 1")
    borders = np.cumsum([fractions[split] for split in SPLITS])
    positions = np.array([hash_fraction(group, "split") for group in groups(pairs)])
    number = np.minimum(np.searchsorted(borders, positions, side="right"), len(SPLITS) - 1)
    return {split: np.flatnonzero(number == i) for i, split in enumerate(SPLITS)}


def fraction_of(pairs: Manifest, rows: np.ndarray, fraction: float) -> np.ndarray:
    """Select about a fraction of the rows; a smaller fraction is a subset of a larger one.

    Raises:
        ValueError: the fraction is not > 0 and <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.train_fraction={fraction}: must be above 0 and at most 1")
    if fraction == 1:
        return rows
    chosen = [hash_fraction(name, "fraction") < fraction for name in pairs.take(rows).strings("id")]
    return rows[np.array(chosen, dtype=bool)]
