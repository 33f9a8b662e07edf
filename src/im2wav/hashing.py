"""Hash of weights, so that nets and embeddings can say whose they are."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of weights by name, shape and value in fp32: the file, its format and its precision do not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        if value.numel():
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
