"""Pairs on disk -> batches of aligned windows of sound and image embeddings."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from im2wav.data.codes import codes_folder
from im2wav.data.loader import BatchDataset, BatchPartition, KeyStream, WindowLoader
from im2wav.data.shards import ShardsFolder, open_folder
from im2wav.data.splits import fraction_of, split_rows
from im2wav.data.windows import CROP, SHORT, Batch, WindowDataset

log = logging.getLogger(__name__)
CODES = ("fresh", "cache")
DEFAULT_BATCH = 8  # windows


def _batch_size(value: int | str) -> int:
    if value == "auto":
        return DEFAULT_BATCH
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"data.batch_size={value}: must be >= 1, or auto")
    return value


class PairsDataModule(pl.LightningDataModule):
    """Batches from a pairs folder, or from shards.

    Args:
        root: the pairs folder, or the folder of shards.
        num_samples: length of a window.
        batch_size: windows in a batch of one device, where `global_batch_size` is None. `auto` is 8; on a GPU,
            `im2wav.train` replaces it by the largest batch that fits the memory.
        global_batch_size: windows in a step of the optimiser, divided over devices and accumulated passes.
        short: what becomes of sounds shorter than the window: `loop` them, `pad` with silence, or `drop` them.
        crop: where in a recording a window lies: `random`, always at its `start` (for overfitting on purpose), or as
            in the `official` code, where all recordings are one and its windows are shifted by up to half their
            length; that wants recordings no shorter than a window (`short=drop`).
        blend: mix stereo sounds with a random weight in training, as the official code's aug_blend; else evenly.
        windows_per_epoch: how many windows make an epoch; as many as there are pairs where None.
        split: what decides which pairs are for training: the manifest's `column`, or a hash of the sound's `group`.
        shares: of train, valid and test, with split=group.
        train_fraction: the share of the training pairs that is used; smaller ones are parts of larger ones.
        codes: `fresh`, computed for each batch by the tokenizer, or from the `cache` that `im2wav.tokenize` wrote.
        chunks: of shards, where the large files are if not in `root`: a folder or a URL such as s3://bucket/folder.
        num_workers: processes that read.
        seed: of the order and of the crops.

    Attributes:
        levels: the codec levels that the tokenizer encodes; all where None.

    Raises:
        ValueError: not a pairs folder, no pair to train on, or an option out of range.
    """

    def __init__(
        self,
        root: str,
        num_samples: int = 65536,
        batch_size: int | str = 8,
        global_batch_size: int | None = None,
        short: str = "loop",
        crop: str = "random",
        blend: bool = False,
        windows_per_epoch: int | None = None,
        split: str = "column",
        shares: Mapping[str, float] | None = None,
        train_fraction: float = 1.0,
        codes: str = "fresh",
        chunks: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if short not in SHORT:
            raise ValueError(f"data.short={short!r}: expected one of {SHORT}")
        if crop not in CROP:
            raise ValueError(f"data.crop={crop!r}: expected one of {CROP}")
        if codes not in CODES:
            raise ValueError(f"data.codes={codes!r}: expected one of {CODES}")
        if crop == "official" and short != "drop":
            raise ValueError(
                f"data.crop=official with data.short={short}: the official code drops short sounds, use drop"
            )
        self.folder = open_folder(root, chunks)
        if blend and (codes == "cache" or isinstance(self.folder, ShardsFolder)):
            raise ValueError("data.blend=true needs two channels: cached codes and shards have one, use blend=false")
        self.num_samples, self.short, self.codes = num_samples, short, codes
        self.batch_size, self.global_batch_size = _batch_size(batch_size), global_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.windows_per_epoch, self.crop, self.blend = windows_per_epoch, crop, blend
        self._tokenizer: Any = None
        self.levels: Sequence[str] | None = None
        samples = self.folder.pairs.column("samples")
        usable = (samples > 0) & ((samples >= num_samples) | (short != "drop"))
        rows = {name: rows[usable[rows]] for name, rows in split_rows(self.folder.pairs, split, shares).items()}
        rows["train"] = fraction_of(self.folder.pairs, rows["train"], train_fraction)
        self.windows = {
            name: WindowDataset(self.folder, self.folder.pairs.take(taken), num_samples, short, crop == "official")
            for name, taken in rows.items()
        }
        if not len(self.windows["train"]):
            raise ValueError(
                f"{Path(root) / 'manifest.csv'}: none of {len(samples)} pairs can be trained on "
                f"(split=train, with a sound{f' of {num_samples} samples' if short == 'drop' else ''}"
                f"{f', data.train_fraction={train_fraction}' if train_fraction < 1 else ''})"
            )

    @property
    def tokenizer(self) -> Any:
        """A frozen codec; once set, batches carry its codes."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, codec: Any) -> None:
        self._tokenizer = codec
        if codec is None or self.codes == "fresh":
            return
        cache = codes_folder(self.folder.root, codec, self.num_samples, self.short)
        for windows in self.windows.values():
            cache.check(windows.pairs)
            windows.codes = cache

    def loader(self, split: str, shuffle: bool = False) -> WindowLoader:
        """A loader over one split; unshuffled, it gives one window of each pair, in the middle or at the start.

        Raises:
            ValueError: the global batch does not divide over the devices.
        """
        share = BatchPartition.divide(self.global_batch_size, self.batch_size, self.trainer)
        windows = self.windows[split]
        rows = length = len(windows)
        if shuffle:  # whole steps, at least one
            length = (self.windows_per_epoch or rows) // share.global_batch_size * share.global_batch_size
            length = max(length, share.global_batch_size)
        place = 0.0 if self.crop == "start" else None if shuffle else 0.5
        draws = KeyStream(rows, length, self.seed, shuffle, place, self.blend and shuffle)
        return WindowLoader(
            BatchDataset(windows, draws, share, ends=not shuffle),
            resumed=self._count_again if shuffle and self.trainer else None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _count_again(self, state: Mapping[str, int]) -> None:
        """Bring Lightning's counts of passes to whole steps and to the number of passes that a step has now.

        What a run had accumulated when it was stopped within a step is lost, so the step is made again.
        """
        assert self.trainer is not None
        passes = self.trainer.accumulate_grad_batches
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        counts: Any
        for counts in (progress.total, progress.current):
            open_ = counts.processed - counts.completed  # 1 where saved before the end of the pass
            counts.ready = counts.started = counts.processed = counts.processed // state["passes"] * passes
            counts.completed = counts.processed - open_

    def on_exception(self, exception: BaseException) -> None:
        """Say which file a worker was reading when it died; PyTorch may notice it anywhere."""
        loader = self.trainer.train_dataloader if self.trainer else None
        if isinstance(exception, RuntimeError) and isinstance(loader, WindowLoader):
            explained = loader.explained(exception)
            if explained is not exception:
                log.error("%s", explained)

    def train_dataloader(self) -> WindowLoader:
        """Shuffled windows of the training pairs."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> WindowLoader | list:
        """One window of each validation pair; empty where the manifest has none."""
        return self.loader("valid") if len(self.windows["valid"]) else []

    def training_windows(self, at_most: int = 256) -> Iterator[Tensor]:
        """Windows [1, N] of the training sounds, spread over all of them, for measuring the collection."""
        windows = self.windows["train"]
        step = max(1, len(windows) // at_most)
        for row in range(0, len(windows), step):
            yield windows[(row, 0.5)].wav

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add codes of `levels`, where the cache did not: computed in exact fp32 on the batch's device."""
        if self.tokenizer is None or batch.codes is not None:
            return batch
        tokenizer = self.tokenizer.to(batch.wav.device)
        with torch.no_grad(), torch.autocast(batch.wav.device.type, enabled=False):
            levels = {} if self.levels is None else {"levels": self.levels}
            return batch._replace(codes=tokenizer.encode(batch.wav.float(), **levels))

    def identity(self) -> Mapping[str, Any]:
        """What a checkpoint records of the data: encoder, frame rate, sample rate, seconds of a typical recording."""
        info = self.folder.info
        lengths = np.sort(np.maximum(self.windows["train"].pairs.column("samples"), self.num_samples))
        return {
            "encoder": info.encoder,
            "weights_sha256": info.weights_sha256,
            "dim": info.dim,
            "fps": info.fps,
            "sample_rate": info.sample_rate,
            "seconds": float(lengths[len(lengths) // 2]) / info.sample_rate,
        }
