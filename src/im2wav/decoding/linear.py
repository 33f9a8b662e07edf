"""Linear layers for decoding, where few rows at a time make reading the weights nearly all of the work.

On a CPU, speed differs a lot between the kernels of torch and between CPUs (docs/speed.md), so the kernel of each shape
is chosen by a measurement. Only batch-invariant kernels are allowed: each row of a result is the same to the last bit
for every batch, so that an item's codes do not depend on its batch.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.files import cache_folder

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Compile = bool | str  # False, True or "triton"
# by device type; the first one is the default of `auto` (on CUDA see `resolve_precision`)
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16", "int8"),
    "cuda": ("bf16", "fp16", "fp32"),
    "mps": ("fp32", "fp16"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# number of rows that oneDNN chooses its layout of the weights for; a layout for one row is not batch-invariant
PACKED_FOR_ROWS = 32
# A measurement of kernels takes more weights than the cache of a CPU holds, and ignores differences that may be noise.
# Layers with fewer weights than MEASURED_FROM are not measured: their time is that of the call.
MEASURED_FROM, MEASURED_BYTES, MEASURED_ROUNDS, CLEARLY_FASTER = 1 << 16, 64 << 20, 5, 1.1

PlainWeights = tuple[Tensor, Tensor, Tensor]  # weight [out, in], its scale [out], bias [out]


class Linear(Protocol):
    """x [N, in] of any floating dtype -> [N, out] in the dtype of the precision; `nbytes` counts the weights."""

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""

    def plain(self) -> PlainWeights:
        """Weight, scale and bias, unless they are packed."""


class PlainLinear:
    """`F.linear`, optionally followed by SiLU: for CUDA, and for CPUs without oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor, silu: bool, dtype: torch.dtype):
        self.weight, self.bias, self.silu = weight.to(dtype), bias.to(dtype, copy=True), silu
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return F.silu(y, inplace=True) if self.silu else y

    def plain(self) -> PlainWeights:
        """Weight, scale and bias."""
        return self.weight, torch.ones_like(self.bias), self.bias


class PackedLinear:
    """Weights in the fastest layout of oneDNN on this CPU; bias and SiLU are fused into the product."""

    def __init__(self, weight: Tensor, bias: Tensor, silu: bool, dtype: torch.dtype):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), PACKED_FOR_ROWS)
        self.bias, self.dtype, self.after = bias.to(dtype, copy=True), dtype, "swish" if silu else "none"
        self.nbytes = weight.numel() * dtype.itemsize
        self.apply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.apply(x.to(self.dtype), self.weight, self.bias, self.after, [], "")

    def plain(self) -> PlainWeights:
        """Not available for weights in a oneDNN layout."""
        raise NotImplementedError


class Int8Linear:
    """Weights in int8 with one scale for each output; activations in bf16.

    Kernels with int8 activations share one scale among all rows, so they are not batch-invariant, and less exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor, silu: bool = False):
        scale = weight.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        scale = scale.bfloat16()  # the kernel multiplies with a bf16 scale
        self.padding = -weight.shape[1] % 16  # the kernel divides by zero unless inputs are a multiple of 16
        rounded = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.weight = F.pad(rounded, (0, self.padding)) if self.padding else rounded
        self.scale, self.bias, self.silu = scale, bias.to(torch.float32, copy=True), silu
        self.nbytes = self.weight.nbytes
        self.apply = torch.ops.aten._weight_int8pack_mm.default

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer; the result is fp32."""
        x = x.to(torch.bfloat16)
        x = F.pad(x, (0, self.padding)) if self.padding else x
        y = self.apply(x, self.weight, self.scale) + self.bias
        return F.silu(y, inplace=True) if self.silu else y

    def plain(self) -> PlainWeights:
        """Weight, scale and bias."""
        return self.weight[:, : self.weight.shape[1] - self.padding], self.scale, self.bias


def give_back_freed_memory() -> None:
    """Return freed memory to the operating system; glibc would keep it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def pick_device(name: str | int | torch.device, mps: bool = True) -> str:
    """Resolve a device name: `auto` is cuda if available, else mps (Apple silicon), else cpu.

    Args:
        name: auto, cpu, cuda, cuda:N, mps, or the number N of a CUDA device.
        mps: whether MPS is allowed. Work that needs float64 on the device cannot run there.

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        apple = mps and torch.backends.mps.is_available()
        return "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    is_number = str(name).isdecimal()  # a structured config makes device=0 the text "0"
    try:
        device = torch.device("cuda", int(str(name))) if is_number else torch.device(str(name))
    except (RuntimeError, ValueError):
        device = torch.device("meta")
    if device.type not in PRECISIONS or (device.type == "mps" and not mps):
        raise ValueError(f"device={name}: expected auto, cpu{', cuda or mps' if mps else ' or cuda'}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={name}: torch sees no Apple GPU here; use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name}: torch sees {torch.cuda.device_count()} CUDA devices here; use device=cpu or device=auto"
        )
    return str(device)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Resolve a precision: `auto` is bf16 on CUDA, or fp16 on GPUs that only emulate bf16; fp32 on a CPU and on MPS.

    Raises:
        ValueError: no such precision, or the device does not support it.
    """
    allowed = PRECISIONS.get(device.type, PRECISIONS["cuda"])
    if name == "auto":
        return "fp16" if device.type == "cuda" and not has_bf16(device) else allowed[0]
    for precision in allowed:
        if name == precision:
            return precision
    places = [kind for kind, precisions in PRECISIONS.items() if name in precisions]
    hint = f" (precision={name} needs device={' or device='.join(places)})" if places else ""
    raise ValueError(f"precision={name} on {device.type}: expected auto or one of {', '.join(allowed)}{hint}")


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device supports bf16 natively; devices before Ampere emulate it slowly."""
    if not torch.cuda.is_available():
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def check_compile(compile: Compile, device: torch.device) -> None:
    """Check the option `compile` for a device.

    Raises:
        ValueError: none of false, true and triton; the device does not support it; or Triton is not installed.
    """
    if compile not in (False, True, "triton"):
        raise ValueError(f"compile={compile}: expected false, true or triton")
    if compile == "triton":
        if device.type != "cuda":
            raise ValueError(f"compile=triton on {device}: needs device=cuda; use compile=true or compile=false")
        if importlib.util.find_spec("triton") is None:
            raise ValueError("compile=triton: Triton is not installed; run pip install triton, or use compile=true")
    if compile and device.type not in ("cpu", "cuda"):
        raise ValueError(f"compile=true on {device}: expected device=cpu or device=cuda; use compile=false")


