"""Journal of a pairs folder, for several concurrent processes that may be killed.

Each process has its own part of the journal: it appends a line for each finished source to .journal/PART/rows.jsonl,
and keeps its temporary files in the same folder. At its end, a process merges (folds) all parts into manifest.csv and
skipped.csv, sorted by id, and removes the parts of processes that have ended. So the tables depend only on the sources,
not on the number of processes or on how often they were killed.
"""

import json
import os
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from im2wav.data.manifest import COLUMNS, REQUIRED, SPLITS
from im2wav.files import path_inside, table_bytes, write_atomic
from im2wav.prepare.sources import Source
from im2wav.tables import read_table

try:
    import fcntl
except ImportError:  # Windows: only one process at a time
    fcntl = None  # type: ignore[assignment]

FOLDER, ROWS = ".journal", "rows.jsonl"
SKIPPED = ("id", "reason", "detail")


@dataclass
class State:
    """Content of a pairs folder."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows of the manifest by id
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)  # (reason, detail) by id
    since: float = 0.0  # when skipped.csv or a part was last written, in seconds since 1970

    @classmethod
    def read(cls, out: Path) -> "State":
        """Read the tables of a folder and all parts that are not folded into them yet."""
        state = cls()
        manifest, skipped = out / "manifest.csv", out / "skipped.csv"
        if manifest.is_file():
            state.rows = {row["id"]: row for row in read_table(manifest, REQUIRED, exact=True)}
        if skipped.is_file():
            rows = read_table(skipped, SKIPPED, exact=True)
            state.skipped = {row["id"]: (row["reason"], row["detail"]) for row in rows}
            state.since = skipped.stat().st_mtime
        for part in _parts(out):
            state._apply(part / ROWS)
        return state

    def _apply(self, path: Path) -> None:
        if not path.is_file():
            return
        self.since = max(self.since, path.stat().st_mtime)
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # the process was killed while it wrote the line
                continue
            record = json.loads(line)
            if "reason" in record:
                self.skipped[record["id"]] = (record["reason"], record["detail"])
                self.rows.pop(record["id"], None)
            else:
                self.rows[record["id"]] = record
                self.skipped.pop(record["id"], None)

    def settled(self, out: Path, sources: Iterable[Source]) -> bool:
        """Whether the tables are up to date: no part is left, and label, split and group are unchanged."""
        rows = ((source, self.rows.get(source.id)) for source in sources)
        return not _parts(out) and all(
            row is None or (row["label"], row["split"], row["group"]) == (source.label, source.split, source.group)
            for source, row in rows
        )

    def drop_copies(self) -> None:
        """Keep audio that occurs in several splits only in one of them: test before valid before train."""
        splits = defaultdict(set)
        for row in self.rows.values():
            if row.get("sound"):
                splits[row["sound"]].add(row["split"])
        kept = {sound: max(found, key=SPLITS.index) for sound, found in splits.items()}
        copies = [row for row in self.rows.values() if row["split"] != kept.get(row.get("sound"), row["split"])]
        for row in copies:
            detail = f"in split {row['split']}; sound {row['sound']} is also in a split that is held out from it"
            self.skipped[row["id"]] = ("duplicate audio", detail)
            del self.rows[row["id"]]


def _parts(out: Path) -> list[Path]:
    folder = out / FOLDER
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _lock(handle: int) -> bool:
    """Lock a part until this process ends; False if another process holds the lock, or the file system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _ended(part: Path) -> bool:
    """Whether the process of a part has ended."""
    try:
        handle = os.open(part / ROWS, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _lock(handle)
    finally:
        os.close(handle)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Lock the folder exclusively, for all machines that share it."""
    if fcntl is None:
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: parts are folded but not removed
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Journal:
    """The part of this process in the journal. All methods raise ValueError if the folder cannot be written."""

    def __init__(self, out: Path):
        self.out = out
        self.part = out / FOLDER / f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}"
        try:
            out.mkdir(parents=True, exist_ok=True)
            with _exclusive(out):
                self.part.mkdir(parents=True)
                self._file = os.open(self.part / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                _lock(self._file)
        except OSError as error:
            raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder so that it is complete or absent."""
        write_atomic(self.out / name, content, self.part)

    def add(self, row: Mapping[str, Any]) -> None:
        """Record a finished source: a row of the manifest, or id, reason and detail of a skipped source."""
        try:
            os.write(self._file, (json.dumps(row) + "\n").encode())
        except OSError as error:
            raise ValueError(f"cannot write {self.part / ROWS}: {error.strerror}") from error

    def release(self) -> None:
        """Close this part; the next call of `fold`, by any process, removes it."""
        os.close(self._file)

    def fold(self, sources: Mapping[str, Source], pruned: Iterable[str] = ()) -> State:
        """Merge all parts into the tables, and return the resulting content.

        Removes the parts of this and of ended processes, and the files of skipped and pruned pairs.

        Args:
            sources: sources by id, whose label, split and group are written to the tables.
            pruned: ids of pairs to remove.
        """
        with _exclusive(self.out):
            state = State.read(self.out)
            for name, row in state.rows.items():
                if source := sources.get(name):
                    row.update(label=source.label, split=source.split, group=source.group)
            state.drop_copies()
            for name in pruned:
                state.rows.pop(name, None)
            for name in (*state.skipped, *pruned):
                path_inside(self.out / "wav", name, f"{self.out}: id", ".wav").unlink(missing_ok=True)
                path_inside(self.out / "clip", name, f"{self.out}: id", ".npy").unlink(missing_ok=True)
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
