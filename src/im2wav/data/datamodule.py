"""DataModule: batches of aligned windows of audio and image embeddings from a pairs folder or shards."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from im2wav.data.label_pairing import Augmentation, TrainingImages
from im2wav.data.loader import BatchDataset, BatchPartition, KeyStream, WindowLoader
from im2wav.data.manifest import fraction_of, split_rows
from im2wav.data.pairs import ShardsFolder, open_folder
from im2wav.data.windows import Batch, CodesFolder, WindowDataset, usable_rows

log = logging.getLogger(__name__)
CHOICES = {"short": ("loop", "pad", "drop"), "crop": ("random", "start", "official"), "codes": ("fresh", "cache")}
DEFAULT_BATCH = 8  # windows


class PairsDataModule(pl.LightningDataModule):
    """Batches of windows from a pairs folder or from shards.

    Args:
        root, chunks: see `open_folder`.
        num_samples: length of a window in samples.
        batch_size: windows per device and forward pass, if `global_batch_size` is None. `auto` is 8; on a GPU,
            `im2wav.train` replaces it by the largest batch that fits in memory.
        global_batch_size: windows per optimizer step, divided among devices and accumulated passes.
        short: audio shorter than the window: `loop` it, `pad` it with silence, or `drop` it.
        crop: position of a window in a recording: `random`, `start` (for deliberate overfitting), or `official`:
            windows of the concatenated recordings, shifted by up to half their length. Requires `short=drop`.
        blend: mix stereo audio with a random weight in training (aug_blend of the official code), else evenly.
        windows_per_epoch: None: the number of pairs.
        split, split_fractions, train_fraction: see `split_rows` and `fraction_of` of `im2wav.data.manifest`.
        pairing: `file`: a training window has the image of its own pair; `label`: of any training pair with its label,
            and labels occur equally often.
        augmentation: options of `Augmentation`, random changes of the embeddings of training windows.
        codes: `fresh`: encode each batch with the tokenizer; `cache`: read the codes written by `im2wav.tokenize`.
        num_workers: number of DataLoader workers.
        seed: of the order and of the crops.

    Attributes:
        levels: codec levels to encode; None: all.

    Raises:
        ValueError: not a pairs folder, no training pairs, or an option out of range.
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
        split_fractions: Mapping[str, float] | None = None,
        train_fraction: float = 1.0,
        pairing: str = "file",
        augmentation: Mapping[str, float] | None = None,
        codes: str = "fresh",
        chunks: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        for name, value in (("short", short), ("crop", crop), ("codes", codes)):
            if value not in CHOICES[name]:
                raise ValueError(f"data.{name}={value!r}: expected one of {CHOICES[name]}")
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"data.batch_size={batch_size}: must be >= 1, or auto")
        if crop == "official" and pairing == "label":
            raise ValueError("data.pairing=label with data.crop=official: use data.crop=random, whose rows are pairs")
        if crop == "official" and short != "drop":
            raise ValueError(f"data.crop=official with data.short={short}: the official crop requires data.short=drop")
        self.folder = open_folder(root, chunks)
        if blend and (codes == "cache" or isinstance(self.folder, ShardsFolder)):
            raise ValueError(
                "data.blend=true needs two channels: cached codes and shards have one; use data.blend=false"
            )
        self.num_samples, self.short, self.codes = num_samples, short, codes
        self.batch_size = DEFAULT_BATCH if isinstance(batch_size, str) else batch_size
        self.global_batch_size = global_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.windows_per_epoch, self.crop, self.blend = windows_per_epoch, crop, blend
        self._tokenizer: Any = None
        self.levels: Sequence[str] | None = None
        usable = usable_rows(self.folder.pairs, num_samples, short)
        split_into = split_rows(self.folder.pairs, split, split_fractions)
        rows = {name: rows[usable[rows]] for name, rows in split_into.items()}
        rows["train"] = fraction_of(self.folder.pairs, rows["train"], train_fraction)
        self.windows = {
            name: WindowDataset(self.folder, self.folder.pairs.take(taken), num_samples, short, crop == "official")
            for name, taken in rows.items()
        }
        changes = Augmentation(**(augmentation or {}))
        images = self.folder.pairs.take(split_into["train"])
        self.windows["train"].images = TrainingImages(self.folder, images, pairing, changes)
        self.draws_images = pairing == "label" or changes != Augmentation()
        self.labels = list(self.windows["train"].pairs.strings("label")) if pairing == "label" else None
        if not len(self.windows["train"]):
            raise ValueError(
                f"{Path(root) / 'manifest.csv'}: none of {len(usable)} pairs is usable for training "
                f"(split=train, with audio{f' of {num_samples} samples' if short == 'drop' else ''}"
                f"{f', data.train_fraction={train_fraction}' if train_fraction < 1 else ''})"
            )

    @property
    def tokenizer(self) -> Any:
        """Frozen codec; if set, batches contain its codes."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, codec: Any) -> None:
        self._tokenizer = codec
        if codec is None or self.codes == "fresh":
            return
        cache = CodesFolder(self.folder.root, codec, self.num_samples, self.short)
        for windows in self.windows.values():
            cache.check(windows.pairs)
            windows.codes = cache

    def loader(self, split: str, shuffle: bool = False) -> WindowLoader:
        """Build the loader of a split. Unshuffled, it yields one window per pair, at the middle or at the start.

        Raises:
            ValueError: the global batch size is not divisible by the number of devices.
        """
        partition = BatchPartition.divide(self.global_batch_size, self.batch_size, self.trainer)
        windows = self.windows[split]
        rows = length = len(windows)
        if shuffle:  # complete steps, at least one
            length = (self.windows_per_epoch or rows) // partition.global_batch_size * partition.global_batch_size
            length = max(length, partition.global_batch_size)
        place = 0.0 if self.crop == "start" else None if shuffle else 0.5
        labels = self.labels if shuffle else None
        keys = KeyStream(
            rows, length, self.seed, shuffle, place, self.blend and shuffle, labels, self.draws_images and shuffle
        )
        return WindowLoader(
            BatchDataset(windows, keys, partition, ends=not shuffle),
            resumed=self._restore_progress if shuffle and self.trainer else None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _restore_progress(self, state: Mapping[str, int]) -> None:
        """Convert Lightning's batch counters to complete steps and to the current number of passes per step.

        Gradients accumulated within an interrupted step are lost, so the step is repeated.
        """
        assert self.trainer is not None
        passes = self.trainer.accumulate_grad_batches
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        counts: Any
        for counts in (progress.total, progress.current):
            open_ = counts.processed - counts.completed  # 1 if saved before the end of the pass
            counts.ready = counts.started = counts.processed = counts.processed // state["passes"] * passes
            counts.completed = counts.processed - open_

    def on_exception(self, exception: BaseException) -> None:
        """Log which file a worker was reading when it died; PyTorch may raise the error anywhere."""
        loader = self.trainer.train_dataloader if self.trainer else None
        if isinstance(exception, RuntimeError) and isinstance(loader, WindowLoader):
            explained = loader.explained(exception)
            if explained is not exception:
                log.error("%s", explained)

    def train_dataloader(self) -> WindowLoader:
        """Loader of shuffled training windows."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> WindowLoader | list:
        """One window of each validation pair; empty where the manifest has none."""
        return self.loader("valid") if len(self.windows["valid"]) else []

    def test_dataloader(self) -> WindowLoader | list:
        """One window of each test pair; empty where the manifest has none."""
        return self.loader("test") if len(self.windows["test"]) else []

    def training_windows(self, at_most: int = 256) -> Iterator[Tensor]:
        """Yield evenly distributed training windows [1, N] to measure statistics of the data."""
        windows = self.windows["train"]
        step = max(1, len(windows) // at_most)
        for row in range(0, len(windows), step):
            yield windows[(row, 0.5)].wav

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Encode `levels` in exact fp32 on the device of the batch, unless the codes are cached."""
        if self.tokenizer is None or batch.codes is not None:
            return batch
        levels = {} if self.levels is None else {"levels": self.levels}
        with torch.no_grad(), torch.autocast(batch.wav.device.type, enabled=False):
            return batch._replace(codes=self.tokenizer.to(batch.wav.device).encode(batch.wav.float(), **levels))

    def identity(self) -> Mapping[str, Any]:
        """Metadata for checkpoints: encoder, audio format, name, median duration of the recordings."""
        info = self.folder.info
        names = ("encoder", "weights_sha256", "dim", "fps", "sample_rate", "loudness", "data")
        lengths = np.sort(np.maximum(self.windows["train"].pairs.column("samples"), self.num_samples))
        seconds = float(lengths[len(lengths) // 2]) / info.sample_rate
        return {name: getattr(info, name) for name in names} | {"seconds": seconds}
