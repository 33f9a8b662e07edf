"""The state of the simulated machine: its devices, what is counted, and the CUDA graph that is being captured."""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cuda.shim import set_shim_device

if TYPE_CHECKING:
    from cuda.graph import Graph

HERE = str(Path(__file__).parent)
SOURCE = "/src/im2wav/"


class Block:
    """A tensor's memory on the card; views of one tensor share a storage. It lives as long as the tensor does."""

    def __init__(self, storage: int, nbytes: int):
        self.storage, self.nbytes = storage, nbytes


class Machine:
    """Attributes:
    num_devices: how many cards torch.cuda reports: 1 or 2. With 2, Lightning would start further processes.
    graph: the graph that is being captured.
    captured: of each graph that was captured, its operations by name.
    syncs: how often the host waited for a device, by reason and place in the code.
    operations: how many operations a device was given, by name. Views and allocations are none.
    blocks: memory of all tensors and graphs that are alive on a card.
    """

    def __init__(self) -> None:
        self.num_devices = 1
        self.graph: Graph | None = None
        self.captured: list[Counter[str]] = []
        self.syncs: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self._current = 0

    @property
    def current(self) -> int:
        """Index of the current device, here and in the C++ of torch."""
        return self._current

    @current.setter
    def current(self, index: int) -> None:
        self._current = index
        set_shim_device(index)

    def reset(self) -> None:
        """Forget all counts, and go back to a single device."""
        self.num_devices, self.current, self.graph = 1, 0, None
        self.captured.clear()
        self.syncs.clear()
        self.operations.clear()

    def sync(self, reason: str) -> None:
        """Count that the host waits for a device.

        Raises:
            RuntimeError: a graph is being captured.
        """
        where = place()
        if self.graph is not None:
            raise RuntimeError(f"{reason}: operation not permitted when stream is capturing ({where})")
        self.syncs[f"{reason} at {where}"] += 1

    def allocated(self) -> int:
        """Bytes of the memory that is alive on all cards."""
        return sum({block.storage: block.nbytes for block in self.blocks}.values())


def place() -> str:
    """Where in im2wav the program is, as file:line, and through which library call it got further."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(HERE)]
    frames = [frame for frame in frames if "/torch/_" not in frame.filename and "/torch/utils/_" not in frame.filename]
    own = [frame for frame in frames if SOURCE in frame.filename]
    if own and own[-1] is frames[-1]:
        return " < ".join(_show(frame) for frame in own[:-4:-1])
    library = [_show(frame) for frame in frames if "site-packages" in frame.filename][-2:]
    return " < ".join([*reversed(library), *(_show(frame) for frame in own[-1:])]) or "a test"


def _show(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename.split(SOURCE)[-1].split('site-packages/')[-1]}:{frame.lineno}"


machine = Machine()
