"""Estimate the device memory of a training step and the largest batch size that fits.

The step runs on fake tensors, which have shapes but no data, so that a model of official size takes seconds on a CPU.
All live storages are counted, rounded up like PyTorch's CUDA allocator does. `RESERVE` covers the CUDA context, library
workspaces and fragmentation.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESERVE = 10**9  # bytes
BLOCK = 512  # bytes, the granularity of the CUDA allocator
BATCHES = (4, 8)  # two batch sizes to fit the linear memory model
WEIGHTS = {"64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}
MOST = 4096  # windows


class LiveMemoryTracker(TorchDispatchMode):
    """Count the bytes of all live tensors and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its new storages."""
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self._sizes:
                storage = x.untyped_storage()
                self._sizes[storage._cdata] = size = -(-storage.nbytes() // BLOCK) * BLOCK
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step in bytes as a function of the batch size.

    Attributes:
        state: weights, gradients, optimizer moments and averaged weights.
        fixed: part of the peak that does not depend on the batch size.
        per_window: additional bytes per window of the batch.
    """

    state: float
    fixed: float
    per_window: float

    def peak(self, batch: int) -> float:
        """Peak memory for a batch of `batch` windows."""
        return max(self.state, self.fixed + batch * self.per_window)

    def sharded(self, devices: int) -> "StepMemory":
        """The estimate with the state sharded over devices."""
        saved = self.state * (1 - 1 / devices)
        return StepMemory(self.state - saved, self.fixed - saved, self.per_window)

    def largest_batch(self, total: float) -> int:
        """Largest power of two that fits in `total` bytes; 0 if one window does not fit."""
        batch = 0
        while batch < MOST and self.peak(max(1, 2 * batch)) <= total - RESERVE:
            batch = max(1, 2 * batch)
        return batch


def step_peak(
    build: Callable[[int], tuple[nn.Module, Callable[[], Tensor]]],
    batch: int,
    precision: str = "32-true",
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    averaged: bool = True,
    accumulates: bool = False,
) -> tuple[int, int]:
    """Count the bytes of a training step: (state, peak of forward and backward pass).

    Args:
        build: batch -> (module, loss function), called with fake tensors.
        batch: number of windows.
        precision: Lightning precision.
        optimizer: module -> optimizer; None: fused AdamW.
        averaged: whether to count averaged (EMA) weights.
        accumulates: whether gradients of an earlier pass exist during the forward pass.
    """
    width, _, kind = precision.partition("-")
    live = LiveMemoryTracker()
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), live:
        with _default_dtype(WEIGHTS.get(width, torch.float32) if kind == "true" else torch.float32):
            module, loss = build(batch)
        module.train()
        stepper = optimizer(module) if optimizer else torch.optim.AdamW(module.parameters(), fused=True)
        average = [p.detach().clone() for p in module.parameters()] if averaged else []
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        stepper.step()  # allocates the moments
        state = live.now
        if not accumulates:
            stepper.zero_grad(set_to_none=True)
        live.peak = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed", cache_enabled=False):
            value = loss()
        value.backward()
        del average
    return state, live.peak


def step_memory(build: Callable[[int], tuple[nn.Module, Callable[[], Tensor]]], **options: Any) -> StepMemory:
    """Estimate the memory of a training step from two batch sizes; `options` are those of `step_peak`."""
    (state, one), (_, other) = (step_peak(build, batch, **options) for batch in BATCHES)
    per_window = (other - one) / (BATCHES[1] - BATCHES[0])
    return StepMemory(state, one - BATCHES[0] * per_window, per_window)


def fewest_passes(total: int, devices: int, passes: int, most: int) -> int:
    """Smallest multiple of `passes` that divides the global batch into batches of at most `most` windows.

    Args:
        total: global batch size.
        devices: number of devices.
        passes: trainer.accumulate_grad_batches.
        most: number of windows that fit on a device.

    Raises:
        ValueError: the global batch size is not divisible by devices * passes.
    """
    each, rest = divmod(total, devices * passes)
    if rest or not each:
        raise ValueError(
            f"data.global_batch_size={total} is not divisible by {devices} device(s) times "
            f"trainer.accumulate_grad_batches={passes}: use a multiple of {devices * passes}"
        )
    return passes * next(more for more in range(1, each + 1) if each % more == 0 and each // more <= max(1, most))
