"""Full fp32 precision for encoding: rounding can change the index of the nearest code vector."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Disable TF32 for matrix products and convolutions on CUDA devices; a no-op on other devices.

    cuDNN uses TF32 for fp32 convolutions by default, and training enables it for matrix products. With TF32, the codes
    of the same audio depend on the GPU, and `im2wav.tokenize` and training could produce different codes.
    """
    if device.type != "cuda":
        yield
        return
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
