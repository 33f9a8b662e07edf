"""Windows of audio with the video frames of the same time, and the cached codes of whole clips.

With the cache, training a prior does not encode the same audio again and again:

    codes/HASH/codes.json      codec, hops, and how short clips were extended
    codes/HASH/low/ID.npy      int16 or int32 [samples / hop]
    codes/HASH/up/ID.npy

HASH is the beginning of the sha256 of the codec's weights, so each codec has its own folder.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from im2wav.data.label_pairing import TrainingImages
from im2wav.data.manifest import Manifest, Pair
from im2wav.data.pairs import PairsFolder
from im2wav.files import json_bytes, npy_bytes, path_inside, state_sha256, write_atomic


class Batch(NamedTuple):
    """Model inputs. N samples, F frames, D dimension of the image embedding."""

    wav: Tensor  # [B, 1, N] in [-1, 1]
    clip: Tensor  # [B, F, D], unit norm
    timing: dict[str, Tensor]  # total, offset, duration: [B] each, in samples
    id: list[str]
    codes: dict[str, Tensor] | None = None  # by level [B, N / hop], if a tokenizer is set
    number: Tensor | None = None  # [B], index of each window in the stream of the run
    dropped: Tensor | None = None  # [B] booleans: items whose image is dropped in training (condition dropout)


class Key(NamedTuple):
    """Position of a window."""

    row: int
    place: float  # relative position in the recording, in [0, 1)
    mix: float = 0.5  # weight of the left channel of stereo audio
    image: int | None = None  # seed of a training image, see `TrainingImages`; None: the pair's own, unchanged


def concatenated_crop(item: int, shift: int, ends: Sequence[int], length: int) -> tuple[int, int]:
    """Official crop: window `item` of the concatenated recordings, shifted by `shift` samples.

    The window belongs to the recording that contains its centre. A window that crosses the border of the recording is
    moved by half its length. Source: Jukebox, data/files_dataset.py.

    Args:
        item: index of the window; without shift it starts at item * length.
        shift: samples, from -length / 2 to length / 2 - 1.
        ends: end of each recording in samples from the start of the first recording.
        length: length of a window in samples.

    Returns:
        Index of the recording and offset of the window in it: the last window of the last recording if the centre is
        after that, where the official code fails.
    """
    offset = item * length + shift
    number = min(bisect_left(ends, offset + length // 2), len(ends) - 1)
    start, end = (ends[number - 1] if number else 0), ends[number]
    if offset > end - length:
        offset = max(start, offset - length // 2)
    elif offset < start:
        offset = min(end - length, offset + length // 2)
    return number, min(offset, max(end - length, start)) - start


def usable_rows(pairs: Manifest, num_samples: int, short: str) -> np.ndarray:
    """A mask [rows] of the pairs with audio, of at least `num_samples` samples where shorter audio is dropped."""
    samples = pairs.column("samples")
    return (samples > 0) & ((samples >= num_samples) | (short != "drop"))


def extend_wav(wav: Tensor, length: int, short: str) -> Tensor:
    """Extend audio [N] that is shorter than `length` by repetition (`loop`) or silence (`pad`)."""
    missing = length - len(wav)
    if missing <= 0:
        return wav
    if short == "loop":
        return wav.repeat(-(-length // len(wav)))[:length]
    return torch.nn.functional.pad(wav, (0, missing))


class CodesFolder:
    """The cached codes of one codec.

    Args:
        root: the folder of the pairs.
        codec: an `AudioCodec`; its weights name the folder.
        num_samples: shorter clips are extended to this before they are encoded.
        short: how they are extended, see `extend_wav`.
    """

    def __init__(self, root: Path, codec: Any, num_samples: int, short: str):
        self.hops: dict[str, int] = dict(codec.hop_lengths)  # samples per code, by level
        self.dtype = np.dtype(np.int16 if codec.codebook_size <= 2**15 else np.int32)
        self.about = {
            "codec_sha256": state_sha256(codec.state_dict()),
            "hops": self.hops,
            "codebook_size": codec.codebook_size,
            "num_samples": num_samples,
            "short": short,
            "format": 1,
        }
        self.root = root / "codes" / self.about["codec_sha256"][:16]

    def path(self, pair: Pair, level: str) -> Path:
        """Path of the codes of a pair."""
        name = PurePath(pair.clip).name
        return path_inside(self.root / level, name, f"manifest.csv: the embeddings {pair.clip!r} of {pair.id!r}:")

    def missing(self, pairs: Manifest) -> list[int]:
        """Rows whose codes are missing."""
        names = [PurePath(clip).name for clip in pairs.strings("clip")]
        if len(set(names)) < len(names):
            double = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"several pairs have embeddings called {double}, so codes cannot be cached: rename them")
        existing = [{path.name for path in (self.root / level).glob("*.npy")} for level in self.hops]
        complete = set.intersection(*existing)
        return [row for row, name in enumerate(names) if name not in complete]

    def start(self) -> None:
        """Write codes.json; raise ValueError if the folder was written with other settings."""
        path = self.root / "codes.json"
        if not path.is_file():
            write_atomic(path, json_bytes(self.about))
        there = json.loads(path.read_text(encoding="utf-8"))
        for name, value in self.about.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path} was written with {name}={there.get(name)}, now it is {value}: use data.{name}="
                    f"{there.get(name)}, or remove {path.parent} and run `python -m im2wav.tokenize` again"
                )

    def write(self, pair: Pair, codes: Mapping[str, Tensor]) -> None:
        """Write the codes [T] of a clip by level."""
        for level, values in codes.items():
            write_atomic(self.path(pair, level), npy_bytes(values.cpu().numpy().astype(self.dtype)))

    def check(self, pairs: Manifest) -> None:
        """Raise ValueError unless the cache is complete and fits the codec and the options."""
        command = f"python -m im2wav.tokenize data.root={self.root.parent.parent} codec=PATH"
        if not (self.root / "codes.json").is_file():
            others = sorted(path.parent.name for path in self.root.parent.glob("*/codes.json"))
            raise ValueError(
                f"data.codes=cache, but {self.root.parent} has no codes of this codec ({self.root.name}; it has "
                f"{others or 'none'}): run `{command}`, or use data.codes=fresh"
            )
        self.start()
        if missing := self.missing(pairs):
            raise ValueError(
                f"{self.root} lacks the codes of {len(missing)} of {len(pairs)} clips, the first is "
                f"{pairs[missing[0]].id!r}: run `{command}` again"
            )

    def read(self, pair: Pair, offset: int, length: int) -> dict[str, Tensor]:
        """Codes of `length` samples from `offset`, by level.

        Raises:
            ValueError: a file cannot be read or is too short.
        """
        found = {}
        for level, hop in self.hops.items():
            path = self.path(pair, level)
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
                values = np.array(stored[offset // hop : (offset + length) // hop], dtype=np.int64)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read: {error}; remove it and tokenize again") from error
            if len(values) != length // hop:
                raise ValueError(f"{path} has {len(stored)} codes, too few for {pair.samples} samples: remove it")
            found[level] = torch.from_numpy(values)
        return found


class WindowDataset(Dataset):
    """Dataset of windows of `num_samples` samples; keys are (row, place), with place in [0, 1) the relative position.

    A row is a recording. With `concatenated`, a row is a window of the concatenated recordings and the place shifts it
    by up to half its length, as in the official code. Frame k of a window is the video frame shown at the start of the
    window plus k / fps.

    Attributes:
        codes: cached codes; if set, windows contain codes and start at code boundaries.
        images: draws the images of keys that have a seed for it.
    """

    def __init__(self, folder: PairsFolder, pairs: Manifest, num_samples: int, short: str, concatenated: bool = False):
        self.folder, self.pairs, self.num_samples, self.short = folder, pairs, num_samples, short
        self.ends = np.cumsum(pairs.column("samples")) if concatenated else None
        self.codes: CodesFolder | None = None
        self.images: TrainingImages | None = None

    def __len__(self) -> int:
        if self.ends is not None and len(self.ends):
            return int(self.ends[-1]) // self.num_samples
        return len(self.pairs)

    def locate(self, row: int, place: float) -> tuple[Pair, int]:
        """Return the recording and the offset of a key."""
        if self.ends is None:
            pair = self.pairs[row]
            largest = max(pair.samples - self.num_samples, 0)
            offset = min(int(place * (largest + 1)), largest)
        else:
            shift = int(place * self.num_samples) - self.num_samples // 2
            number, offset = concatenated_crop(row, shift, self.ends, self.num_samples)  # type: ignore[arg-type]
            pair = self.pairs[number]
        grid = max(self.codes.hops.values()) if self.codes else 1  # code boundaries of all levels
        return pair, int(offset) // grid * grid

    def describe(self, key: Key) -> str:
        """Return the pair and the files of a key for error messages."""
        pair, _ = self.locate(key.row, key.place)
        return f"{pair.id!r} ({self.folder.wav_path(pair)}, {self.folder.clip_path(pair)})"

    def __getitem__(self, key: tuple[int, float] | Key) -> Batch:
        row, place, mix, image = Key(*key)
        pair, offset = self.locate(row, place)
        wav = self.folder.read_wav(pair, offset, min(pair.samples, self.num_samples), mix)
        wav = extend_wav(wav, self.num_samples, self.short)
        clip = self.folder.read_clip(pair, self._frames(pair, offset))
        if image is not None and self.images is not None:
            clip = self.images.embedding(pair.label, clip, image)
        times = {"total": max(pair.samples, self.num_samples), "offset": offset, "duration": self.num_samples}
        timing = {name: torch.tensor(float(value)) for name, value in times.items()}
        codes = self.codes.read(pair, offset, self.num_samples) if self.codes else None
        return Batch(wav[None], clip, timing, pair.id, codes)  # type: ignore[arg-type]

    def _frames(self, pair: Pair, offset: int) -> np.ndarray | None:
        info = self.folder.info
        if info.fps is None:
            return None
        count = int(self.num_samples / info.sample_rate * info.fps) + 1
        frames = int(offset / info.sample_rate * info.fps) + np.arange(count)
        if self.short == "loop" and pair.samples < self.num_samples:
            frames %= max(1, int(pair.samples / info.sample_rate * info.fps))
        return frames.clip(0, pair.frames - 1)


def collate(items: list[Batch]) -> Batch:
    """Collate items into a batch."""
    return Batch(
        wav=torch.stack([item.wav for item in items]),
        clip=torch.stack([item.clip for item in items]),
        timing=default_collate([item.timing for item in items]),
        id=[item.id for item in items],  # type: ignore[misc]
        codes=None if items[0].codes is None else default_collate([item.codes for item in items]),
    )
