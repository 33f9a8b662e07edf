"""Defaults that depend on the hardware: precision, TF32, and batch size.

The batch size is computed from the memory of a training step. To estimate it, the step runs on fake tensors, which have
shapes but no data, so that a model of official size takes seconds on a CPU. The bytes of all live storages are counted,
rounded up as by PyTorch's CUDA allocator. `RESERVE` covers the CUDA context, library
workspaces and fragmentation.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from im2wav.codec.losses import Bandwidth
from im2wav.data.datamodule import DEFAULT_BATCH
from im2wav.data.windows import Batch, collate
from im2wav.training.ema import EMA

log = logging.getLogger(__name__)

RESERVE = 10**9  # bytes
BLOCK = 512  # bytes, the granularity of the CUDA allocator
BATCHES = (4, 8)  # batch sizes from which the linear memory model is computed
WEIGHTS = {"64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}
MOST = 4096  # largest batch size, in windows


class HalfWeights(HalfPrecision):
    """Weights in bf16 or fp16 (`trainer.precision=bf16-true`) without casting the batch.

    Lightning casts all floating-point tensors of a batch. Audio in bf16 encodes to different codes, and bf16 cannot
    represent times in samples (8 significant bits). The networks cast their inputs themselves.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch unchanged."""
        return data


def resolve_accelerator(name: str) -> str:
    """Resolve `trainer.accelerator` like Lightning: `cuda`, `mps` or `cpu`; other names are returned unchanged.

    Raises:
        ValueError: this machine has no such device.
    """
    cuda, mps = CUDAAccelerator.is_available(), MPSAccelerator.is_available()
    present = {"cuda": cuda, "mps": mps, "gpu": cuda or mps}
    if not present.get(name, True):
        what = {"cuda": "CUDA device", "mps": "Apple GPU (MPS)", "gpu": "CUDA device and no Apple GPU (MPS)"}[name]
        built = f"PyTorch {torch.__version__} is built {'with' if torch.version.cuda else 'without'} CUDA"
        raise ValueError(f"trainer.accelerator={name}: found no {what}; use trainer=cpu ({built})")
    if name in ("auto", "gpu"):
        return "mps" if mps else "cuda" if cuda else "cpu"
    return name


def resolve_training_precision(precision: Any, accelerator: str) -> Any:
    """Resolve `trainer.precision=auto`: mixed precision on CUDA devices, fp32 elsewhere.

    bf16 needs no loss scaling. GPUs that only emulate bf16 (before Ampere) use fp16. On MPS, Lightning's mixed
    precision enables autocast for CUDA only and has no effect.
    """
    if precision != "auto":
        return precision
    if accelerator != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def configure_precision(cfg: DictConfig) -> None:
    """Resolve the precision in the configuration and enable TF32 for fp32 matrix products on CUDA.

    Raises:
        ValueError: see `resolve_accelerator`.
    """
    accelerator = resolve_accelerator(cfg.trainer.accelerator)
    cfg.trainer.precision = resolve_training_precision(cfg.trainer.precision, accelerator)
    if accelerator == "cuda":
        torch.set_float32_matmul_precision("high")


class _LiveMemory(TorchDispatchMode):
    """Count the bytes of all live tensors and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    """Peak memory of a training step in bytes as a function of the batch size."""

    state: float  # weights, gradients, optimizer moments and averaged weights
    fixed: float  # part of the peak that does not depend on the batch size
    per_window: float

    def peak(self, batch: int) -> float:
        """Peak memory in bytes for a batch of `batch` windows."""
        return max(self.state, self.fixed + batch * self.per_window)

    def sharded(self, devices: int) -> "StepMemory":
        """Estimate for one device, if the state is sharded over devices."""
        saved = self.state * (1 - 1 / devices)
        return StepMemory(self.state - saved, self.fixed - saved, self.per_window)

    def largest_batch(self, total: float) -> int:
        """Largest power of two of windows that fits in `total` bytes; 0 if one window does not fit."""
        batch = 0
        while batch < MOST and self.peak(max(1, 2 * batch)) <= total - RESERVE:
            batch = max(1, 2 * batch)
        return batch


Build = Callable[[int], tuple[nn.Module, Callable[[], Tensor]]]  # batch size -> module and its loss function


def step_peak(
    build: Build,
    batch: int,
    precision: str = "32-true",
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    averaged: bool = True,
    accumulates: bool = False,
) -> tuple[int, int]:
    """Count the bytes of a training step: (state, peak of forward and backward pass).

    Args:
        build: called under `FakeTensorMode`.
        batch: number of windows.
        precision: Lightning precision.
        optimizer: module -> optimizer; None: fused AdamW.
        averaged: whether to count averaged (EMA) weights.
        accumulates: whether gradients of an earlier pass exist during the forward pass.
    """
    width, _, kind = precision.partition("-")
    live = _LiveMemory()
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), live:
        with _default_dtype(WEIGHTS.get(width, torch.float32) if kind == "true" else torch.float32):
            module, loss = build(batch)
        module.train()
        trained = [p for p in module.parameters() if p.requires_grad]
        stepper = optimizer(module) if optimizer else torch.optim.AdamW(trained, fused=True)
        average = [p.detach().clone() for p in module.parameters()] if averaged else []
        for p in trained:
            p.grad = torch.zeros_like(p)
        stepper.step()  # allocates the optimizer moments
        state = live.now
        if not accumulates:
            stepper.zero_grad(set_to_none=True)
        live.peak = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed", cache_enabled=False):
            value = loss()
        value.backward()
        del average
    return state, live.peak


