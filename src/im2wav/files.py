"""Files of all packages: atomic writes, hashes, listing media files, names of inputs and shards."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"})
LONGEST_NAME = 240  # bytes of a name, with room for a number and a suffix

_UMASK = os.umask(0)  # it can only be read by setting it, which must not happen in threads
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path, temporary_folder: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` at the end: the file is complete or absent.

    The folder of `path` is created. The temporary file is beside it or in `temporary_folder`, on the same file system.

    Raises:
        ValueError: the file or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=temporary_folder or path.parent, prefix=".writing-")
        os.close(handle)
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}; choose another folder") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes, temporary_folder: Path | None = None) -> None:
    """Write a file so that it is complete or absent; see `atomic_path`.

    Raises:
        ValueError: the file or its folder cannot be written.
    """
    with atomic_path(path, temporary_folder) as temporary:
        temporary.write_bytes(content)


def wav_bytes(wav: Tensor, sample_rate: int, kind: str = "WAV") -> bytes:
    """A mono waveform [N] as the bytes of a PCM16 file (`WAV` or `FLAC`). Values beyond full scale are clipped."""
    buffer = io.BytesIO()
    samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    soundfile.write(buffer, samples, sample_rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def json_bytes(value: object) -> bytes:
    """A value as the bytes of an indented JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def table_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Rows as a csv file with a header; values of other columns are left out."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def read_table(path: Path, required: set[str]) -> list[dict[str, str]]:
    """Read the rows of a csv file with a header.

    Raises:
        ValueError: the file does not exist or lacks a required column.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        reader = csv.DictReader(file)
        missing = required - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {reader.fieldnames}")
        return list(reader)


def file_sha256(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of weights by name, shape and value in fp32: the file, its format and its precision do not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        if value.numel():
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def list_files(folder: Path, suffixes: Collection[str], follow_links: bool = False) -> list[Path]:
    """Files below a folder with one of the lower-case suffixes, in any case, sorted; hidden files are skipped."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=follow_links)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
    )


def item_name(path: Path, root: Path) -> str:
    """Name of an input: its path below `root` without suffix, folders joined by underscores."""
    return "_".join(path.relative_to(root).with_suffix("").parts)


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` is shard number 2, counted from 0, of 8: how all commands divide their work among processes.

    Raises:
        ValueError: not of the form NUMBER/COUNT with NUMBER below COUNT.
    """
    number, _, count = str(text).partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={text}: expected NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 0/4")
    return int(number), int(count)
