"""Time per code, compared with the official implementation and with one read of the weights."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from im2wav.benchmarks.baselines import OfficialDecoder, PeerDecoder
from im2wav.benchmarks.machine import Row, read_bandwidth
from im2wav.checkpoint import Loaded, load_net, save
from im2wav.decoding import Decoder, DecodeState, SamplingOptions
from im2wav.decoding.linear import DTYPES
from im2wav.prior import Conditions, Prior, Timing
from im2wav.training.monitor import best_time, synchronise

CONDITIONING: dict[str, dict[str, Any]] = {
    "low": {"frames": True, "timing": True, "guidance": True},
    "up": {"upsampler": {}},
}
CONTEXT = {"low": 2048, "up": 8192}


def _random_prior(level: str, device: str, transformer: Mapping[str, Any], context: Mapping[str, int]) -> Prior:
    torch.manual_seed(0)
    with torch.device(device):
        return Prior(2048, context[level], transformer, CONDITIONING[level]).eval().requires_grad_(False)


def _start_decoding(decoder: Decoder, prior: Prior, batch: int = 1) -> DecodeState:
    """Start decoding a window of `batch` sequences with random conditions."""
    device, upsampler = prior.position_embedding.device, prior.conditioner.upsampler
    timing = Timing(*(torch.full((batch,), seconds * 16000.0, device=device) for seconds in (10.0, 0.0, 4.096)))
    coarse = None
    if upsampler is not None:
        coarse = torch.zeros(batch, prior.context_length // upsampler.ratio, dtype=torch.int64, device=device)
    conditions = Conditions(torch.randn(batch, 1, prior.conditioner.config.clip_dim, device=device), timing, coarse)
    uniform = torch.rand(batch, prior.context_length, dtype=torch.float64, device=device)
    return decoder.start(conditions, uniform, SamplingOptions())


def _bytes_per_code(decoder: Decoder, rows: int) -> float:
    """Bytes read per code: all weights of the layers and the output once, and the KV cache."""
    sizes, block = decoder.sizes, decoder.block
    width, inner, hidden = sizes.width, sizes.attention_width, int(sizes.mlp_ratio * sizes.width)
    weights = sizes.depth * (4 * inner * width + 2 * width * hidden)
    keys = {"row": block / 2, "previous_row": block, "column": sizes.blocks / 2}
    cached = sum(keys[layer.kind] for layer in decoder.layers) * 2 * inner * rows
    per_weight = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[decoder.precision]
    return weights * per_weight + decoder.codebook_size * width * 4 + cached * decoder.cache_dtype.itemsize


def _step_time(drawing: DecodeState | OfficialDecoder | PeerDecoder, device: str, count: int) -> float:
    """Seconds per code: the fastest of `count` on a CPU; on a GPU, which runs asynchronously, the mean of 32 * `count`.

    A state near its end restarts: the content of the KV cache does not affect the time.
    """
    if isinstance(drawing, DecodeState) and drawing.position + 32 * count > drawing.codes.shape[1]:
        drawing.go_to(0)
    if device == "cpu":
        return best_time(drawing.step, repeats=count, warm_up=0)
    steps = 32 * count
    return best_time(lambda: [drawing.step() for _ in range(steps)], device, repeats=1, warm_up=0) / steps


def _measure_level(
    level: str, prior: Prior, precisions: Sequence[str], compile: Sequence[bool], device: str, rounds: int
) -> list[Row]:
    """Time per code of one level at batch 1 in each precision, guided if the prior supports it; variants interleaved.

    The ratio to the official implementation compares the fastest codes of both. The ratio to one read of the weights
    uses the median round, because the bandwidth may vary between rounds.
    """
    decoders = {(p, c): Decoder(prior, p, compile=c) for c in compile for p in precisions}
    ways: dict[Any, DecodeState | OfficialDecoder] = {None: OfficialDecoder(prior)}
    ways |= {way: _start_decoding(decoder, prior) for way, decoder in decoders.items()}
    times: dict[Any, list[float]] = {way: [] for way in ways}
    bandwidths: list[float] = []
    for drawing in ways.values():
        drawing.step()
    for _ in range(rounds):
        before = read_bandwidth(device, repeats=2)
        for way, drawing in ways.items():
            times[way].append(_step_time(drawing, device, 8))
        bandwidths.append(max(before, read_bandwidth(device, repeats=2)))
    official, name = min(times[None]) * 1e3, f"{'guided' if prior.can_be_guided else 'unguided'} {level} code"
    rows = [Row("memory read", median(bandwidths) / 1e9, "GB/s")]
    rows.append(Row(f"{name}, official implementation, fp32", official, "ms"))
    for (p, c), decoder in decoders.items():
        label = f"{name}, {p}{', compiled' if c else ''}"
        rows.append(Row(label, min(times[p, c]) * 1e3, "ms", official, "official implementation"))
        seconds, bandwidth = sorted(zip(times[p, c], bandwidths, strict=True), key=math.prod)[rounds // 2]
        limit = _bytes_per_code(decoder, 2 if prior.can_be_guided else 1) / bandwidth
        note = f"at {bandwidth / 1e9:.1f} GB/s"
        rows.append(Row(label, seconds * 1e3, "ms", limit * 1e3, "weights and KV cache read once", note))
    return rows


def _measure_peer(prior: Prior, precisions: Sequence[str], compile: bool, rounds: int) -> list[Row]:
    """Time per code beside a decoder of the `transformers` library with as many weights; in turn, at batch 1."""
    rows: list[Row] = []
    guided = prior.can_be_guided
    for precision in [p for p in precisions if p in DTYPES]:
        peer = PeerDecoder(prior.transformer.config, prior.codebook_size, prior.context_length, 1 + guided, precision)
        ours = _start_decoding(Decoder(prior, precision, compile=compile), prior)
        times = [[_step_time(way, "cpu", 8) for way in (ours, peer)] for _ in range(rounds)]
        fastest, theirs = (min(column) * 1e3 for column in zip(*times, strict=True))
        name = f"{'guided' if guided else 'unguided'} code, {precision}{', compiled' if compile else ''}"
        note = f"{theirs / fastest:.2f} times as fast; {peer.weights / 1e6:.0f} M weights"
        rows.append(Row(name, fastest, "ms", theirs, "transformers, MusicGen's decoder", note))
    return rows


def _measure_by_position(decoder: Decoder, prior: Prior, device: str, count: int = 100) -> Row:
    """Last codes of a window compared with the first, interleaved. The last start with an empty cache."""
    first, last = _start_decoding(decoder, prior), _start_decoding(decoder, prior)
    count = min(count, prior.context_length // 4)
    last.go_to(prior.context_length - count - 3)
    for drawing in (first, last) * 3:
        drawing.step()
    times = [[best_time(drawing.step, device, 1, 0) for drawing in (last, first)] for _ in range(count)]
    late, early = (median(column) * 1e3 for column in zip(*times, strict=True))
    name = f"last {count} codes of {prior.context_length}, {decoder.precision}{', compiled' if decoder.compile else ''}"
    return Row(name, late, "ms", early, "first codes", "medians")


def _measure_by_batch(decoder: Decoder, prior: Prior, batches: Sequence[int], device: str) -> list[Row]:
    """Codes per second at several batch sizes."""
    rows: list[Row] = []
    for batch in batches:
        drawing = _start_decoding(decoder, prior, batch)
        drawing.step()
        rate = batch / _step_time(drawing, device, 8 if batch < 32 else 4)
        limit = rows[0].value if rows else None
        rows.append(Row(f"batch {batch}, {decoder.precision}", rate, "codes/s", limit, "batch 1"))
        decoder.spare = None
    return rows


def _measure_windows(priors: Mapping[str, Prior], batches: Sequence[int], device: str) -> list[Row]:
    """Sample all levels of complete windows: seconds of audio generated per second."""
    decoders = {level: Decoder(prior, "auto") for level, prior in priors.items()}
    rows = []
    for batch in batches:
        drawings = [_start_decoding(decoder, priors[level], batch) for level, decoder in decoders.items()]
        for drawing in drawings:  # warm up: capture graphs, select kernels
            drawing.step()
        synchronise(device)
        start = time.perf_counter()
        for drawing in drawings:
            drawing.steps()
        synchronise(device)
        seconds, length = time.perf_counter() - start, priors["up"].context_length * 8 / 16000
        note = f"{seconds:.3g} s"
        rows.append(
            Row(f"{length:g} s of audio, batch {batch}", batch * length / seconds, "times", 1, "real time", note)
        )
    return rows


def _memory_held(name: str) -> int:
    """Current (`VmRSS`) or peak (`VmHWM`) resident memory of this process in bytes, unlike `ru_maxrss` not that of its
    parent. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _decode_first_code(path: str, precision: str, compile: bool) -> list[int]:
    """Load a prior and sample a code: peak memory in bytes, and bytes of one copy of weights and KV cache."""
    tiny = _random_prior("low", "cpu", {"width": 64, "depth": 3, "blocks": 8}, {"low": 64})
    _start_decoding(Decoder(tiny, precision), tiny).step()  # the first use of the libraries allocates memory
    net: Any = load_net(path, "low_prior")
    before = _memory_held("VmRSS")
    decoder = Decoder(net, precision, consume=True, compile=compile)
    state = _start_decoding(decoder, net)
    state.step()
    needed = sum(layer.nbytes for layer in decoder.layers) + sum(p.nbytes for p in net.parameters() if not p.is_meta)
    needed += sum(cache.buffer.nbytes for cache in state.caches) + state.condition.nbytes
    return [_memory_held("VmHWM") - before, needed]


