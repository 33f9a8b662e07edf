"""Files of all packages: atomic writes, hashes, listing media files, names of inputs and shards."""

import csv
import hashlib
import io
import json
import os
import pickle
import re
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".m4a", ".aac", ".wma", ".amr", ".caf", ".mka"}
)
# audio files that im2wav writes by itself, by suffix: format and subtype of libsndfile
AUDIO_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp", ".3g2", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".wmv"}
    | {".flv", ".ogv", ".gif"}
)
# of systems and network storage; hidden folders are left out as well
SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
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


def wav_bytes(wav: Tensor, sample_rate: int, suffix: str = "wav") -> bytes:
    """A mono waveform [N] as the bytes of a file, by default 16-bit PCM. Values beyond full scale are clipped.

    Args:
        wav: samples.
        sample_rate: Hz; opus allows 8000, 12000, 16000, 24000 and 48000.
        suffix: a key of `AUDIO_FORMATS`.
    """
    buffer = io.BytesIO()
    kind, subtype = AUDIO_FORMATS[suffix]
    samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    soundfile.write(buffer, samples, sample_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def cache_folder() -> Path:
    """Folder of what is kept between runs: IM2WAV_CACHE, or ~/.cache/im2wav."""
    return Path(os.environ.get("IM2WAV_CACHE") or Path.home() / ".cache" / "im2wav")


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


def walk_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """All files below a folder, sorted; links are followed. Hidden files and folders of systems are left out.

    Returns:
        The files, and the entries that are none, with the reason.
    """
    files: list[Path] = []
    others: list[tuple[Path, str]] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in SYSTEM_FOLDERS and not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if any("\udc80" <= letter <= "\udcff" for letter in name):  # bytes that are no UTF-8
                others.append((path, "the name is not UTF-8; rename it"))
            elif path.is_file():
                files.append(path)
            else:
                others.append((path, "a link to nothing" if path.is_symlink() else "no regular file"))
    return sorted(files), sorted(others)


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below a folder with one of the lower-case suffixes, in any case, sorted; see `walk_files`."""
    return [path for path in walk_files(folder)[0] if path.suffix.lower() in suffixes]


def same_name(text: str) -> str:
    """A name in composed letters (Unicode NFC): Macs decompose them, spreadsheets and most systems do not."""
    return unicodedata.normalize("NFC", text)


def find_path(path: Path) -> Path:
    """The path as it is written in its folder, which may compose the letters of its name in another way."""
    if path.exists() or not path.parent.is_dir():
        return path
    return next((other for other in path.parent.iterdir() if same_name(other.name) == same_name(path.name)), path)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def item_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Names of inputs: their paths below `root` without suffix, folders joined by an underscore.

    Where two would have the same name, all of that name keep their suffix (`clip_mp4`), or else join folders by two
    underscores.

    Raises:
        ValueError: names that are still the same.
    """
    parts = [[same_name(part) for part in path.relative_to(root).with_suffix("").parts] for path in paths]
    suffixes = [path.suffix.lower()[1:] for path in paths]
    names = ["_".join(part) for part in parts]
    forms: list[Callable[[int], str]] = [
        lambda index: f"{'_'.join(parts[index])}_{suffixes[index]}",
        lambda index: "__".join(parts[index]),
        lambda index: f"{'__'.join(parts[index])}_{suffixes[index]}",
    ]
    groups = defaultdict(list)
    for index, name in enumerate(names):
        groups[name].append(index)
    for name, group in groups.items():
        if len(group) == 1:
            continue
        form = next((form for form in forms if len({form(index) for index in group}) == len(group)), None)
        for index in group if form else ():
            names[index] = form(index)  # type: ignore[misc]
        if form is None or any(names[index] in groups and names[index] != name for index in group):
            raise ValueError(f"several files of {root} would have the name {name!r}; rename them")
    return names


def path_inside(folder: str | Path, name: str, origin: object, suffix: str = "", nested: bool = False) -> Path:
    """The path of a name that was read from a file: an id, a column of a manifest, a key of a pickle, ...

    All such names become paths here, so that none leads out of its folder. Links inside the folder are followed: they
    are part of the user's own folder.

    Args:
        folder: where the file is.
        name: its name without `suffix`.
        origin: what the message begins with: the file that contains the name, and what it is a name of.
        suffix: added to the name.
        nested: whether the name may contain subfolders, separated by slashes.

    Raises:
        ValueError: it is empty, absolute or too long, contains `..`, or a slash where it must not.
    """
    parts = re.split("[/\\\\]" if os.sep == "\\" else "/", name + suffix)
    wrong = "\0" in name or parts[-1] in ("", ".") or ".." in parts or bool(Path(name).anchor)
    if not nested:
        wrong = wrong or len(parts) > 1 or len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME
    if wrong:
        shown = repr(name[:60]) + "..." * (len(name) > 60)
        allowed = "a path below it" if nested else f"at most {LONGEST_NAME} bytes without slashes"
        raise ValueError(f"{origin} {shown} cannot be a file name in {folder}: expected {allowed}, no '..'; rename it")
    return Path(folder, name + suffix)


def load_failure(error: Exception) -> str:
    """Why torch.load rejected a file, in one line, without torch's advice to load it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            return f"it contains {found[1]}, which could run code; only tensors, numbers and texts are loaded"
        return "its pickle is damaged, or contains more than tensors, numbers and texts"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` is shard number 2, counted from 0, of 8: how all commands divide their work among processes.

    Raises:
        ValueError: not of the form NUMBER/COUNT with NUMBER below COUNT.
    """
    number, _, count = str(text).partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={text}: expected NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 0/4")
    return int(number), int(count)
