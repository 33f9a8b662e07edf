"""Windows of sound with the frames that belong to them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from im2wav.data.codes import CodesFolder
from im2wav.data.manifest import Manifest, Pair
from im2wav.data.pairs import PairsFolder

SHORT = ("loop", "pad", "drop")
CROP = ("random", "start", "official")


class Batch(NamedTuple):
    """What a model is given. N samples, F frames, D width of the image embedding."""

    wav: Tensor  # [B, 1, N] in [-1, 1]
    clip: Tensor  # [B, F, D], unit norm
    timing: dict[str, Tensor]  # total, offset, duration: [B] each, in samples
    id: list[str]
    codes: dict[str, Tensor] | None = None  # by level [B, N / hop], once a tokenizer is set
    number: Tensor | None = None  # [B], place of each window in the run's stream, whatever the devices
    dropped: Tensor | None = None  # [B] booleans: items whose image is dropped in training (condition dropout)


class Key(NamedTuple):
    """Which window."""

    row: int
    place: float  # in [0, 1): where in the recording
    mix: float = 0.5  # weight of the left channel, where there are two


def concatenated_crop(item: int, shift: int, ends: Sequence[int], length: int) -> tuple[int, int]:
    """The official crop: window `item`, moved by `shift` samples, of all recordings one after the other.

    The window belongs to the recording that holds its middle, and is moved by half its length where it would cross
    the recording's border. Source: Jukebox, data/files_dataset.py.

    Args:
        item: number of the window; unshifted it begins at item * length.
        shift: samples, from -length / 2 to length / 2 - 1.
        ends: where each recording ends, in samples from the start of the first one.
        length: of a window.

    Returns:
        Number of the recording and the window's offset in it. Where the official code fails (a middle beyond the last
        recording) it is the end of the last one.
    """
    offset = item * length + shift
    number = min(bisect_left(ends, offset + length // 2), len(ends) - 1)
    start, end = (ends[number - 1] if number else 0), ends[number]
    if offset > end - length:
        offset = max(start, offset - length // 2)
    elif offset < start:
        offset = min(end - length, offset + length // 2)
    return number, min(offset, max(end - length, start)) - start


def extend_wav(wav: Tensor, length: int, short: str) -> Tensor:
    """A sound [N] that is shorter than `length`, repeated (`loop`) or followed by silence up to it; else as it is."""
    missing = length - len(wav)
    if missing <= 0:
        return wav
    if short == "loop":
        return wav.repeat(-(-length // len(wav)))[:length]
    return torch.nn.functional.pad(wav, (0, missing))


class WindowDataset(Dataset):
    """Windows of `num_samples`, addressed by (row, place) with place in [0, 1): where in the recording they lie.

    With `concatenated` a row is a window of all recordings one after the other, and the place shifts it by up to half
    its length, as the official code has it. Otherwise a row is a recording.

    Frames belong to a window by time: frame k of a window is the one shown at its start plus k / fps.

    Attributes:
        codes: cached codes; once set, windows carry them and begin where a code does.
    """

    def __init__(self, folder: PairsFolder, pairs: Manifest, num_samples: int, short: str, concatenated: bool = False):
        self.folder, self.pairs, self.num_samples, self.short = folder, pairs, num_samples, short
        self.ends = np.cumsum(pairs.column("samples")) if concatenated else None
        self.codes: CodesFolder | None = None

    def __len__(self) -> int:
        if self.ends is not None and len(self.ends):
            return int(self.ends[-1]) // self.num_samples
        return len(self.pairs)

    def locate(self, row: int, place: float) -> tuple[Pair, int]:
        """The recording and the offset in it that a key stands for."""
        if self.ends is not None:
            shift = int(place * self.num_samples) - self.num_samples // 2
            number, offset = concatenated_crop(row, shift, self.ends, self.num_samples)  # type: ignore[arg-type]
            pair = self.pairs[number]
        else:
            pair = self.pairs[row]
            room = max(pair.samples - self.num_samples, 0)
            offset = min(int(place * (room + 1)), room)
        grid = self.codes.grid if self.codes else 1
        return pair, int(offset) // grid * grid

    def describe(self, key: Key) -> str:
        """The pair and the files that a key stands for."""
        pair, _ = self.locate(key.row, key.place)
        return f"{pair.id!r} ({self.folder.root / pair.wav}, {self.folder.root / pair.clip})"

    def __getitem__(self, key: tuple[int, float] | tuple[int, float, float]) -> Batch:
        row, place, mix = Key(*key)
        pair, offset = self.locate(row, place)
        wav = self.folder.read_wav(pair, offset, min(pair.samples, self.num_samples), mix)
        wav = extend_wav(wav, self.num_samples, self.short)
        timing = {"total": float(max(pair.samples, self.num_samples)), "offset": float(offset)}
        timing["duration"] = float(self.num_samples)
        clip = self.folder.read_clip(pair, self._frames(pair, offset))
        codes = self.codes.read(pair, offset, self.num_samples) if self.codes else None
        return Batch(wav[None], clip, {k: torch.tensor(v) for k, v in timing.items()}, pair.id, codes)  # type: ignore[arg-type]

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
    """Stack items to a batch."""
    return Batch(
        wav=torch.stack([item.wav for item in items]),
        clip=torch.stack([item.clip for item in items]),
        timing=default_collate([item.timing for item in items]),
        id=[item.id for item in items],  # type: ignore[misc]
        codes=None if items[0].codes is None else default_collate([item.codes for item in items]),
    )
