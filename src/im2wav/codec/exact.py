"""Full fp32 precision for codes: a code is the index of the nearest vector, and rounding decides ties."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Compute fp32 matrix products and convolutions on a CUDA device without TF32; elsewhere change nothing.

    cuDNN uses TF32 for fp32 convolutions by default, and training allows it for matrix products. Codes of the same
    audio would then depend on the GPU, and `im2wav.tokenize` and training could disagree.
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
