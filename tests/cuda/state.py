"""The state of the simulated machine: its devices, what is counted, and the CUDA graph that is being captured."""

from __future__ import annotations

import collections
import traceback
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuda.graph import Graph

HERE = str(Path(__file__).parent)
SOURCE = "/src/im2wav/"


class Block:
    """A tensor's memory on the card; views of one tensor share a storage. It lives as long as the tensor does."""

    def __init__(self, storage: int, nbytes: int):
        self.storage, self.nbytes = storage, nbytes


@dataclass
class Machine:
    """Attributes:
    num_devices: how many cards torch.cuda reports.
    current: index of the current device.
    graph: the graph that is being captured.
    graphs: all graphs that were captured.
    syncs: how often the host waited for a device, by reason and place in the code.
    operations: how many operations a device was given, by name. Views and allocations are none.
    blocks: memory of all tensors that are alive on a card.
    """

    num_devices: int = 2
    current: int = 0
    graph: Graph | None = None
    graphs: list[Graph] = field(default_factory=list)
    syncs: collections.Counter[str] = field(default_factory=collections.Counter)
    operations: collections.Counter[str] = field(default_factory=collections.Counter)
    blocks: weakref.WeakSet[Block] = field(default_factory=weakref.WeakSet)

    def reset(self) -> None:
        """Forget counters and graphs, and go back to device 0."""
        self.num_devices, self.current, self.graph = 2, 0, None
        self.graphs.clear()
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
