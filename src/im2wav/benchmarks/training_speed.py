"""Training steps at official size: MFU, and memory by batch size."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from im2wav.adapter import insert_adapter
from im2wav.benchmarks.machine import Row
from im2wav.codec import AudioCodec
from im2wav.codec.losses import Bandwidth, CodecLoss
from im2wav.prior import Conditions, Prior, Timing
from im2wav.training.hardware import step_memory
from im2wav.training.monitor import best_time, matmul_peak

MODELS = ("vqvae", "low_prior", "up_prior")
PARTS = ("throughput", "memory")
WINDOW, CLIP, FRAMES = 65536, 512, 123  # samples, width of CLIP ViT-B/32, frames of 4.096 s at 30 a second
CARDS = (8, 12, 24, 80)  # GB
LIGHTNING = {"fp32": "32-true", "bf16": "bf16-mixed"}
ADAPTED = ("qkv", "attention_out", "mlp_in", "mlp_out")  # the linear layers of conf/adapter/lora.yaml


def official_net(model: str, adapter_rank: int = 0, **options: Any) -> nn.Module:
    """Build a network of official size with random weights.

    Args:
        model: vqvae, low_prior or up_prior.
        adapter_rank: rank of an adapter (LoRA) of a prior, whose own weights are then frozen; 0: no adapter.
        options: of the transformer.

    Raises:
        ValueError: unknown model, or peft is not installed.
    """
    net = AudioCodec() if model == "vqvae" else _official_prior(model, options)
    if adapter_rank and model != "vqvae":
        insert_adapter(net, adapter_rank, alpha=2 * adapter_rank, dropout=0.0, targets=ADAPTED)
    return net


def _official_prior(model: str, options: dict[str, Any]) -> Prior:
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


def step_flops(model: str, batch: int) -> int:
    """FLOPs of forward and backward pass, counted on fake tensors; attention, about 1 %, is not counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        net = official_net(model).train()
        loss_of(net, batch, "cpu")().backward()
    return counter.get_total_flops()


def _measure_throughput(
    model: str, batch: int, device: str, precision: str, checkpointing: bool, repeats: int
) -> list[Row]:
    """FLOP/s of training steps relative to the matmul peak (MFU)."""
    net = official_net(model, **({} if model == "vqvae" else {"checkpointing": checkpointing})).to(device).train()
    loss = loss_of(net, batch, device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = best_time(step, device, repeats, warm_up=0 if device == "cpu" and model != "vqvae" else 2)
    peak = matmul_peak(precision, device)
    name = f"{model}, batch {batch}, {precision}{', checkpointing' if checkpointing and model != 'vqvae' else ''}"
    rows = [Row(f"{name}: MFU", step_flops(model, batch) / seconds / 1e9, "GFLOP/s", peak / 1e9, "matmul")]
    rows.append(Row(f"{name}: windows", batch / seconds, "1/s"))
    if device != "cpu":
        rows.append(Row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
    return rows


def _measure_memory(model: str, precision: str, adapter_rank: int) -> list[Row]:
    """Memory of a training step: state, peak by batch size, and the largest batch on several GPUs."""
    trained = f", LoRA of rank {adapter_rank}" if adapter_rank and model != "vqvae" else ""
    rows: list[Row] = []
    for checkpointing in (False, True) if model != "vqvae" else (False,):

        def build(batch: int, checkpointing: bool = checkpointing) -> tuple[nn.Module, Callable[[], Tensor]]:
            net = official_net(model, adapter_rank, checkpointing=checkpointing)
            return net, loss_of(net, batch, "cpu")

        found = step_memory(build, precision=LIGHTNING[precision])
        name = f"{model}{trained}, {LIGHTNING[precision]}{', checkpointing' if checkpointing else ''}"
        fits = ", ".join(f"{card} GB {found.largest_batch(card * 1e9) or 'none'}" for card in CARDS)
        if not checkpointing:
            rows.append(Row(f"{name}: weights, gradients, moments, average", found.state / 1e9, "GB"))
        rows.append(Row(f"{name}: peak, fixed part", found.fixed / 1e9, "GB"))
        rows.append(Row(f"{name}: peak, each window", found.per_window / 1e9, "GB", note=f"batch that fits: {fits}"))
    return rows


def measure_training(
    device: str = "cpu",
    models: Sequence[str] = MODELS,
    batch: int = 1,
    precision: str = "fp32",
    checkpointing: bool = False,
    repeats: int = 2,
    parts: Sequence[str] = PARTS,
    adapter_rank: int = 0,
) -> list[Row]:
    """Benchmark training steps, or some `parts`; memory with an adapter of `adapter_rank`, unless it is 0.

    Raises:
        ValueError: unknown model or part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"measure.parts: unknown {sorted(unknown)}: expected some of {', '.join(PARTS)}")
    rows: list[Row] = []
    for model in models if "memory" in parts else ():
        rows += _measure_memory(model, precision, adapter_rank)
    for model in models if "throughput" in parts else ():
        rows += _measure_throughput(model, batch, device, precision, checkpointing, repeats)
    return rows