def _measure_first_code(prior: Prior, precision: str, compile: bool) -> list[Row]:
    """Memory of the first code, and seconds from the start of Python, in a process of its own (this file)."""
    sizes = {"codebook_size": prior.codebook_size, "context_length": prior.context_length}
    config = {**sizes, "transformer": vars(prior.transformer.config), "conditioning": CONDITIONING["low"]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(save(Loaded(prior, "low_prior", config), Path(folder) / "low_prior.safetensors"))
        for way in ("", ", compiled")[: 1 + compile]:
            command = [sys.executable, "-m", __name__, path, precision, way]
            child = partial(subprocess.check_output, command, text=True)
            held, needed = json.loads(child())  # now the file is in the page cache, and kernels are on disk
            if not way:
                copy = "one copy of weights and cache"
                rows.append(Row(f"peak memory, {precision}", held / 2**20, "MiB", needed / 2**20, copy))
            seconds = best_time(child, repeats=1, warm_up=0)
            rows.append(Row(f"start to first code, {precision}{way}", seconds, "s"))
    return rows


def measure_decoding(
    device: str = "cpu",
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    compile: Sequence[bool] | bool = (False, True),
    levels: Sequence[str] = ("low", "up"),
    rounds: int = 12,
    batches: Sequence[int] = (1, 8),
    first_code: bool = True,
    whole: bool = False,
    peer: bool = False,
    transformer: Mapping[str, Any] | None = None,
    context: Mapping[str, int] | None = None,
) -> list[Row]:
    """Benchmark sampling of codes with random weights, by default at official size.

    Args:
        device: cpu, cuda or cuda:N.
        precisions: precisions to measure at batch 1.
        compile: whether to compile the steps; one or both.
        levels: low, up or both.
        rounds: number of rounds of a few codes per variant.
        batches: batch sizes for codes per second; the first is 1.
        first_code: also measure memory and the time to the first code in a new process; CPUs only.
        whole: also sample complete windows of both levels, which takes minutes on a CPU.
        peer: also measure a decoder of the `transformers` library with as many weights; CPUs only.
        transformer: options of the transformer; None: official.
        context: context length by level; None: official.
    """
    compile = [compile] if isinstance(compile, bool) else compile
    if device != "cpu":
        precisions = [p for p in precisions if p != "int8"]
    rows: list[Row] = []
    priors = {level: _random_prior(level, device, transformer or {}, context or CONTEXT) for level in levels}
    for level, prior in priors.items():
        rows += _measure_level(level, prior, precisions, compile, device, rounds)
        decoder = Decoder(prior, precisions[-1] if device == "cpu" else "auto", compile=any(compile))
        rows.append(_measure_by_position(decoder, prior, device))
        if peer and device == "cpu":
            rows += _measure_peer(prior, precisions, any(compile), rounds)
        if level == "low":
            rows += _measure_by_batch(Decoder(prior, "auto"), prior, batches, device)
            for p in precisions if first_code and device == "cpu" else ():
                rows += _measure_first_code(prior, p, any(compile))
    return [*rows, *(_measure_windows(priors, batches, device) if whole else [])]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_decode_first_code(sys.argv[1], sys.argv[2], bool(sys.argv[3]))))