def step_memory(build: Build, **options: Any) -> StepMemory:
    """Estimate the memory of a training step from two batch sizes; `options` are those of `step_peak`."""
    (state, one), (_, other) = (step_peak(build, batch, **options) for batch in BATCHES)
    per_window = (other - one) / (BATCHES[1] - BATCHES[0])
    return StepMemory(state, one - BATCHES[0] * per_window, per_window)


def fewest_passes(total: int, devices: int, passes: int, most: int) -> int:
    """Smallest multiple of `passes` that divides a global batch of `total` into batches of at most `most` windows.

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


def device_memory(trainer: Any) -> int | None:
    """Memory in bytes of the smallest device of this node; None on a CPU."""
    kind = trainer.strategy.root_device.type
    if kind == "cuda":
        return min(torch.cuda.get_device_properties(i).total_memory for i in trainer.device_ids)
    return torch.mps.recommended_max_memory() if kind == "mps" else None


def training_memory(cfg: DictConfig, trainer: Any, datamodule: Any, make: Callable[[], Any]) -> StepMemory:
    """Memory of this run's training step with accumulated gradients, for all batch sizes; takes some seconds.

    `make` builds another copy of the run's LightningModule; it is called under `FakeTensorMode`.
    """
    item = collate([datamodule.windows["train"][(0, 0.5)]])
    codec = datamodule.tokenizer
    shapes = (
        {k: (item.wav.shape[-1] // hop, *codec.code_shapes[k]) for k, hop in codec.hop_lengths.items()} if codec else {}
    )

    def build(batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        def like(x: Tensor) -> Tensor:
            return torch.zeros(batch, *x.shape[1:], dtype=x.dtype)

        fake = make()
        fake.log_parts = lambda *_, **__: None  # there is no trainer
        if hasattr(fake, "bandwidth"):
            fake.bandwidth = Bandwidth()
        codes = {k: torch.zeros(batch, *shape, dtype=torch.int64) for k, shape in shapes.items()}
        dropped = torch.zeros(batch, dtype=torch.bool) if getattr(fake, "condition_dropout", 0) else None
        timing = {name: like(value) for name, value in item.timing.items()}
        inputs = Batch(like(item.wav), like(item.clip), timing, ["fake"] * batch, codes or None, dropped=dropped)
        return fake, lambda: fake.training_step(inputs, 0)

    def optimizer(fake: Any) -> Any:
        made = fake.configure_optimizers()
        return made["optimizer"] if isinstance(made, dict) else made

    averaged = any(isinstance(callback, EMA) for callback in trainer.callbacks)
    found = step_memory(
        build, precision=str(cfg.trainer.precision), optimizer=optimizer, averaged=averaged, accumulates=True
    )
    return found.sharded(trainer.world_size) if isinstance(trainer.strategy, ModelParallelStrategy) else found


def size_batch(cfg: DictConfig, trainer: Any, datamodule: Any, make: Callable[[], Any]) -> None:
    """Resolve `data.batch_size=auto` for the trainer's devices; called before `Trainer.fit`.

    On a GPU, the batch is as large as the memory allows, up to the device's part of the global batch; gradients are
    accumulated up to the global batch. So a step uses the same windows on every GPU. On a CPU the batch size is
    `DEFAULT_BATCH`. For `make`, see `training_memory`.

    Raises:
        ValueError: `data.global_batch_size` is not divisible by the number of devices.
    """
    if cfg.data.batch_size != "auto":
        return
    cfg.data.batch_size = datamodule.batch_size
    total = device_memory(trainer)
    if total is None:
        return
    memory = training_memory(cfg, trainer, datamodule, make)
    most, devices, passes = memory.largest_batch(total), trainer.world_size, trainer.accumulate_grad_batches
    windows = cfg.data.global_batch_size or -(-DEFAULT_BATCH // (devices * passes)) * devices * passes
    passes = fewest_passes(windows, devices, passes, most)
    batch = windows // (devices * passes)
    trainer.accumulate_grad_batches = cfg.trainer.accumulate_grad_batches = passes
    datamodule.global_batch_size = cfg.data.global_batch_size = windows
    datamodule.batch_size = cfg.data.batch_size = batch
    if not trainer.is_global_zero:
        return
    log.info(
        "batch size: %d windows on each of %d device(s), %d pass(es) per step, global batch %d; a step uses about %.1f "
        "of %.1f GB (%.2f GB + %.2f GB per window)",
        *(batch, devices, passes, windows, memory.peak(batch) / 1e9, total / 1e9),
        *(memory.fixed / 1e9, memory.per_window / 1e9),
    )
    if not most:
        log.warning(
            "one window may not fit: it needs about %.1f GB of %.1f GB available; "
            "model.net.transformer.checkpointing=true needs far less memory",
            *(memory.peak(1) / 1e9, (total - RESERVE) / 1e9),
        )
