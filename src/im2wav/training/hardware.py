"""Defaults that depend on the hardware: precision, TF32, batch size, gradient accumulation."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig
from torch import Tensor, nn

from im2wav.codec.losses import Bandwidth
from im2wav.data.datamodule import DEFAULT_BATCH
from im2wav.data.windows import Batch, collate
from im2wav.training.ema import EMA
from im2wav.training.memory import RESERVE, StepMemory, fewest_passes, step_memory

log = logging.getLogger(__name__)


def resolve_accelerator(name: str) -> str:
    """Resolve `trainer.accelerator` like Lightning: `cuda`, `mps` or `cpu`; other names are returned unchanged.

    Raises:
        ValueError: this machine has no such device.
    """
    cuda, mps = CUDAAccelerator.is_available(), MPSAccelerator.is_available()
    present = {"cuda": cuda, "mps": mps, "gpu": cuda or mps}
    if name == "auto":
        return "mps" if mps else "cuda" if cuda else "cpu"
    if not present.get(name, True):
        what = {"cuda": "CUDA device", "mps": "Apple GPU (MPS)", "gpu": "CUDA device and no Apple GPU (MPS)"}[name]
        built = f"PyTorch {torch.__version__} is built {'with' if torch.version.cuda else 'without'} CUDA"
        raise ValueError(f"trainer.accelerator={name}: found no {what}; use trainer=cpu ({built})")
    return ("mps" if mps else "cuda") if name == "gpu" else name


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


def device_memory(trainer: Any) -> int | None:
    """Memory in bytes of the smallest device of this node; None on a CPU."""
    kind = trainer.strategy.root_device.type
    if kind == "cuda":
        return min(torch.cuda.get_device_properties(i).total_memory for i in trainer.device_ids)
    return torch.mps.recommended_max_memory() if kind == "mps" else None


def training_memory(cfg: DictConfig, trainer: Any, datamodule: Any, make: Callable[[], Any]) -> StepMemory:
    """Memory of this run's training step with accumulated gradients, for all batch sizes; takes some seconds.

    `make` builds the run's LightningModule once more; it is called where tensors are fake.
    """
    item = collate([datamodule.windows["train"][(0, 0.5)]])
    hops = datamodule.tokenizer.hop_lengths if datamodule.tokenizer is not None else {}

    def build(batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        def like(x: Tensor) -> Tensor:
            return torch.zeros(batch, *x.shape[1:], dtype=x.dtype)

        fake = make()
        fake.log_parts = lambda *_, **__: None  # there is no trainer
        if hasattr(fake, "bandwidth"):
            fake.bandwidth = Bandwidth()
        codes = {k: torch.zeros(batch, item.wav.shape[-1] // hop, dtype=torch.int64) for k, hop in hops.items()}
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

    On a GPU, the batch is as large as the memory allows, up to the device's part of the global batch, which
    accumulation completes: steps see the same windows whatever the GPU. On a CPU it is `DEFAULT_BATCH`. `make` is that
    of `training_memory`.

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
    most, shares = memory.largest_batch(total), trainer.world_size * trainer.accumulate_grad_batches
    windows = cfg.data.global_batch_size or -(-DEFAULT_BATCH // shares) * shares
    passes = fewest_passes(windows, trainer.world_size, trainer.accumulate_grad_batches, most)
    batch = windows // (trainer.world_size * passes)
    trainer.accumulate_grad_batches = cfg.trainer.accumulate_grad_batches = passes
    datamodule.global_batch_size = cfg.data.global_batch_size = windows
    datamodule.batch_size = cfg.data.batch_size = batch
    if not trainer.is_global_zero:
        return
    log.info(
        "batch size: %d windows on each of %d device(s), %d pass(es) per step, global batch %d; a step uses about %.1f "
        "of %.1f GB (%.2f GB + %.2f GB per window)",
        *(batch, trainer.world_size, passes, windows, memory.peak(batch) / 1e9, total / 1e9),
        *(memory.fixed / 1e9, memory.per_window / 1e9),
    )
    if not most:
        log.warning(
            "one window may not fit: it needs about %.1f GB of %.1f GB available; "
            "model.net.transformer.checkpointing=true needs far less memory",
            *(memory.peak(1) / 1e9, (total - RESERVE) / 1e9),
        )
