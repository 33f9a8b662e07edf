"""How many sequences can be drawn side by side in the memory that is free."""

from collections.abc import Sequence
from pathlib import Path

import torch

from im2wav.decoding.linear import cache_dtype, pick_precision
from im2wav.prior import Prior

MAX_BATCH_SIZE = 64  # beyond, a CPU only gets slower, and on a GPU the caches' bytes outweigh those of the weights
SHARE_OF_FREE = 0.6  # the rest is for activations, the waves, and whoever else is on the machine
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such limit, or the word `max`
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not say."""
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
    """Caches, and conditions of every position, of one sequence that goes through the net as `rows` rows."""
    sizes, block, length = prior.transformer.config, prior.transformer.block, prior.context_length
    kept = {"row": block, "previous_row": 2 * block, "column": length}
    device = prior.position_embedding.device
    per_number = cache_dtype(pick_precision(precision, device), device).itemsize
    cached = sum(kept[str(layer.kind)] for layer in prior.transformer.layers)
    return rows * (cached * 2 * sizes.attention_width * per_number + length * sizes.width * 4)


def batch_that_fits(priors: Sequence[Prior], precision: str, rows: int = 2, most: int = MAX_BATCH_SIZE) -> int:
    """How many sequences fit into what is free now, 1 to `most`: each prior keeps its caches for the next window.

    Args:
        priors: that will be used; weights that are not packed yet are taken into account as a second copy of one.
        precision: see `Decoder`.
        rows: of the net for each sequence, where the prior can be guided: 2 with guidance, 3 with a negative too.
        most: no more than this.
    """
    free = free_memory(priors[0].position_embedding.device)
    if free is None:
        return min(most, 16)
    weights = max(sum(p.nbytes for p in prior.parameters()) for prior in priors)
    each = sum(bytes_per_sequence(prior, precision, rows if prior.can_be_guided else 1) for prior in priors)
    return int(min(most, max(1, (free * SHARE_OF_FREE - weights) // each)))
