"""CUDA graphs: operations of one device are recorded, and replayed one by one into the same memory."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from cuda.state import Block, machine

# operations that launch no kernel
VIEWS = {
    "view",
    "_unsafe_view",
    "permute",
    "transpose",
    "t",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "split",
    "split_with_sizes",
    "unbind",
    "as_strided",
    "alias",
    "detach",
    "detach_",
    "lift_fresh",
    "unfold",
    "diagonal",
    "narrow",
    "_reshape_alias",
    "view_as_real",
    "view_as_complex",
    "chunk",
}
ALLOCATIONS = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "set_",
    "resize_",
    "record_stream",
}

# called as soon as a capture begins: tests let other threads do something then
during_capture: list[Callable[[], object]] = []


class Operation(NamedTuple):
    """An operation on the tensors that hold a card's numbers, and what it returned."""

    name: str
    func: Any
    args: tuple
    kwargs: dict[str, Any]
    result: Any

    @property
    def is_kernel(self) -> bool:
        """Whether the device has something to do."""
        return self.name not in VIEWS and self.name not in ALLOCATIONS

    def replay(self) -> None:
        """Run again; what it returned goes where it went at capture."""
        result = self.func(*self.args, **self.kwargs)
        if self.func._schema.is_mutable:
            return
        for old, new in zip(tree_leaves(self.result), tree_leaves(result), strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)


class Graph:
    """Stands in for torch.cuda.CUDAGraph.

    Nothing runs while a real graph is captured. Here operations do run, because their results' shapes are needed, and
    what they wrote into memory that is not the graph's own is undone at the end.
    """

    def __init__(self, *_: Any, **__: Any):
        self._recorded: list[Operation] = []
        self.device = machine.current
        self.error_mode, self.thread, self.is_invalid = "global", 0, False
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: set[int] = set()
        self.blocks: list[Block] = []

    def prepare(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Save what an operation is about to overwrite."""
        arguments = func._schema.arguments
        named = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        written = [value for a, value in named if a.alias_info is not None and a.alias_info.is_write]
        for tensor in tree_leaves(written):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[storage._cdata] = whole, whole.clone()

    def record(self, operation: Operation) -> None:
        """Remember an operation, and that the memory of its result is the graph's own."""
        if not operation.func._schema.is_mutable and operation.name not in VIEWS:
            tensors = [x for x in tree_leaves(operation.result) if isinstance(x, torch.Tensor)]
            self._own |= {tensor.untyped_storage()._cdata for tensor in tensors}
        self._recorded.append(operation)

    @property
    def operations(self) -> list[Operation]:
        """What a replay gives the device to do."""
        return [operation for operation in self._recorded if operation.is_kernel]

    def finish(self) -> None:
        """Undo what was written during the capture.

        Raises:
            RuntimeError: another thread made a call that a capture in the mode "global" does not allow.
        """
        for whole, before in self._before.values():
            whole.copy_(before)
        self._before.clear()
        storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in self._results()}
        self.blocks = [Block(storage, nbytes) for storage, nbytes in storages.items() if storage in self._own]
        machine.blocks.update(self.blocks)
        machine.captured.append(Counter(operation.name for operation in self.operations))
        if self.is_invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        if not self.operations:
            warnings.warn("The CUDA Graph is empty: captured on the wrong device or stream", stacklevel=3)

    def _results(self) -> list[torch.Tensor]:
        results = tree_leaves([operation.result for operation in self._recorded])
        return [result for result in results if isinstance(result, torch.Tensor)]

    def replay(self) -> None:
        """Run all operations again."""
        for operation in self.operations:
            operation.replay()

    def reset(self) -> None:
        """Forget all operations."""
        self._recorded.clear()
        self.blocks.clear()


@contextlib.contextmanager
def capture(graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """Stands in for torch.cuda.graph."""
    if machine.graph is not None:
        raise RuntimeError("a graph is being captured already")
    graph.device, graph.error_mode, graph.thread = machine.current, capture_error_mode, threading.get_ident()
    machine.graph = graph
    try:
        for call in during_capture:
            call()
        yield
    finally:
        machine.graph = None
    graph.finish()


def call_cuda() -> None:
    """A CUDA call that is unsafe during a capture (cudaHostAlloc, cudaEventQuery), in whatever thread."""
    graph = machine.graph
    if graph is not None and (graph.error_mode == "global" or graph.thread == threading.get_ident()):
        graph.is_invalid = True
