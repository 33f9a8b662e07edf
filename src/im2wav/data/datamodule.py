"""Pairs on disk -> batches of aligned windows of sound and image embeddings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from im2wav.data.pairs import Pair, PairsFolder

SHORT = ("loop", "pad", "drop")
CROP = ("random", "start")


class Batch(NamedTuple):
    """What a model is given. N samples, F frames, D width of the image embedding."""

    wav: Tensor  # [B, 1, N] in [-1, 1]
    clip: Tensor  # [B, F, D], unit norm
    timing: dict[str, Tensor]  # total, offset, duration: [B] each, in samples
    id: list[str]
    codes: dict[str, Tensor] | None = None  # by level [B, N / hop], once a tokenizer is set


class Windows(Dataset):
    """Windows of `num_samples`, addressed by (row, place) with place in [0, 1): where in the recording they lie.

    Frames belong to a window by time: frame k of a window is the one shown at its start plus k / fps.
    """

    def __init__(self, folder: PairsFolder, pairs: list[Pair], num_samples: int, short: str):
        self.folder, self.pairs, self.num_samples, self.short = folder, pairs, num_samples, short

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, float]) -> Batch:
        row, place = key
        pair = self.pairs[row]
        room = max(pair.samples - self.num_samples, 0)
        offset = min(int(place * (room + 1)), room)
        wav = self.folder.read_wav(pair, offset, min(pair.samples, self.num_samples))
        missing = self.num_samples - len(wav)
        if missing and self.short == "loop":
            wav = wav.repeat(-(-self.num_samples // len(wav)))[: self.num_samples]
        elif missing:
            wav = torch.nn.functional.pad(wav, (0, missing))
        timing = {"total": float(max(pair.samples, self.num_samples)), "offset": float(offset)}
        timing["duration"] = float(self.num_samples)
        clip = self.folder.read_clip(pair, self._frames(pair, offset))
        return Batch(wav[None], clip, {k: torch.tensor(v) for k, v in timing.items()}, pair.id)  # type: ignore[arg-type]

    def _frames(self, pair: Pair, offset: int) -> np.ndarray | None:
        info = self.folder.info
        if info.fps is None:
            return None
        count = int(self.num_samples / info.sample_rate * info.fps) + 1
        frames = int(offset / info.sample_rate * info.fps) + np.arange(count)
        if self.short == "loop" and pair.samples < self.num_samples:
            frames %= max(1, int(pair.samples / info.sample_rate * info.fps))
        return frames.clip(0, pair.frames - 1)


class WindowSampler(Sampler):
    """Draws (row, place) keys: every row once before any comes twice, each time at another place.

    The keys of an epoch depend on the seed and the epoch alone. Without shuffling: rows in order, all at `place`.

    Args:
        rows: number of recordings.
        length: keys in an epoch.
        seed: of order and places.
        shuffle: whether rows come in random order.
        place: the same place for all keys; None to draw them.
    """

    def __init__(self, rows: int, length: int, seed: int, shuffle: bool, place: float | None = None):
        self.rows, self.length, self.seed, self.shuffle, self.place = rows, length, seed, shuffle, place
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, float]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for start in range(0, self.length, self.rows):
            count = min(self.rows, self.length - start)
            order = torch.randperm(self.rows, generator=generator)[:count] if self.shuffle else torch.arange(count)
            places = torch.rand(count, generator=generator, dtype=torch.float64)
            for row, place in zip(order.tolist(), places.tolist(), strict=True):
                yield row, place if self.place is None else self.place


class PairsDataModule(pl.LightningDataModule):
    """Batches from a pairs folder; pairs go to training, validation or test by the manifest's `split` column.

    Args:
        root: the pairs folder.
        num_samples: length of a window.
        batch_size: windows in a batch of one device.
        short: what becomes of sounds shorter than the window: `loop` them, `pad` with silence, or `drop` them.
        crop: where in a recording a window lies: `random`, or always at its `start` (for overfitting on purpose).
        windows_per_epoch: how many windows make an epoch; as many as there are pairs where None.
        num_workers: processes that read.
        seed: of the order and of the crops.

    Attributes:
        tokenizer: a frozen codec; once set, batches on the device carry its codes.

    Raises:
        ValueError: not a pairs folder, no pair to train on, or an option out of range.
    """

    def __init__(
        self,
        root: str,
        num_samples: int = 65536,
        batch_size: int = 8,
        short: str = "loop",
        crop: str = "random",
        windows_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if short not in SHORT:
            raise ValueError(f"data.short={short!r}: expected one of {SHORT}")
        if crop not in CROP:
            raise ValueError(f"data.crop={crop!r}: expected one of {CROP}")
        self.folder = PairsFolder(root)
        self.num_samples = num_samples
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.windows_per_epoch, self.crop = windows_per_epoch, crop
        self.tokenizer: Any = None
        usable = [p for p in self.folder.pairs if p.samples and (short != "drop" or p.samples >= num_samples)]
        self.windows = {
            split: Windows(self.folder, [p for p in usable if p.split == split], num_samples, short)
            for split in ("train", "valid", "test")
        }
        if not self.windows["train"].pairs:
            raise ValueError(
                f"{Path(root) / 'manifest.csv'}: none of {len(self.folder.pairs)} pairs can be trained on "
                f"(split=train, with a sound{f' of {num_samples} samples' if short == 'drop' else ''})"
            )

    def loader(self, split: str, shuffle: bool = False) -> DataLoader:
        """A loader over one split; unshuffled, it gives one window of each pair, in the middle or at the start."""
        windows = self.windows[split]
        rows = len(windows.pairs)
        length = (self.windows_per_epoch if shuffle else None) or rows
        place = 0.0 if self.crop == "start" else None if shuffle else 0.5
        sampler = WindowSampler(rows, length, self.seed, shuffle, place)
        return DataLoader(
            windows,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=shuffle and len(sampler) >= self.batch_size * (self.trainer.world_size if self.trainer else 1),
            collate_fn=collate,
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled windows of the training pairs."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """One window of each validation pair; empty where the manifest has none."""
        return self.loader("valid") if self.windows["valid"].pairs else []

    def training_windows(self, at_most: int = 256) -> Iterator[Tensor]:
        """Windows [1, N] of the training sounds, spread over all of them, for measuring the collection."""
        windows = self.windows["train"]
        step = max(1, len(windows.pairs) // at_most)
        for row in range(0, len(windows.pairs), step):
            yield windows[(row, 0.5)].wav

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add codes, computed by the tokenizer in fp32 on the batch's device."""
        if self.tokenizer is None:
            return batch
        tokenizer = self.tokenizer.to(batch.wav.device)
        with torch.no_grad(), torch.autocast(batch.wav.device.type, enabled=False):
            return batch._replace(codes=tokenizer.encode(batch.wav.float()))

    def identity(self) -> Mapping[str, Any]:
        """What a checkpoint records of the data: encoder, frame rate, sample rate, seconds of a typical recording."""
        info = self.folder.info
        lengths = sorted(max(p.samples, self.num_samples) for p in self.windows["train"].pairs)
        return {
            "encoder": info.encoder,
            "weights_sha256": info.weights_sha256,
            "dim": info.dim,
            "fps": info.fps,
            "sample_rate": info.sample_rate,
            "seconds": lengths[len(lengths) // 2] / info.sample_rate,
        }


def collate(items: list[Batch]) -> Batch:
    """Stack items to a batch."""
    return Batch(
        wav=torch.stack([item.wav for item in items]),
        clip=torch.stack([item.clip for item in items]),
        timing=default_collate([item.timing for item in items]),
        id=[item.id for item in items],  # type: ignore[misc]
    )
