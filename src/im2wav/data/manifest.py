"""The rows of a pairs folder, stored by column: 200,000 of them are a few arrays, not a million Python objects.

Forked workers share the memory of a manifest, because reading a row changes no reference count in it.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

COLUMNS = ("id", "label", "split", "group", "wav", "clip", "samples", "frames", "source", "sound", "note")
SPLITS = ("train", "valid", "test")
NUMBERS = ("samples", "frames")
REQUIRED = frozenset(COLUMNS) - {"sound", "note"}  # earlier versions did not write these two
_CHUNK = 8192  # rows in memory as lists of strings


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


@dataclass(frozen=True)
class StringColumn:
    """A column of strings: their concatenated UTF-8 bytes, and where each ends."""

    text: bytes
    ends: np.ndarray  # int64 [rows + 1], the first one 0

    @classmethod
    def pack(cls, values: Sequence[str]) -> "StringColumn":
        """From a list of strings."""
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        return cls(b"".join(encoded), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    @classmethod
    def join(cls, parts: "Sequence[StringColumn]") -> "StringColumn":
        """Concatenate columns."""
        starts = np.cumsum([0, *(len(part.text) for part in parts)], dtype=np.int64)
        ends = [part.ends[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(b"".join(part.text for part in parts), np.concatenate([starts[:1], *ends]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> str:
        return self.text[self.ends[row] : self.ends[row + 1]].decode("utf-8", "surrogateescape")


class Manifest(Sequence[Pair]):
    """A sequence of `Pair`s, each created when it is accessed.

    Args:
        columns: `StringColumn` or int64 arrays of all rows, by name.
        rows: which rows, in which order; all if None.
    """

    def __init__(self, columns: Mapping[str, StringColumn | np.ndarray], rows: np.ndarray | None = None):
        self._columns = columns
        self._rows = np.arange(len(columns["samples"])) if rows is None else rows

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.csv.

        Raises:
            ValueError: it does not exist, lacks a column, or has a value that is not a number where one is expected.
        """
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        parts: dict[str, list] = {name: [] for name in COLUMNS}
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if missing := REQUIRED - set(header):
                raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {header}")
            place = {name: header.index(name) if name in header else None for name in COLUMNS}
            while rows := list(islice(reader, _CHUNK)):
                rows = [row for row in rows if row]
                if short := next((row for row in rows if len(row) != len(header)), None):
                    raise ValueError(f"{path}: a row of {len(short)} fields, expected {len(header)}: {short[:3]}")
                for name, index in place.items():
                    values = [""] * len(rows) if index is None else [row[index] for row in rows]
                    parts[name].append(_numbers(path, name, values) if name in NUMBERS else StringColumn.pack(values))
        empty = np.zeros(0, np.int64)
        return cls({n: np.concatenate([empty, *p]) if n in NUMBERS else StringColumn.join(p) for n, p in parts.items()})

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return Manifest(self._columns, self._rows[index])
        row = int(self._rows[index])
        values: dict[str, Any] = {name: column[row] for name, column in self._columns.items()}
        return Pair(**{**values, **{name: int(values[name]) for name in NUMBERS}})

    def column(self, name: str) -> np.ndarray:
        """The values of `samples` or `frames`: int64 [rows]."""
        column = self._columns[name]
        assert isinstance(column, np.ndarray)
        return column[self._rows]

    def strings(self, name: str) -> Iterator[str]:
        """The values of any other column."""
        column = self._columns[name]
        assert isinstance(column, StringColumn)
        return (column[row] for row in self._rows.tolist())

    def take(self, rows: np.ndarray) -> "Manifest":
        """The given rows, by number or as a mask [rows], without copying the columns."""
        return Manifest(self._columns, self._rows[rows])

    def where(self, name: str, test: Callable[[str], bool]) -> np.ndarray:
        """A mask [rows] of the rows whose value in a column of strings passes a test."""
        return np.fromiter(map(test, self.strings(name)), bool, len(self))


def _numbers(path: Path, name: str, values: list[str]) -> np.ndarray:
    try:
        return np.array([int(value or 0) for value in values], np.int64)
    except ValueError as error:
        raise ValueError(f"{path}: column {name}: {error}; expected whole numbers") from error
