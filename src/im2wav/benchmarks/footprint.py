"""Memory and time to the first code, measured in new processes.

The parent saves a prior as .safetensors. The child processes (this file, run as a script) load it, build a decoder that
consumes the weights, and sample a code.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from im2wav.benchmarks.row import Row
from im2wav.training.timing import best_time


def memory_held(name: str) -> int:
    """Current (`VmRSS`) or peak (`VmHWM`) resident memory of this process in bytes. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: memory can only be measured on Linux")


def measure_first_code(path: str, precision: str, compile: bool) -> dict[str, float]:
    """Load a prior and sample a code; returns peak memory `held`, and `needed` for one copy of weights and cache."""
    from im2wav.benchmarks.decoding_speed import random_prior, start_decoding
    from im2wav.checkpoint import load_net
    from im2wav.decoding import Decoder

    if path == "warm":  # the first use of the libraries allocates memory
        net: Any = random_prior("low", "cpu", {"width": 64, "depth": 3, "blocks": 8}, {"low": 64})
    else:
        net = load_net(path, "low_prior")
    before = memory_held("VmRSS")
    decoder = Decoder(net, precision, consume=True, compile=compile)
    decoding = start_decoding(decoder, net)
    decoding.step()
    caches = sum(cache.buffer.nbytes for cache in decoding.caches) + decoding.condition.nbytes
    rest = sum(p.nbytes for p in net.parameters() if not p.is_meta)
    return {
        "held": memory_held("VmHWM") - before,
        "needed": sum(layer.nbytes for layer in decoder.layers) + rest + caches,
    }


def run_child(*arguments: str) -> str:
    """Run this file as a script and return its output.

    Raises:
        ValueError: the process failed.
    """
    command = [sys.executable, "-m", __name__, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(f"sampling a code in a separate process failed: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout


def measure_footprint(prior: Any, precision: str, compile: bool) -> list[Row]:
    """Peak memory compared with one copy of weights and cache; seconds from the start of Python to the first code."""
    from im2wav.checkpoint import Loaded, save

    config = {
        "codebook_size": prior.codebook_size,
        "context_length": prior.context_length,
        "transformer": vars(prior.transformer.config),
        "conditioning": {"frames": True, "timing": True, "guidance": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = str(save(Loaded(prior, "low_prior", config), Path(folder) / "low_prior.safetensors"))
        memory = json.loads(run_child(precision, "packed", "warm", path))
        ways = ("packed", "compiled")[: 1 + compile]
        # the better of two runs: files are in the page cache, kernels on disk
        times = [best_time(partial(run_child, precision, way, path), repeats=2, warm_up=0) for way in ways]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        alone = f"importing torch alone: {time.perf_counter() - start:.1f} s"
    held, needed = (memory[name] / 2**20 for name in ("held", "needed"))
    return [
        Row(f"peak memory, {precision}", held, "MiB", needed, "one copy of weights and cache", 1.1, False),
        Row(f"start to first code, {precision}", times[0], "s", 6.0, "target", 1.0, False, alone),
        *(Row(f"start to first code, {precision}, compiled", t, "s") for t in times[1:]),
    ]


if __name__ == "__main__":
    found = [measure_first_code(path, sys.argv[1], sys.argv[2] == "compiled") for path in sys.argv[3:]]
    sys.stdout.write(json.dumps(found[-1]))
