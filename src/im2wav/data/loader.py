"""Which windows make a batch, on which device, and a loader that goes on where it stopped.

A run reads one endless stream of windows that the seed alone determines. A global batch (one step of the optimiser) is
a stretch of it, and devices and accumulated passes share that stretch: neither their number nor the number of workers
changes what a step sees. A batch has a number, and from the number follows everything that is in it, so that going on
means starting at another number; nothing is replayed.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from im2wav.data.windows import Batch, Key, WindowDataset, collate


class KeyStream:
    """The endless stream of keys, from which window i can be had without those before it.

    It falls into epochs of `length` keys. Within one, every row comes once before any comes twice, each time at another
    place.

    Args:
        rows: what there is to draw from.
        length: keys in an epoch.
        seed: of order, places and mixing weights.
        shuffle: whether rows come in random order.
        place: the same place for all keys; None to draw them.
        blend: whether the weight of the left channel is drawn too (0.5 otherwise).
    """

    def __init__(
        self, rows: int, length: int, seed: int, shuffle: bool = True, place: float | None = None, blend: bool = False
    ):
        self.rows, self.length, self.seed = rows, length, seed
        self.shuffle, self.place, self.blend = shuffle, place, blend
        self._epoch: tuple[int, Tensor, Tensor, Tensor] | None = None

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            orders, places = [], []
            for start in range(0, self.length, self.rows):
                count = min(self.rows, self.length - start)
                order = torch.randperm(self.rows, generator=generator) if self.shuffle else torch.arange(self.rows)
                orders.append(order[:count])
                places.append(torch.rand(count, generator=generator, dtype=torch.float64))
            mixes = torch.full((self.length,), 0.5, dtype=torch.float64)
            if self.blend:  # drawn last, so that rows and places are the same with and without
                mixes = torch.rand(self.length, generator=generator, dtype=torch.float64)
            self._epoch = epoch, torch.cat(orders), torch.cat(places), mixes
        return self._epoch[1:]

    def __getitem__(self, number: int) -> Key:
        epoch, index = divmod(number, self.length)
        rows, places, mixes = self._draw(epoch)
        place = places[index].item() if self.place is None else self.place
        return Key(int(rows[index]), place, mixes[index].item())


@dataclass(frozen=True)
class BatchPartition:
    """What one device takes of each global batch.

    Attributes:
        batch_size: windows on one device at a time.
        devices: how many there are.
        rank: which of them this one is.
        passes: forward and backward passes of each device before the optimiser steps (accumulate_grad_batches).
    """

    batch_size: int
    devices: int = 1
    rank: int = 0
    passes: int = 1

    @classmethod
    def divide(cls, global_batch_size: int | None, batch_size: int, trainer: Any = None) -> "BatchPartition":
        """Divide a global batch over the trainer's devices and passes; without a size, each takes `batch_size`.

        Raises:
            ValueError: it does not divide.
        """
        devices, rank, passes = (
            (trainer.world_size, trainer.global_rank, trainer.accumulate_grad_batches) if trainer else (1, 0, 1)
        )
        if global_batch_size is None:
            return cls(batch_size, devices, rank, passes)
        if global_batch_size < 1 or global_batch_size % (devices * passes):
            raise ValueError(
                f"data.global_batch_size={global_batch_size} does not divide over {devices} device(s) times "
                f"trainer.accumulate_grad_batches={passes}: choose a multiple of {devices * passes}"
            )
        return cls(global_batch_size // (devices * passes), devices, rank, passes)

    @property
    def global_batch_size(self) -> int:
        """Windows in a step of the optimiser."""
        return self.batch_size * self.devices * self.passes

    def windows(self, number: int) -> range:
        """The places in the stream that this device's batch `number` takes."""
        step, part = divmod(number, self.passes)
        start = step * self.global_batch_size + (part * self.devices + self.rank) * self.batch_size
        return range(start, start + self.batch_size)

    def windows_of(self, number: int, rows: int) -> list[int]:
        """The same where the stream ends after `rows`; devices get equally many, and wrap around for that."""
        size = self.batch_size * self.devices
        each = -(-min(size, rows - number * size) // self.devices)
        start = number * size + self.rank * each
        return [i % rows for i in range(start, start + each)]


class ReadFailure(str):
    """What a worker hands over instead of a batch where a file cannot be read."""


class BatchDataset(Dataset):
    """Whole batches by their number.

    Args:
        windows: where the windows are read.
        draws: which window comes when.
        share: which of them belong to this device.
        ends: whether the stream ends after one round over the rows, as in validation.
    """

    def __init__(self, windows: WindowDataset, draws: KeyStream, share: BatchPartition, ends: bool = False):
        self.windows, self.draws, self.share, self.ends = windows, draws, share, ends
        # what each worker is reading: its process, batch and item; seen by all processes
        self.board = torch.zeros(1024, 3, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        if self.ends:
            return -(-self.draws.rows // (self.share.batch_size * self.share.devices))
        return self.draws.length // self.share.global_batch_size * self.share.passes

    def numbers(self, number: int) -> list[int]:
        """The places in the stream that make a batch."""
        if self.ends:
            return self.share.windows_of(number, self.draws.rows)
        return list(self.share.windows(number))

    def __getitem__(self, number: int) -> Batch | ReadFailure:
        worker = get_worker_info()
        slot = self.board[worker.id % len(self.board)] if worker else torch.zeros(3, dtype=torch.int64)
        numbers, items = self.numbers(number), []
        try:
            for i, place in enumerate(numbers):
                slot[:] = torch.tensor([os.getpid(), number, i])
                items.append(self.windows[self.draws[place]])
        except (ValueError, OSError) as error:
            if worker is None:
                raise
            return ReadFailure(error)  # raised in a worker it would come out as a whole traceback
        return collate(items)._replace(number=torch.tensor(numbers))

    def read_by(self, pids: set[int]) -> list[str]:
        """The pairs that these workers were reading."""
        found = []
        for pid, number, item in self.board.tolist():
            if pid in pids:
                found.append(self.windows.describe(self.draws[self.numbers(number)[item]]))
        return found


class BatchNumberSampler(DistributedSampler):
    """Numbers of batches from `start` on.

    By its type Lightning sees that the devices' shares have been seen to, and puts no sampler of its own around it.
    """

    def __init__(self, count: int):
        self.start, self.count, self.epoch = 0, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.count))


def _as_it_is(batch: Batch) -> Batch:
    return batch


class WindowLoader(DataLoader):
    """A DataLoader over `BatchDataset` that knows how far it has been read; Lightning keeps its state in checkpoints.

    Each iteration goes on where the last one ended.

    Args:
        dataset: the batches.
        sampler: for Lightning, which builds the loader anew where all batches are to be the same ones.
        resumed: called with the state of the loader that this one goes on from.
        options: of the DataLoader.

    Raises:
        ValueError: while iterating: a file cannot be read, or a worker died; names the pair.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        sampler: Any = None,
        resumed: Callable[[dict[str, int]], None] | None = None,
        **options: Any,
    ):
        options |= {"batch_size": None, "collate_fn": _as_it_is}
        super().__init__(dataset, sampler=sampler or BatchNumberSampler(len(dataset)), **options)
        self.resumed, self.read = resumed, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        dataset: BatchDataset = self.dataset  # type: ignore[assignment]
        passes = 1 if dataset.ends else dataset.share.passes
        if dataset.ends:
            self.read = 0
        if isinstance(self.sampler, BatchNumberSampler):
            self.sampler.start = self.read = -(-self.read // passes) * passes
        try:
            for batch in super().__iter__():
                if isinstance(batch, ReadFailure):
                    raise ValueError(str(batch))
                self.read += 1
                yield batch
        except RuntimeError as error:
            raise self.explained(error) from error

    def explained(self, error: BaseException) -> BaseException:
        """The error itself, or where it says that a worker died one that names what the worker was reading."""
        dead = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
        if not dead:
            return error
        read = self.dataset.read_by({int(pid) for pid in dead[1].split(",")})  # type: ignore[attr-defined]
        return ValueError(
            f"a worker that reads data died ({dead[2].strip()}) while it read {', '.join(read) or 'nothing'}: "
            "is the file broken, or the memory full? data.num_workers=0 shows more"
        )

    def state_dict(self) -> dict[str, int]:
        """How far this loader was read: whole steps of the optimiser, and what else a loader of another size needs."""
        share: BatchPartition = self.dataset.share  # type: ignore[attr-defined]
        steps = self.read // share.passes
        return {"windows": steps * share.global_batch_size, "passes": share.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, be it on other devices."""
        share: BatchPartition = self.dataset.share  # type: ignore[attr-defined]
        self.read = state["windows"] // share.global_batch_size * share.passes
        if self.resumed is not None:
            self.resumed(state)
