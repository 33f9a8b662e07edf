"""Convert official CLIP pickles to a pairs folder.

Official Im2Wav stores `video_CLIP/NAME.pickle` = {NAME: array [frames, 512]} and, for images,
`CLIP.pickle` = {"image": {CLASS: array [n, 512]}}; both of unit norm.
"""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from im2wav.data.manifest import COLUMNS, Pair
from im2wav.data.pairs import DatasetInfo
from im2wav.files import npy_bytes, table_bytes, wav_bytes, write_atomic
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


def convert_pickles(path: Path, wavs: Path | None, out: Path, fps: float) -> Path:
    """Convert official pickles to a pairs folder; each image of a class becomes a pair CLASS_NUMBER of one frame.

    Args:
        path: a folder of pickles, or one pickle.
        wavs: folder with NAME.wav for each NAME; None for embeddings only.
        out: the pairs folder.
        fps: frames per second of the videos.

    Raises:
        ValueError: nothing to convert, or a file is not an official pickle.
    """
    files = sorted(path.glob("*.pickle")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"pickles={path}: no .pickle files found")
    items: dict[str, tuple[str, np.ndarray]] = {}  # label and embeddings by id
    for file in files:
        for name, array in read_pickle(file).items():
            if file.name == "CLIP.pickle":
                items |= {f"{name}_{i}": (name, array[i : i + 1]) for i in range(len(array))}
            else:
                items[name] = ("", array)
    videos = all(file.name != "CLIP.pickle" for file in files)
    dim = {array.shape[1] for _, array in items.values()}
    if len(dim) != 1:
        raise ValueError(f"pickles={path} have embeddings of different widths {sorted(dim)}: convert them separately")
    rows, skipped = [], []
    for name, (label, array) in sorted(items.items()):
        wav, clip, samples = "", f"clip/{name}.npy", 0
        if wavs is not None:
            try:
                audio = read_audio(wavs / f"{name}.wav", SAMPLE_RATE)
            except MediaError as error:
                skipped.append({"id": name, "reason": error.reason, "detail": error.detail})
                continue
            wav, samples = f"wav/{name}.wav", len(audio)
            write_atomic(out / wav, wav_bytes(audio, SAMPLE_RATE))
        norm = np.linalg.norm(array, axis=1, keepdims=True)
        write_atomic(out / clip, npy_bytes((array / norm).astype(np.float16)))
        rows.append(vars(Pair(name, label, "train", "", wav, clip, samples, len(array), str(path))))
    DatasetInfo("clip_vit_b32", dim.pop(), None, fps if videos else None, SAMPLE_RATE).write(out)
    write_atomic(out / "manifest.csv", table_bytes(COLUMNS, rows))
    write_atomic(out / "skipped.csv", table_bytes(("id", "reason", "detail"), skipped))
    log.info("wrote %s", out)
    return out
