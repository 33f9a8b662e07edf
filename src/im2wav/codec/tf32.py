"""Codes must not depend on the GPU's generation: TF32 off where the codec encodes and decodes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute fp32 convolutions and matrix products in fp32.

    By default cuDNN rounds the inputs of fp32 convolutions to TF32 (10 bits of mantissa) on Ampere and later. A latent
    between two codes then falls to either, and the same audio has other codes than on a CPU or an older GPU.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
