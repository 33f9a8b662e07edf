"""A pairs folder: what `embed` writes and training reads.

    dataset.json    which encoder (name, dim, sha256 of its weights), frame rate, sample rate, format version
    manifest.csv    one row for each pair: id, label, split, group, wav, clip, samples, frames, source, sound, note
    wav/ID.wav      16 kHz mono PCM16; absent where only a picture was given
    clip/ID.npy     image embeddings, float16 [F, D], unit norm; F = 1 for a photo
    skipped.csv     what could not be used: id, reason, detail

`fps` in dataset.json is null where every item is a photo.
"""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from im2wav.data.manifest import COLUMNS, Manifest, Pair

__all__ = ["COLUMNS", "DatasetInfo", "Manifest", "Pair", "PairsFolder"]

FORMAT = 1


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`."""

    encoder: str
    dim: int
    weights_sha256: str | None  # None where it is not known
    fps: float | None
    sample_rate: int = 16000  # Hz
    loudness: float | None = None  # dB of full scale that every sound was brought to
    format: int = FORMAT

    @classmethod
    def read(cls, root: Path) -> "DatasetInfo":
        """Read `root`/dataset.json.

        Raises:
            ValueError: absent, or of another format.
        """
        path = root / "dataset.json"
        if not path.is_file():
            raise ValueError(
                f"data.root={root} is not a pairs folder ({path.name} is missing): make one with "
                f"`python -m im2wav.embed input=YOUR_FOLDER out={root}`"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"{path}: format {values.get('format')}, expected {FORMAT}; embed the data again")
        return cls(**values)

    def check_encoder(self, name: str, weights_sha256: str | None, where: str) -> None:
        """Refuse another encoder than the one that made these embeddings.

        Raises:
            ValueError: the names, or the weights where they are known, differ.
        """
        if name != self.encoder:
            raise ValueError(
                f"{where} was made with encoder={self.encoder}, but encoder={name} is in use: their "
                f"embeddings do not mix. Use encoder={self.encoder}, or embed the data again"
            )
        if None not in (weights_sha256, self.weights_sha256) and weights_sha256 != self.weights_sha256:
            raise ValueError(
                f"{where} was made with other weights of {name} (sha256 {str(self.weights_sha256)[:12]}…, now "
                f"{str(weights_sha256)[:12]}…): use the same encoder.weights, or embed the data again"
            )

    def write(self, root: Path) -> None:
        """Write `root`/dataset.json."""
        write_atomic(root / "dataset.json", (json.dumps(asdict(self), indent=2) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: it is there whole, or not at all.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}; choose another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {path}: {error.strerror}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def wav_bytes(wav: Tensor, sample_rate: int, kind: str = "WAV") -> bytes:
    """A mono wave [N] as the bytes of a PCM16 file (`WAV` or `FLAC`). Values beyond full scale are clipped."""
    buffer = io.BytesIO()
    samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    soundfile.write(buffer, samples, sample_rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def table_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Rows as a csv file with a header."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class PairsFolder:
    """A pairs folder opened for reading; only what is asked for is read from disk.

    Attributes:
        info: what `dataset.json` says.
        pairs: the rows of the manifest, a sequence that makes a `Pair` when it is asked for one.

    Raises:
        ValueError: not a pairs folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.info = DatasetInfo.read(self.root)
        self.pairs = Manifest.read(self.root / "manifest.csv")

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """Samples [N] of a pair, from `start` on; all of them where length is -1; of two channels mix of the left one.

        Raises:
            ValueError: the file that the manifest names is missing or shorter than it says.
        """
        path = self.root / pair.wav
        try:
            samples, rate = soundfile.read(path, length, start, dtype="float32")
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise ValueError(f"{path}, named in {self.root}/manifest.csv, cannot be read: {error}") from error
        if samples.ndim == 2 and samples.shape[1] == 2:  # as in the official code, audio_utils.audio_preprocess
            samples = mix * samples[:, 0] + (1 - mix) * samples[:, 1]
        if rate != self.info.sample_rate or (length >= 0 and len(samples) != length) or samples.ndim != 1:
            raise ValueError(
                f"{path} is not {pair.samples} samples, mono or stereo, at {self.info.sample_rate} Hz: embed it again"
            )
        return torch.from_numpy(samples)

    def read_clip(self, pair: Pair, frames: np.ndarray | None = None) -> Tensor:
        """Embeddings [F, D] of the given frames of a pair (all where None), float32.

        Raises:
            ValueError: the file that the manifest names cannot be read.
        """
        path = self.root / pair.clip
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, named in {self.root}/manifest.csv, cannot be read: {error}") from error
        return torch.from_numpy(np.array(stored if frames is None else stored[frames], dtype=np.float32))
