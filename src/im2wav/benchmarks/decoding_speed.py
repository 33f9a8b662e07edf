"""Time per code, compared with the official implementation and with one read of the weights."""

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from im2wav.benchmarks.footprint import measure_footprint
from im2wav.benchmarks.machine import read_bandwidth
from im2wav.benchmarks.official_decoder import OfficialDecoder
from im2wav.benchmarks.row import Row
from im2wav.decoding import Decoder, DecodeState, SamplingOptions
from im2wav.prior import Conditions, Prior, Timing
from im2wav.training.timing import synchronise

CONDITIONING: dict[str, dict[str, Any]] = {
    "low": {"frames": True, "timing": True, "guidance": True},
    "up": {"upsampler": {}},
}
CONTEXT = {"low": 2048, "up": 8192}
# targets relative to the official implementation, for a guided low code on a CPU
BARS = {"fp32": 0.5, "bf16": 0.28, "int8": 0.2}
OFFICIAL_MS = {"low": 116.0, "up": 54.0}  # measured with the official code, early in a window, on 2 cores
LIMIT_RATIOS = {"fp32": 2.0, "bf16": 2.0}


def random_prior(level: str, device: str, transformer: Mapping[str, Any], context: Mapping[str, int]) -> Prior:
    """Build a prior with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return Prior(2048, context[level], transformer, CONDITIONING[level]).eval().requires_grad_(False)


def conditions_for(prior: Prior, batch: int) -> Conditions:
    """Random conditions of `batch` sequences for a prior."""
    device, upsampler = prior.position_embedding.device, prior.conditioner.upsampler
    timing = Timing(*(torch.full((batch,), seconds * 16000.0, device=device) for seconds in (10.0, 0.0, 4.096)))
    coarse = None if upsampler is None else torch.zeros(batch, prior.context_length // upsampler.ratio).long()
    clip = torch.randn(batch, 1, prior.conditioner.config.clip_dim, device=device)
    return Conditions(clip, timing, None if coarse is None else coarse.to(device))


def start_decoding(decoder: Decoder, prior: Prior, batch: int = 1) -> DecodeState:
    """Start decoding a window."""
    uniform = torch.rand(batch, prior.context_length, dtype=torch.float64, device=decoder.device)
    return decoder.start(conditions_for(prior, batch), uniform, SamplingOptions())


def bytes_per_code(decoder: Decoder, rows: int) -> float:
    """Bytes read per code: all weights of the layers and the output once, and the KV cache."""
    sizes, block = decoder.sizes, decoder.block
    width, inner, hidden = sizes.width, sizes.attention_width, int(sizes.mlp_ratio * sizes.width)
    weights = sizes.depth * (4 * inner * width + 2 * width * hidden)
    keys = {"row": block / 2, "previous_row": block, "column": sizes.blocks / 2}
    cached = sum(keys[layer.kind] for layer in decoder.layers) * 2 * inner * rows
    per_weight = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[decoder.precision]
    return weights * per_weight + decoder.codebook_size * width * 4 + cached * decoder.cache_dtype.itemsize


def step_time(drawing: DecodeState | OfficialDecoder, device: str, count: int = 3) -> float:
    """Seconds per code. On a CPU the fastest of `count`; on a GPU, which runs asynchronously, the mean of 32 * `count`.

    A state near its end restarts: the content of the KV cache does not affect the time.
    """
    if isinstance(drawing, DecodeState) and drawing.position + 32 * count > drawing.codes.shape[1]:
        drawing.go_to(0)
    times = []
    for _ in range(count if device == "cpu" else 1):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(1 if device == "cpu" else 32 * count):
            drawing.step()
        synchronise(device)
        times.append((time.perf_counter() - start) / (1 if device == "cpu" else 32 * count))
    return min(times)


def time_interleaved(
    ways: Mapping[Any, DecodeState | OfficialDecoder], device: str, rounds: int
) -> tuple[dict, list[float]]:
    """Seconds per code of each variant, and memory bandwidth, by round. Variants are interleaved."""
    times: dict[Any, list[float]] = {name: [] for name in ways}
    bandwidths: list[float] = []
    for drawing in ways.values():
        drawing.step()
    for _ in range(rounds):
        before = read_bandwidth(device, repeats=2)
        for name, drawing in ways.items():
            times[name].append(step_time(drawing, device, 8))
        bandwidths.append(max(before, read_bandwidth(device, repeats=2)))
    return times, bandwidths


def measure_level(
    level: str, prior: Prior, precisions: Sequence[str], compile: Sequence[bool], device: str, rounds: int
) -> list[Row]:
    """Time per code of one level at batch 1 in each precision, guided if the prior supports it.

    The ratio to the official implementation compares the fastest codes of both. The ratio to one read of the weights
    uses the median round, because the bandwidth may vary between rounds.
    """
    guided = prior.can_be_guided
    decoders = {(p, c): Decoder(prior, p, compile=c) for c in compile for p in precisions}
    ways: dict[Any, DecodeState | OfficialDecoder] = {way: start_decoding(d, prior) for way, d in decoders.items()}
    times, bandwidths = time_interleaved({"official": OfficialDecoder(prior, guided), **ways}, device, rounds)
    cpu, official = device == "cpu", min(times["official"]) * 1e3
    name = f"{'guided' if guided else 'unguided'} {level} code"
    rows = [
        Row("memory read", median(bandwidths) / 1e9, "GB/s"),
        Row(
            f"{name}, official implementation, fp32",
            official,
            "ms",
            note=f"{OFFICIAL_MS[level]:g} ms with the official code",
        ),
    ]
    for (p, c), decoder in decoders.items():
        label, value = f"{name}, {p}{', compiled' if c else ''}", min(times[p, c]) * 1e3
        bar = BARS.get(p) if cpu and guided else None
        note = f"{value / OFFICIAL_MS[level]:.2f} of {OFFICIAL_MS[level]:g} ms" if cpu else ""
        rows.append(Row(label, value, "ms", official, "official implementation", bar, False, note))
        seconds, bandwidth = sorted(zip(times[p, c], bandwidths, strict=True), key=math.prod)[rounds // 2]
        limit = bytes_per_code(decoder, 2 if guided else 1) / bandwidth
        near = LIMIT_RATIOS.get(p) if c == any(compile) else None  # the target is for the fastest variant
        note = f"at {bandwidth / 1e9:.1f} GB/s"
        rows.append(Row(label, seconds * 1e3, "ms", limit * 1e3, "weights and KV cache read once", near, False, note))
    return rows


def measure_by_position(decoder: Decoder, prior: Prior, device: str, count: int = 100) -> Row:
    """Last codes of a window compared with the first, interleaved. The last start with an empty cache."""
    first, last = start_decoding(decoder, prior), start_decoding(decoder, prior)
    count = min(count, prior.context_length // 4)
    for drawing, position in ((first, 0), (last, prior.context_length - count - 3)):
        drawing.go_to(position)
        for _ in range(3):
            drawing.step()
    times: dict[DecodeState, list[float]] = {first: [], last: []}
    for _ in range(count):
        for drawing, spent in times.items():
            synchronise(device)
            start = time.perf_counter()
            drawing.step()
            synchronise(device)
            spent.append(time.perf_counter() - start)
    early, late = (median(spent) * 1e3 for spent in times.values())
    way = ", compiled" if decoder.compile else ""
    name = f"last {count} codes of {prior.context_length}, {decoder.precision}{way}"
    return Row(name, late, "ms", early, "first codes", 1.25, False, "medians")


def measure_by_batch(decoder: Decoder, prior: Prior, batches: Sequence[int], device: str) -> list[Row]:
    """Codes per second at several batch sizes."""
    rows: list[Row] = []
    for batch in batches:
        drawing = start_decoding(decoder, prior, batch)
        drawing.step()
        rate = batch / step_time(drawing, device, 8 if batch < 32 else 4)
        bar = 20.0 if device != "cpu" and batch == 64 else None
        limit = rows[0].value if rows else None
        rows.append(Row(f"batch {batch}, {decoder.precision}", rate, "codes/s", limit, "batch 1", bar))
        del drawing
        decoder.spare = None
    return rows


def measure_windows(priors: Mapping[str, Prior], batches: Sequence[int], device: str) -> list[Row]:
    """Sample both levels of complete windows: seconds at batch 1, and real-time factor at each batch size."""
    decoders = {level: Decoder(prior, "auto") for level, prior in priors.items()}
    length, rows = priors["up"].context_length * 8 / 16000, []
    for batch in batches:
        drawings: list[DecodeState] = []
        for level, decoder in decoders.items():  # warm up: capture graphs, select kernels
            drawings.append(start_decoding(decoder, priors[level], batch))
            drawings[-1].step()
        synchronise(device)
        start = time.perf_counter()
        codes: list[Tensor] = [drawing.steps() for drawing in drawings]
        synchronise(device)
        seconds = time.perf_counter() - start
        assert all(torch.isfinite(c).all() for c in codes)
        if batch == 1:
            rows.append(Row(f"{length:g} s of audio, batch 1", seconds, "s", 6.0, "target", 1.0, False))
        rate = batch * length / seconds
        rows.append(Row(f"batch {batch}: faster than real time", rate, "times", 1.0, "real time"))
    best = max((row for row in rows if row.unit == "times"), key=lambda row: row.value)
    return [*rows, Row("at the best batch", best.value, "times", 1.0, "real time", 10.0)]


def measure_decoding(
    device: str = "cpu",
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    compile: Sequence[bool] | bool = (False, True),
    levels: Sequence[str] = ("low", "up"),
    rounds: int = 12,
    batches: Sequence[int] = (1, 8),
    first_code: bool = True,
    whole: bool = False,
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
        first_code: also measure memory and the time to the first code in a new process.
        whole: also sample complete windows of both levels, which takes minutes on a CPU.
        transformer: options of the transformer; None: official.
        context: context length by level; None: official.
    """
    compile = [compile] if isinstance(compile, bool) else compile
    if device != "cpu":
        precisions = [p for p in precisions if p != "int8"]
    rows: list[Row] = []
    priors: dict[str, Prior] = {}
    for level in levels:
        prior = random_prior(level, device, transformer or {}, context or CONTEXT)
        rows += measure_level(level, prior, precisions, compile, device, rounds)
        decoder = Decoder(prior, precisions[-1] if device == "cpu" else "auto", compile=any(compile))
        rows.append(measure_by_position(decoder, prior, device))
        rows += measure_by_batch(Decoder(prior, "auto"), prior, batches, device) if level == "low" else []
        if first_code and device == "cpu" and level == "low":
            rows += [row for p in precisions for row in measure_footprint(prior, p, any(compile))]
        if whole:
            priors[level] = prior
    return [*rows, *(measure_windows(priors, batches, device) if whole else [])]