def cache_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Dtype of keys and values: fp32 on a CPU, where attention of one query takes up to 8 times longer in bf16."""
    return torch.float32 if device.type == "cpu" else DTYPES[precision]


def packs_weights(dtype: torch.dtype) -> bool:
    """Whether this CPU and build of torch support oneDNN's packed linear layers for a dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        tiny = PackedLinear(torch.eye(16), torch.zeros(16), False, dtype)
        return bool(torch.isfinite(tiny(torch.ones(2, 16))).all())
    except (RuntimeError, AttributeError):  # older CPUs have no bf16; a build without the operators
        return False


def _is_batch_invariant(linear: Linear, x: Tensor) -> bool:
    """Whether rows of x [N, in] give the same bits alone and in batches."""
    whole = linear(x)
    return all(
        torch.equal(linear(x[first : first + n].contiguous()), whole[first : first + n])
        for n in (1, 2, 3, 4, 8, 16)
        for first in range(0, len(x), n)
    )


def _measured_kernel(shape: tuple[int, int], dtype: torch.dtype) -> type[PackedLinear] | type[PlainLinear]:
    """The faster kernel for two rows, one item with guidance: `PackedLinear` unless the other is clearly faster."""
    size = shape[0] * shape[1] * dtype.itemsize
    generator = torch.Generator().manual_seed(0)  # not the global one: it belongs to the program
    count = max(2, min(16, MEASURED_BYTES // size))
    weights = torch.randn(count, *shape, generator=generator).unbind(0)
    x, bias = torch.randn(PACKED_FOR_ROWS, shape[1], generator=generator), torch.zeros(shape[0])
    seconds = {}
    for kind in (PackedLinear, PlainLinear):
        linears = [kind(weight, bias, False, dtype) for weight in weights]
        if kind is PlainLinear and not _is_batch_invariant(linears[0], x):
            continue
        rounds = []
        for _ in range(MEASURED_ROUNDS):
            start = time.perf_counter()
            for linear in linears:
                linear(x[:2])
            rounds.append(time.perf_counter() - start)
        seconds[kind] = min(rounds)
    if PlainLinear in seconds and CLEARLY_FASTER * seconds[PlainLinear] < seconds[PackedLinear]:
        return PlainLinear
    return PackedLinear


def _machine_name() -> str:
    """CPU, its instructions and the version of torch: what the rounding and the speed of kernels depend on."""
    with contextlib.suppress(OSError, AttributeError):
        match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return f"{match[1]} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"  # type: ignore[index]
    return f"{platform.processor() or platform.machine()} torch {torch.__version__}"


@cache
def fastest_kernel(shape: tuple[int, int], dtype: torch.dtype) -> type[PackedLinear] | type[PlainLinear]:
    """The kernel for weights of a shape [out, in] on this CPU, measured once on a machine.

    Kernels round differently, so the choice is remembered in a file: the same seed gives the same codes in every run,
    and processes that start together agree. `PackedLinear`, which needs `packs_weights`, without a folder to write to.
    """
    if shape[0] * shape[1] < MEASURED_FROM:
        return PackedLinear
    kinds = {kind.__name__: kind for kind in (PackedLinear, PlainLinear)}
    folder = cache_folder() / "kernels"
    name = re.sub(r"[^\w.-]+", "_", f"{_machine_name()} {dtype} {shape[0]}x{shape[1]}")
    path = folder / name
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".writing-") as file:
                file.write(_measured_kernel(shape, dtype).__name__)
                file.flush()
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.link(file.name, path)
        return kinds.get(path.read_text(), PackedLinear)
    except OSError:
        return PackedLinear


def linear_maker(precision: Precision, device: torch.device, packed: bool = True) -> Callable[..., Linear]:
    """A function (weight [out, in], bias [out], silu) -> Linear.

    Args:
        precision: of the weights.
        device: of the weights.
        packed: allow oneDNN layouts. Otherwise fp32 weights may be the given tensors, not copies.
    """
    if precision == "int8":
        return Int8Linear
    dtype = DTYPES[precision]
    packed = packed and device.type == "cpu" and packs_weights(dtype)

    def make(weight: Tensor, bias: Tensor, silu: bool = False) -> Linear:
        kind = fastest_kernel((weight.shape[0], weight.shape[1]), dtype) if packed else PlainLinear
        return kind(weight, bias, silu, dtype)

    return make
