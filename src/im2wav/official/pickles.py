"""Convert official CLIP pickles to a pairs folder.

Official Im2Wav stores `video_CLIP/NAME.pickle` = {NAME: array [frames, 512]} and, for images,
`CLIP.pickle` = {"image": {CLASS: array [n, 512]}}; both of unit norm.
"""

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from im2wav.data.manifest import COLUMNS, Pair
from im2wav.data.pairs import DatasetInfo
from im2wav.files import npy_bytes, path_inside, table_bytes, wav_bytes, write_atomic
from im2wav.media.reading import MediaError, read_audio

log = logging.getLogger(__name__)
SAMPLE_RATE = 16000
# globals of pickled numpy arrays; numpy 2 renamed the module
_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    for name in ("_reconstruct", "_frombuffer")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler for numpy arrays in plain containers; rejects all other types."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow the globals of numpy arrays only."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, but only numpy arrays are allowed")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read embeddings [F, D] by name from an official pickle.

    Raises:
        ValueError: not an official pickle.
    """
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file).load()
        entries = content.get("image", content)
        arrays = {str(name): np.asarray(value, dtype=np.float32) for name, value in entries.items()}
        wrong = [name for name, array in arrays.items() if array.ndim != 2 or not len(array)]
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"{path} is not an official CLIP pickle: {error}") from error
    if wrong or not arrays:
        raise ValueError(f"{path} is not an official CLIP pickle: {wrong or 'it'} has no array [frames, width]")
    return arrays


def read_items(files: Sequence[Path], out: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Labels and embeddings [F, D] by id; each image of a class is an item CLASS_NUMBER of one frame.

    Raises:
        ValueError: a file is not an official pickle, a name cannot be a file name, or two files have the same name.
    """
    items: dict[str, tuple[str, np.ndarray]] = {}
    first: dict[str, Path] = {}
    for file in files:
        found: dict[str, tuple[str, np.ndarray]] = {}
        for name, array in read_pickle(file).items():
            if file.name == "CLIP.pickle":
                found |= {f"{name}_{i}": (name, array[i : i + 1]) for i in range(len(array))}
            else:
                found[name] = ("", array)
        for name in found:
            path_inside(out / "clip", name, f"{file}: name")
            if name in first:
                raise ValueError(f"{file} and {first[name]} both contain {name!r}: keep one of them")
            first[name] = file
        items |= found
    return items


def unit_norm(name: str, array: np.ndarray) -> np.ndarray:
    """Embeddings [F, D] scaled to unit norm, as float16.

    Raises:
        MediaError: an embedding is zero or not finite.
    """
    norm = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
    if len(wrong):
        what = f"{len(wrong)} of {len(array)} embeddings are zero or not finite, the first is number {wrong[0]}"
        raise MediaError("broken embeddings", f"{name}: {what}")
    return (array / norm).astype(np.float16)


def convert_pickles(path: Path, wavs: Path | None, out: Path, fps: float) -> Path:
    """Convert official pickles to a pairs folder; each image of a class becomes a pair CLASS_NUMBER of one frame.

    Names without audio in `wavs`, or with broken embeddings, are listed in skipped.csv.

    Args:
        path: a folder of pickles, or one pickle.
        wavs: folder with NAME.wav for each NAME; None for embeddings only.
        out: the pairs folder.
        fps: frames per second of the videos.

    Raises:
        ValueError: nothing to convert, a file is not an official pickle, a name that cannot be a file name or occurs
            twice, or `wavs` is not the folder of the audio.
    """
    files = sorted(path.glob("*.pickle")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"pickles={path}: no .pickle files found")
    if wavs is not None and not wavs.is_dir():
        raise ValueError(f"wavs={wavs} is not a folder: expected one with NAME.wav for each NAME of the pickles")
    items = read_items(files, out)
    dim = {array.shape[1] for _, array in items.values()}
    if len(dim) != 1:
        raise ValueError(f"pickles={path} have embeddings of different widths {sorted(dim)}: convert them separately")
    rows, skipped = [], []
    for name, (label, array) in sorted(items.items()):
        wav, clip, samples = "", f"clip/{name}.npy", 0
        try:
            embeddings = npy_bytes(unit_norm(name, array))
            if wavs is not None:
                audio = read_audio(path_inside(wavs, name, f"{path}: name", ".wav"), SAMPLE_RATE)
                wav, samples = f"wav/{name}.wav", len(audio)
                write_atomic(out / wav, wav_bytes(audio, SAMPLE_RATE))
        except MediaError as error:
            skipped.append({"id": name, "reason": error.reason, "detail": error.detail})
            continue
        write_atomic(out / clip, embeddings)
        rows.append(vars(Pair(name, label, "train", "", wav, clip, samples, len(array), str(path))))
    if not rows:
        why = f"{skipped[0]['reason']}: {skipped[0]['detail']}"
        raise ValueError(f"pickles={path}: none of its {len(items)} names can be converted; the first: {why}")
    videos = all(file.name != "CLIP.pickle" for file in files)
    DatasetInfo("clip_vit_b32", dim.pop(), None, fps if videos else None, SAMPLE_RATE).write(out)
    write_atomic(out / "manifest.csv", table_bytes(COLUMNS, rows))
    write_atomic(out / "skipped.csv", table_bytes(("id", "reason", "detail"), skipped))
    if skipped:
        log.warning("%d of %d names were skipped, see %s", len(skipped), len(items), out / "skipped.csv")
    log.info("wrote %s", out)
    return out
