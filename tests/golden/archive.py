"""Tensors in a small file: each rounded to whole multiples of its own step, their bytes kept apart and compressed.

A rounded value differs from the exact one by at most half a step.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OFFSET = 1 << 15  # so that the third byte of most values is 0


class Group(NamedTuple):
    """Tensors that were packed together, and what else was stored with them."""

    tensors: dict[str, np.ndarray]
    about: dict[str, Any]


def pack(tensors: dict[str, tuple[np.ndarray, float]]) -> tuple[np.ndarray, list[list[Any]]]:
    """Round tensors given with their steps: bytes, uint8 [3, N], and name, shape and step of each.

    Raises:
        ValueError: a value of more than 23 bits.
    """
    values, entries = [np.zeros(0, np.int64)], []
    for name, (array, step) in tensors.items():
        step = float(f"{step:.3g}")
        values.append(np.rint(array.astype(np.float64) / step).astype(np.int64).ravel())
        entries.append([name, list(array.shape), step])
    joined = np.concatenate(values) + OFFSET
    if joined.min() < -(1 << 23) or joined.max() >= 1 << 23:
        raise ValueError("a tensor has values beyond 2^23 steps: its step is too small")
    return np.stack([(joined >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]), entries


def unpack(planes: np.ndarray, entries: list[list[Any]]) -> dict[str, np.ndarray]:
    """The tensors that `pack` rounded, float32."""
    low, middle, high = planes.astype(np.int64)
    values = low + (middle << 8) + (high << 16)
    values = np.where(values >= 1 << 23, values - (1 << 24), values) - OFFSET
    tensors, start = {}, 0
    for name, shape, step in entries:
        count = int(np.prod(shape))
        tensors[name] = (values[start : start + count] * step).astype(np.float32).reshape(shape)
        start += count
    return tensors


def write(path: Path, groups: dict[str, tuple[dict[str, tuple[np.ndarray, float]], dict[str, Any]]]) -> None:
    """Write groups of (tensors with their steps, further JSON values) to an .npz file."""
    arrays: dict[str, np.ndarray] = {}
    index = {}
    for group, (tensors, about) in groups.items():
        arrays[group], entries = pack(tensors)
        index[group] = {"tensors": entries, "about": about}
    arrays["index"] = np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), np.uint8)
    np.savez_compressed(path, **arrays)


def read(path: Path) -> dict[str, Group]:
    """The groups that `write` stored."""
    with np.load(path) as file:
        index = json.loads(file["index"].tobytes())
        return {name: Group(unpack(file[name], x["tensors"]), x["about"]) for name, x in index.items()}
