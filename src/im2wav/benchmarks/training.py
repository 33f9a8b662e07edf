"""Training steps at official size: MFU, fast compared with dense attention, and memory by batch size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from im2wav.benchmarks.row import Row
from im2wav.codec import AudioCodec
from im2wav.codec.losses import Bandwidth, CodecLoss
from im2wav.prior import Conditions, Prior, Timing, transformer
from im2wav.training.flops import forward_flops, prior_flops
from im2wav.training.memory import step_memory
from im2wav.training.timing import best_time, matmul_peak

MODELS = ("vqvae", "low_prior", "up_prior")
WINDOW, CLIP, FRAMES = 65536, 512, 123  # samples, width of CLIP ViT-B/32, frames of 4.096 s at 30 a second
CARDS = (8, 12, 24, 80)  # GB
LIGHTNING = {"fp32": "32-true", "bf16": "bf16-mixed"}


def official_net(model: str, **options: Any) -> nn.Module:
    """Build a network of official size with random weights; `options` are options of the transformer.

    Raises:
        ValueError: unknown model.
    """
    if model == "vqvae":
        return AudioCodec()
    if model == "low_prior":
        conditioning: dict[str, Any] = {"frames": True, "timing": True, "guidance": True}
        return Prior(2048, 2048, options, {"clip_dim": CLIP, **conditioning})
    if model == "up_prior":
        return Prior(2048, 8192, options, {"clip_dim": CLIP, "upsampler": {}})
    raise ValueError(f"measure.models: {model!r}: expected some of {MODELS}")


def loss_of(net: nn.Module, batch: int, device: str) -> Callable[[], Tensor]:
    """Return a function that computes the training loss of a random batch."""
    if isinstance(net, AudioCodec):
        wav, objective = torch.randn(batch, 1, WINDOW, device=device) * 0.1, CodecLoss()
        return lambda: objective(wav, net(wav), Bandwidth())[0]
    assert isinstance(net, Prior)
    length = net.context_length
    codes = torch.randint(0, 2048, (batch, length), device=device)
    timing = Timing(*(torch.full((batch,), value, device=device) for value in (160000.0, 0.0, float(WINDOW))))
    coarse = torch.randint(0, 2048, (batch, length // 4), device=device) if length == 8192 else None
    conditions = Conditions(torch.randn(batch, FRAMES, CLIP, device=device), timing, coarse)
    return lambda: net.bits(codes, conditions)


def autocast(device: str, precision: str) -> Any:
    """Autocast context for bf16, else a null context."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def dense_attention() -> Iterator[None]:
    """Replace the fast attention by dense masked attention."""
    fast, transformer.attend = transformer.attend, transformer.attend_dense
    try:
        yield
    finally:
        transformer.attend = fast


def step_flops(model: str, batch: int) -> int:
    """FLOPs of a training step, counted on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = official_net(model)
        forward = forward_flops(net, loss_of(net, batch, "cpu"))
        return 3 * (forward + (batch * prior_flops(net) if isinstance(net, Prior) else 0))


def measure_throughput(
    model: str, batch: int, device: str, precision: str, checkpointing: bool, repeats: int
) -> list[Row]:
    """FLOP/s of training steps relative to the matmul peak (MFU)."""
    net = official_net(model, **({} if model == "vqvae" else {"checkpointing": checkpointing})).to(device).train()
    loss = loss_of(net, batch, device)
    flops = step_flops(model, batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(device, precision):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = best_time(step, device, repeats, warm_up=0 if device == "cpu" and model != "vqvae" else 2)
    peak = matmul_peak(precision, device)
    again = ", checkpointing" if checkpointing and model != "vqvae" else ""
    name = f"{model}, batch {batch}, {precision}{again}"
    bar = 0.4 if device != "cpu" and model != "vqvae" and not checkpointing else None
    note = "limited by memory and kernel launches of small convolutions and spectrograms" if model == "vqvae" else ""
    rows = [Row(f"{name}: MFU", flops / seconds / 1e9, "GFLOP/s", peak / 1e9, "matmul", bar, note=note)]
    rows.append(Row(f"{name}: windows", batch / seconds, "1/s"))
    if device != "cpu":
        rows.append(Row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
    return rows


def compare_with_dense(device: str, precision: str, repeats: int) -> Row:
    """Forward and backward pass of the low prior with fast and with dense attention."""
    net = official_net("low_prior").to(device).train()
    loss = loss_of(net, 1, device)

    def work() -> None:
        with autocast(device, precision):
            value = loss()
        value.backward()
        net.zero_grad(set_to_none=True)

    fast = best_time(work, device, repeats, warm_up=1)
    with dense_attention():
        dense = best_time(work, device, repeats, warm_up=1)
    name = f"low_prior, forward and backward, {precision}"
    return Row(name, fast, "s", dense, "dense masked attention", bar=0.5, at_least=False)


def measure_memory(model: str, precision: str) -> list[Row]:
    """Memory of a training step: state, peak by batch size, and the largest batch on several GPUs."""
    rows: list[Row] = []
    for checkpointing in (False, True) if model != "vqvae" else (False,):
        options = {"checkpointing": True} if checkpointing else {}

        def build(batch: int, options: dict[str, Any] = options) -> tuple[nn.Module, Callable[[], Tensor]]:
            net = official_net(model, **options)
            return net, loss_of(net, batch, "cpu")

        found = step_memory(build, precision=LIGHTNING[precision])
        way = f"{model}, {LIGHTNING[precision]}{', checkpointing' if checkpointing else ''}"
        fits = ", ".join(f"{card} GB {found.largest_batch(card * 1e9) or 'none'}" for card in CARDS)
        if not checkpointing:
            rows.append(Row(f"{way}: weights, gradients, moments, average", found.state / 1e9, "GB"))
        rows.append(Row(f"{way}: peak, fixed part", found.fixed / 1e9, "GB"))
        rows.append(Row(f"{way}: peak, each window", found.per_window / 1e9, "GB", note=f"batch that fits: {fits}"))
    return rows


def measure_training(
    device: str = "cpu",
    models: Sequence[str] = MODELS,
    batch: int = 1,
    precision: str = "fp32",
    checkpointing: bool = False,
    repeats: int = 2,
    parts: Sequence[str] = ("throughput", "dense", "memory"),
) -> list[Row]:
    """Benchmark training steps, or some `parts`.

    Raises:
        ValueError: unknown model or part.
    """
    unknown = set(parts) - {"throughput", "dense", "memory"}
    if unknown:
        raise ValueError(f"measure.parts: unknown {sorted(unknown)}: expected some of throughput, dense, memory")
    rows: list[Row] = []
    if "memory" in parts:
        for model in models:
            rows += measure_memory(model, precision)
    if "dense" in parts:
        rows.append(compare_with_dense(device, precision, repeats))
    if "throughput" in parts:
        for model in models:
            rows += measure_throughput(model, batch, device, precision, checkpointing, repeats)
    return rows
