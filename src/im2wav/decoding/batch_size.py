"""The largest batch that fits into free memory."""

from collections.abc import Sequence
from pathlib import Path

import torch

from im2wav.decoding.linear import cache_dtype, resolve_precision
from im2wav.prior import Prior

MAX_BATCH_SIZE = 64  # larger ones are slower on a CPU; on a GPU reading the KV cache then takes longer than the weights
FRACTION_OF_FREE = 0.6  # the rest is for activations, waveforms and other processes
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no limit, or `max`
        return None


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    limit, used = map(_number, CGROUPS)
    return free if limit is None or used is None else min(free, max(0, limit - used))


def bytes_per_sequence(prior: Prior, precision: str, rows: int = 1) -> int:
    """Bytes of KV cache and conditions of one sequence that takes `rows` rows of the batch."""
    sizes, block, length = prior.transformer.config, prior.transformer.block, prior.context_length
    kept = {"row": block, "previous_row": 2 * block, "column": length}
    device = prior.position_embedding.device
    per_number = cache_dtype(resolve_precision(precision, device), device).itemsize
    cached = sum(kept[str(layer.kind)] for layer in prior.transformer.layers)
    return rows * (cached * 2 * sizes.attention_width * per_number + length * sizes.width * 4)


def batch_that_fits(priors: Sequence[Prior], precision: str, rows: int = 2, most: int = MAX_BATCH_SIZE) -> int:
    """Number of sequences that fit into free memory, 1 to `most`. Each prior keeps its KV cache between windows.

    Args:
        priors: the priors; memory for a packed copy of one of them is reserved.
        precision: see `Decoder`.
        rows: per sequence, for priors with guidance: 2, or 3 with a negative input.
        most: upper limit.
    """
    free = free_memory(priors[0].position_embedding.device)
    if free is None:
        return min(most, 16)
    weights = max(sum(p.nbytes for p in prior.parameters()) for prior in priors)
    each = sum(bytes_per_sequence(prior, precision, rows if prior.can_be_guided else 1) for prior in priors)
    return int(min(most, max(1, (free * FRACTION_OF_FREE - weights) // each)))
