"""Assignment of windows to batches and devices, and a resumable DataLoader.

A run reads an infinite stream of windows that depends on the seed only. A global batch (one optimizer step) is a slice
of the stream, divided among devices and accumulated passes, so that the windows of a step do not depend on the number
of devices, passes or workers. The batch number determines the content of a batch: resuming starts at another number and
replays nothing.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from im2wav.data.label_pairing import balanced_order
from im2wav.data.windows import Batch, Key, WindowDataset, collate
from im2wav.system import hold_signals, leave_signals_to_parent

SHM = "/dev/shm"  # of Linux


class KeyStream:
    """Infinite stream of window keys with random access.

    It consists of epochs of `length` keys. Within an epoch, all rows occur once before any row occurs again, each time
    at a different position.

    Args:
        rows: number of rows to sample from.
        length: number of keys per epoch.
        seed: of order, positions and mixing weights.
        shuffle: whether the rows are in random order.
        place: position of all windows; None: random.
        blend: whether the weight of the left channel is random, not 0.5.
        labels: of the rows; labels then occur equally often, instead of rows. None: rows do.
        images: whether images are drawn, from a seed of each key.
    """

    def __init__(
        self,
        rows: int,
        length: int,
        seed: int,
        shuffle: bool = True,
        place: float | None = None,
        blend: bool = False,
        labels: Sequence[str] | None = None,
        images: bool = False,
    ):
        self.rows, self.length, self.seed = rows, length, seed
        self.shuffle, self.place, self.blend = shuffle, place, blend
        self.labels, self.images = labels, images
        self._epoch: tuple[int, Tensor, Tensor, Tensor, Tensor] | None = None

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            orders, places = [], []
            for start in range(0, self.length, self.rows):
                count = min(self.rows, self.length - start)
                order = torch.randperm(self.rows, generator=generator) if self.shuffle else torch.arange(self.rows)
                orders.append(order[:count])
                places.append(torch.rand(count, generator=generator, dtype=torch.float64))
            mixes = torch.full((self.length,), 0.5, dtype=torch.float64)
            if self.blend:  # sampled last, so that rows and positions do not depend on `blend`
                mixes = torch.rand(self.length, generator=generator, dtype=torch.float64)
            rows = torch.cat(orders)
            if self.labels is not None:
                rows = balanced_order(self.labels, self.length, generator)
            images = torch.randint(2**62, (self.length,), generator=generator)
            self._epoch = epoch, rows, torch.cat(places), mixes, images
        return self._epoch[1:]

    def __getitem__(self, number: int) -> Key:
        epoch, index = divmod(number, self.length)
        rows, places, mixes, images = self._draw(epoch)
        place = places[index].item() if self.place is None else self.place
        return Key(int(rows[index]), place, mixes[index].item(), int(images[index]) if self.images else None)


@dataclass(frozen=True)
class BatchPartition:
    """Partition of each global batch among devices and accumulated passes."""

    batch_size: int  # windows per device and pass
    devices: int = 1
    rank: int = 0  # of this device
    passes: int = 1  # per optimizer step (accumulate_grad_batches)

    @classmethod
    def divide(cls, global_batch_size: int | None, batch_size: int, trainer: Any = None) -> "BatchPartition":
        """Divide a global batch among the devices and passes of a trainer; if None, each pass has `batch_size` windows.

        Raises:
            ValueError: the global batch size is not divisible.
        """
        devices, rank, passes = 1, 0, 1
        if trainer:
            devices, rank, passes = trainer.world_size, trainer.global_rank, trainer.accumulate_grad_batches
        if global_batch_size is None:
            return cls(batch_size, devices, rank, passes)
        if global_batch_size < 1 or global_batch_size % (devices * passes):
            raise ValueError(
                f"data.global_batch_size={global_batch_size} is not divisible by {devices} device(s) times "
                f"trainer.accumulate_grad_batches={passes}: use a multiple of {devices * passes}"
            )
        return cls(global_batch_size // (devices * passes), devices, rank, passes)

    @property
    def global_batch_size(self) -> int:
        """Windows per optimizer step."""
        return self.batch_size * self.devices * self.passes

    def windows(self, number: int) -> range:
        """Stream indices of batch `number` of this device."""
        step, part = divmod(number, self.passes)
        start = step * self.global_batch_size + (part * self.devices + self.rank) * self.batch_size
        return range(start, start + self.batch_size)

    def windows_of(self, number: int, rows: int) -> list[int]:
        """Stream indices if the stream ends after `rows`; wraps around so that all devices get the same number."""
        size = self.batch_size * self.devices
        each = -(-min(size, rows - number * size) // self.devices)
        start = number * size + self.rank * each
        return [i % rows for i in range(start, start + each)]


def share_memory(value: Any) -> None:
    """Move the tensors of a batch to shared memory in a DataLoader worker, and do nothing elsewhere.

    PyTorch would do it later, in a thread whose errors reach nobody.

    Raises:
        ValueError: shared memory is full.
    """
    if get_worker_info() is None:
        return
    if isinstance(value, Mapping | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            share_memory(part)
    if not isinstance(value, Tensor):
        return
    try:
        value.share_memory_()
    except RuntimeError as error:
        size = f", {shutil.disk_usage(SHM).total / 2**20:.0f} MB in all" if os.path.isdir(SHM) else ""
        raise ValueError(
            f"shared memory is full ({SHM}{size}): start the container with a larger one (docker run --shm-size=8g), "
            f"or set data.num_workers=0 ({str(error).splitlines()[0]})"
        ) from error


class ReadFailure(str):
    """Error message returned by a worker instead of a batch."""


class BatchDataset(Dataset):
    """Dataset of complete batches: the windows of this device, for one pass over the rows if the stream `ends`."""

    def __init__(self, windows: WindowDataset, keys: KeyStream, partition: BatchPartition, ends: bool = False):
        self.windows, self.keys, self.partition, self.ends = windows, keys, partition, ends
        # what each worker is reading (pid, batch, item), in shared memory
        self.progress = torch.zeros(1024, 3, dtype=torch.int64)
        with suppress(RuntimeError):  # it is full: `share_memory` reports it, if there are workers
            self.progress.share_memory_()

    def __len__(self) -> int:
        if self.ends:
            return -(-self.keys.rows // (self.partition.batch_size * self.partition.devices))
        return self.keys.length // self.partition.global_batch_size * self.partition.passes

    def numbers(self, number: int) -> list[int]:
        """Stream indices of a batch."""
        if self.ends:
            return self.partition.windows_of(number, self.keys.rows)
        return list(self.partition.windows(number))

    def __getitem__(self, number: int) -> Batch | ReadFailure:
        worker = get_worker_info()
        slot = self.progress[worker.id % len(self.progress)] if worker else torch.zeros(3, dtype=torch.int64)
        numbers, items = self.numbers(number), []
        try:
            for i, place in enumerate(numbers):
                slot[:] = torch.tensor([os.getpid(), number, i])
                items.append(self.windows[self.keys[place]])
        except (ValueError, OSError) as error:
            if worker is None:
                raise
            return ReadFailure(error)  # an exception in a worker would print a full traceback
        batch = collate(items)._replace(number=torch.tensor(numbers))
        try:
            share_memory(batch)
        except ValueError as error:
            return ReadFailure(error)
        return batch

    def read_by(self, pids: set[int]) -> list[str]:
        """Descriptions of the pairs that these workers were reading."""
        read = [(number, item) for pid, number, item in self.progress.tolist() if pid in pids]
        return [self.windows.describe(self.keys[self.numbers(number)[item]]) for number, item in read]


class BatchNumberSampler(DistributedSampler):
    """Batch numbers from `start`. Lightning would wrap any other class in a `DistributedSampler`."""

    def __init__(self, count: int):
        self.start, self.count, self.epoch = 0, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.count))


class WindowLoader(DataLoader):
    """Resumable DataLoader over `BatchDataset`: each iteration continues after the last batch of the previous one.

    Lightning saves its state in checkpoints, and sets `sampler` when it rebuilds the loader for `overfit_batches`.
    `resumed` is called with the loaded state.

    Raises:
        ValueError: during iteration: a file cannot be read, or a worker died.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        sampler: Any = None,
        resumed: Callable[[dict[str, int]], None] | None = None,
        **options: Any,
    ):
        options = {"worker_init_fn": leave_signals_to_parent, **options}
        super().__init__(dataset, None, sampler=sampler or BatchNumberSampler(len(dataset)), **options)
        self.resumed, self.read = resumed, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        dataset: BatchDataset = self.dataset  # type: ignore[assignment]
        passes = 1 if dataset.ends else dataset.partition.passes
        if dataset.ends:
            self.read = 0
        if isinstance(self.sampler, BatchNumberSampler):
            self.sampler.start = self.read = -(-self.read // passes) * passes
        try:
            with hold_signals():  # starts the workers
                batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, ReadFailure):
                    raise ValueError(str(batch))
                self.read += 1
                yield batch
        except RuntimeError as error:
            raise self.explained(error) from error

    def explained(self, error: BaseException) -> BaseException:
        """Return the error or, if a worker died, an error that names the pairs it was reading."""
        dead = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
        if not dead:
            return error
        read = self.dataset.read_by({int(pid) for pid in dead[1].split(",")})  # type: ignore[attr-defined]
        return ValueError(
            f"a DataLoader worker died ({dead[2].strip()}) while reading {', '.join(read) or 'nothing'}: "
            "check the file and the available memory; data.num_workers=0 shows the original error"
        )

    def state_dict(self) -> dict[str, int]:
        """Return the progress in windows of complete optimizer steps, which is independent of the number of devices."""
        partition: BatchPartition = self.dataset.partition  # type: ignore[attr-defined]
        windows = self.read // partition.passes * partition.global_batch_size
        return {"windows": windows, "passes": partition.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a state, possibly with another number of devices."""
        partition: BatchPartition = self.dataset.partition  # type: ignore[attr-defined]
        self.read = state["windows"] // partition.global_batch_size * partition.passes
        if self.resumed is not None:
            self.resumed(state)
