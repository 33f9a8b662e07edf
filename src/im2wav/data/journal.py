"""What is done of a pairs folder, while several processes fill it and any of them may be killed.

Each process appends a line for each finished input to a part of its own, .journal/PART/rows.jsonl, and keeps its
temporary files beside it. Whoever ends folds all parts into manifest.csv and skipped.csv, sorted by id, and removes
those whose process has ended. So the tables depend on the inputs alone: not on the number of processes, nor on how
often they were killed.
"""

import json
import os
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from im2wav.data.manifest import COLUMNS, REQUIRED
from im2wav.data.media import read_table
from im2wav.data.pairs import table_bytes, write_atomic
from im2wav.data.sources import SPLITS, Source

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None  # type: ignore[assignment]

FOLDER, ROWS = ".journal", "rows.jsonl"
SKIPPED = ("id", "reason", "detail")


@dataclass
class State:
    """What a pairs folder holds.

    Attributes:
        rows: of the manifest, by id.
        skipped: (reason, detail) by id.
        since: when the record of skipped inputs was last written, in seconds since 1970.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    since: float = 0.0

    @classmethod
    def read(cls, out: Path) -> "State":
        """The tables of a folder and all parts that were not folded into them yet.

        Raises:
            ValueError: a table that is none.
        """
        state = cls()
        manifest, skipped = out / "manifest.csv", out / "skipped.csv"
        if manifest.is_file():
            state.rows = {row["id"]: row for row in read_table(manifest, set(REQUIRED))}
        if skipped.is_file():
            state.skipped = {row["id"]: (row["reason"], row["detail"]) for row in read_table(skipped, set(SKIPPED))}
            state.since = skipped.stat().st_mtime
        for part in _parts(out):
            state._apply(part / ROWS)
        return state

    def _apply(self, path: Path) -> None:
        if not path.is_file():
            return
        self.since = max(self.since, path.stat().st_mtime)
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # killed while it was written
                continue
            record = json.loads(line)
            if "reason" in record:
                self.skipped[record["id"]] = (record["reason"], record["detail"])
                self.rows.pop(record["id"], None)
            else:
                self.rows[record["id"]] = record
                self.skipped.pop(record["id"], None)

    def files(self, out: Path) -> set[str]:
        """The files of the folder, as the manifest names them; read folder by folder, which is fast."""
        return {
            f"{kind}/{name}" for kind in ("wav", "clip") if (out / kind).is_dir() for name in os.listdir(out / kind)
        }

    def settled(self, out: Path, sources: Iterable[Source]) -> bool:
        """Whether the tables need not be written again: no part is left, and the inputs say what they said before."""
        rows = ((source, self.rows.get(source.id)) for source in sources)
        return not _parts(out) and all(
            row is None or (row["label"], row["split"], row["group"]) == (source.label, source.split, source.group)
            for source, row in rows
        )

    def drop_copies(self) -> None:
        """Of sounds that lie in several splits, keep those of the most held-out one: test, valid, train."""
        splits = defaultdict(set)
        for row in self.rows.values():
            if row.get("sound"):
                splits[row["sound"]].add(row["split"])
        for name, row in list(self.rows.items()):
            found = splits.get(row.get("sound") or "", set())
            if len(found) > 1 and row["split"] != max(found, key=SPLITS.index):
                detail = f"in split {row['split']}; sound {row['sound']} is also in a split that is held out from it"
                self.skipped[name] = ("duplicate sound", detail)
                del self.rows[name]


def _parts(out: Path) -> list[Path]:
    folder = out / FOLDER
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _lock(handle: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: parts are folded in, and stay
        return wait
    return True


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Only one process at a time, on any machine that shares the folder."""
    if fcntl is None:
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


class Journal:
    """This process's part.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, out: Path):
        self.out = out
        self.part = out / FOLDER / f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}"
        try:
            out.mkdir(parents=True, exist_ok=True)
            with _alone(out):
                self.part.mkdir(parents=True)
                self._file = os.open(self.part / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                _lock(self._file, wait=False)  # held for as long as this process lives
        except OSError as error:
            raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder: whole, or not at all.

        Raises:
            ValueError: it cannot be written.
        """
        write_atomic(self.out / name, content, self.part)

    def add(self, row: Mapping[str, Any]) -> None:
        """Note that an input is done: a row of the manifest, or id, reason and detail.

        Raises:
            ValueError: it cannot be written.
        """
        try:
            os.write(self._file, (json.dumps(row) + "\n").encode())
        except OSError as error:
            raise ValueError(f"cannot write {self.part / ROWS}: {error.strerror}") from error

    def release(self) -> None:
        """Nothing more comes from this process; whoever folds next removes its part."""
        os.close(self._file)

    def fold(self, sources: Mapping[str, Source]) -> State:
        """Write the tables and remove the parts of processes that have ended, this one's too; returns what is there.

        Args:
            sources: by id; what they now say of label, split and group is taken over.
        """
        with _alone(self.out):
            state = State.read(self.out)
            for name, row in state.rows.items():
                if source := sources.get(name):
                    row.update(label=source.label, split=source.split, group=source.group)
            before = dict(state.rows)
            state.drop_copies()
            for name in before.keys() - state.rows.keys():
                for kind in ("wav", "clip"):
                    (self.out / before[name][kind]).unlink(missing_ok=True)
            self.write("manifest.csv", table_bytes(COLUMNS, (state.rows[name] for name in sorted(state.rows))))
            skipped = ({"id": n, "reason": r, "detail": d} for n, (r, d) in sorted(state.skipped.items()))
            self.write("skipped.csv", table_bytes(SKIPPED, skipped))
            for part in _parts(self.out):
                if part == self.part or _ended(part):
                    shutil.rmtree(part)
            self.release()
            if not _parts(self.out):
                shutil.rmtree(self.out / FOLDER)
        return state


def _ended(part: Path) -> bool:
    """Whether the process that a part belongs to is gone."""
    try:
        handle = os.open(part / ROWS, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _lock(handle, wait=False)
    finally:
        os.close(handle)
