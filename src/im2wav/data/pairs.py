"""Where training reads: a pairs folder, which `embed` writes, or the shards of one, which `shard` writes.

A pairs folder:

    dataset.json    encoder (name, dim, sha256 of its weights), frame rate, sample rate, format version
    manifest.csv    one row for each pair: id, label, split, group, wav, clip, samples, frames, source, sound, note
    wav/ID.wav      16 kHz mono PCM16; absent if there is only an image
    clip/ID.npy     image embeddings, float16 [F, D], unit norm; F = 1 for a photo
    skipped.csv     sources that could not be used: id, reason, detail
    classes.safetensors    directions of labels among the embeddings; with `encoder.pseudo_embeddings` only

`fps` in dataset.json is null where every item is a photo.

Shards are a few large files instead of two for each clip, for network disks and object stores:

    dataset.json, manifest.csv    as in a pairs folder, without the pairs that have no audio
    shards.json                   size of a chunk
    wav/index.json                a LitData data set with a record for each row: int16 [samples]
    wav/chunk-0-NUMBER.bin
    clip/index.json, ...          the same for the embeddings: float16 [F, D]

LitData's temporal layout is read by windows: index.json contains the offset of each record, so that a window costs one
read (or one range request) of each array, and the sampler decides the order as it does for a pairs folder.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from im2wav.data.manifest import Manifest, Pair
from im2wav.files import json_bytes, path_inside, write_atomic

FORMAT = 1
CLASSES_FILE = "classes.safetensors"


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
            what = f"data.root={root} is not a pairs folder ({path.name} is missing)"
            raise ValueError(f"{what}: make one with `python -m im2wav.embed input=YOUR_FOLDER out={root}`")
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

    def write(self, root: Path, temporary_folder: Path | None = None) -> None:
        """Write `root`/dataset.json."""
        write_atomic(root / "dataset.json", json_bytes(asdict(self)), temporary_folder)


class PairsFolder:
    """A pairs folder opened for reading; only the requested data is read from disk.

    Raises:
        ValueError: not a pairs folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.info = DatasetInfo.read(self.root)
        self.pairs = Manifest.read(self.root / "manifest.csv")

    def class_directions(self) -> dict[str, Tensor]:
        """Arguments of `ClassScores.set_directions` for the labels of this folder.

        Raises:
            ValueError: the folder has none, or they cannot be read.
        """
        path = self.root / CLASSES_FILE
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, which class scores as a condition need: run `python -m im2wav.embed` with "
                "encoder.pseudo_embeddings=FILE, or set model.net.conditioning.classes=0"
            )
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}; remove it and embed again") from error

    def wav_path(self, pair: Pair) -> Path:
        """The audio of a pair; raises ValueError where the manifest names a file outside the folder."""
        return path_inside(self.root, pair.wav, f"{self.root / 'manifest.csv'}: wav", nested=True)

    def clip_path(self, pair: Pair) -> Path:
        """The embeddings of a pair; raises ValueError where the manifest names a file outside the folder."""
        return path_inside(self.root, pair.clip, f"{self.root / 'manifest.csv'}: clip", nested=True)

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """Samples [N] of a pair from `start`, all if `length` is -1; `mix` is the weight of the left of two channels.

        Raises:
            ValueError: the file that the manifest names is missing or shorter than it says.
        """
        path = self.wav_path(pair)
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
        path = self.clip_path(pair)
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, named in {self.root}/manifest.csv, cannot be read: {error}") from error
        return torch.from_numpy(np.array(stored if frames is None else stored[frames], dtype=np.float32))


def import_litdata() -> Any:
    """LitData, with the submodules that shards use. Their reader and writer of one chunk are not public API.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import litdata
        import litdata.streaming.temporal
        import litdata.streaming.writer
    except ImportError as error:
        raise ValueError("shards need LitData: pip install 'im2wav[shards]'") from error
    logging.getLogger("litdata").setLevel(logging.WARNING)  # it logs each folder that it opens
    return litdata


def open_folder(root: str | Path, chunks: str | None = None) -> PairsFolder:
    """Open a pairs folder, or a folder of shards.

    Args:
        root: the folder with dataset.json and manifest.csv.
        chunks: where the wav/ and clip/ of shards are, if not in `root`: a folder or a URL such as s3://bucket/folder.

    Raises:
        ValueError: it is neither.
    """
    if chunks or (Path(root) / "wav" / "index.json").is_file():
        return ShardsFolder(root, chunks)
    return PairsFolder(root)


class ShardsFolder(PairsFolder):
    """A folder of shards, with the interface of a pairs folder. Its audio has one channel."""

    def __init__(self, root: str | Path, chunks: str | None = None):
        super().__init__(root)
        self.chunks = chunks or str(self.root)
        import_litdata()
        self._row_of = {name: row for row, name in enumerate(self.pairs.strings("id"))}
        self._opened: tuple[int, dict[str, Any]] | None = None

    def _read(self, name: str, pair: Pair, start: int, length: int) -> np.ndarray:
        if self._opened is None or self._opened[0] != os.getpid():  # each worker opens its own
            lit = import_litdata()
            loader = lit.streaming.temporal.TemporalArrayLoader
            data = {f: lit.StreamingDataset(f"{self.chunks}/{f}", item_loader=loader()) for f in ("wav", "clip")}
            for field, opened in data.items():
                for chunk in opened.subsampled_files:
                    path_inside(f"{self.chunks}/{field}", chunk, f"{self.chunks}/{field}/index.json: chunk")
            self._opened = os.getpid(), data
        try:
            return self._opened[1][name].read_window(self._row_of[pair.id], start, length)[name]
        except Exception as error:  # depends on the store
            where = f"{self.chunks}/{name}"
            raise ValueError(f"{where}: {pair.id!r} cannot be read: {type(error).__name__}: {error}") from error

    def read_wav(self, pair: Pair, start: int = 0, length: int = -1, mix: float = 0.5) -> Tensor:
        """Like `PairsFolder.read_wav`."""
        samples = self._read("wav", pair, start, length if length >= 0 else pair.samples - start)
        return torch.from_numpy(samples.astype(np.float32) / 32768)

    def read_clip(self, pair: Pair, frames: np.ndarray | None = None) -> Tensor:
        """Like `PairsFolder.read_clip`."""
        first, last = (0, pair.frames - 1) if frames is None else (int(frames.min()), int(frames.max()))
        found = self._read("clip", pair, first, last - first + 1)
        return torch.from_numpy((found if frames is None else found[frames - first]).astype(np.float32))
