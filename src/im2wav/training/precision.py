"""Precision of a training run: defaults of the device, TF32, and weights in half precision."""

from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.precision import HalfPrecision
from omegaconf import DictConfig


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
