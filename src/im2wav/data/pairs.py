"""A pairs folder: what `embed` writes and training reads.

    dataset.json    encoder (name, dim, sha256 of its weights), frame rate, sample rate, format version
    manifest.csv    one row for each pair: id, label, split, group, wav, clip, samples, frames, source, sound, note
    wav/ID.wav      16 kHz mono PCM16; absent if there is only an image
    clip/ID.npy     image embeddings, float16 [F, D], unit norm; F = 1 for a photo
    skipped.csv     sources that could not be used: id, reason, detail

`fps` in dataset.json is null where every item is a photo.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from im2wav.data.manifest import Manifest, Pair
from im2wav.files import write_atomic

FORMAT = 1


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`."""

    encoder: str
    dim: int
    weights_sha256: str | None  # None if unknown
    fps: float | None
    sample_rate: int = 16000  # Hz
    loudness: float | None = None  # RMS level in dBFS that all audio was scaled to
    data: str | None = None  # name of the data set
    list_sha256: str | None = None  # of the published list of its clips and splits
    resampler: str | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, root: Path) -> "DatasetInfo":
        """Read `root`/dataset.json.

        Raises:
            ValueError: the file is missing or has another format version.
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
        """Check that an encoder is the one that made these embeddings.

        Raises:
            ValueError: the names, or the weights where they are known, differ.
        """
        if name != self.encoder:
            raise ValueError(
                f"{where} was made with encoder={self.encoder}, but encoder={name} is used now: their "
                f"embeddings do not mix. Set encoder={self.encoder}, or embed the data again"
            )
        if None not in (weights_sha256, self.weights_sha256) and weights_sha256 != self.weights_sha256:
            raise ValueError(
                f"{where} was made with other weights of {name} (sha256 {str(self.weights_sha256)[:12]}…, now "
                f"{str(weights_sha256)[:12]}…): use the same encoder.weights, or embed the data again"
            )

    def content(self) -> bytes:
        """The bytes of dataset.json."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def write(self, root: Path) -> None:
        """Write `root`/dataset.json."""
        write_atomic(root / "dataset.json", self.content())


class PairsFolder:
    """A pairs folder opened for reading; only the requested data is read from disk.

    Attributes:
        info: the content of `dataset.json`.
        pairs: the rows of the manifest, a sequence of `Pair`s.

    Raises:
        ValueError: not a pairs folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.info = DatasetInfo.read(self.root)
        self.pairs = Manifest.read(self.root / "manifest.csv")

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """Samples [N] of a pair from `start`, all if `length` is -1; `mix` is the weight of the left of two channels.

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
        """Embeddings [F, D] of the given frames of a pair (all if None), float32.

        Raises:
            ValueError: the file that the manifest names cannot be read.
        """
        path = self.root / pair.clip
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, named in {self.root}/manifest.csv, cannot be read: {error}") from error
        return torch.from_numpy(np.array(stored if frames is None else stored[frames], dtype=np.float32))
