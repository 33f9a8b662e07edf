"""Fused Triton kernels for one decoding step of the transformer on CUDA: four launches per layer.

For a few sequences, a step mainly reads every weight once, so kernel launches take most of its time. These kernels need
four launches per layer: layer norm + QKV + cache write; attention + output projection + residual add; layer norm +
first MLP product + SiLU; second MLP product + residual add. A layer norm is recomputed by every program that needs it,
because a row of the residual stream is a few kB. `DecoderLayer.step` is the specification.

Weights and KV cache are fp32, bf16 or fp16; sums, activations and the residual stream are fp32. A program computes some
outputs of one sequence, so the outputs do not depend on the rest of the batch. Programs of other sequences that need
the same weights run at the same time and find them in the L2 cache. `experiments/decode_kernels.md` has the design and
the tests. Not measured on a GPU.

Shapes: N sequences (with guidance both halves of the batch), W width of the residual stream, A width of attention,
H hidden width of the MLP.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from im2wav.decoding.decoder_layer import DecoderLayer, LayerCache
from im2wav.decoding.linear import PlainLinear

TILE = 8192  # weights per program: 16 kB in bf16; the official sizes then give 32 to 128 programs per sequence


@triton.jit
def _weights(weight, output, column, outputs: tl.constexpr, inputs: tl.constexpr, first, width: tl.constexpr):
    """Load weight[output, first + column], 0 beyond `outputs` and beyond `width` columns."""
    inside = (output < outputs)[:, None] & (column < width)[None, :]
    return tl.load(weight + output[:, None] * inputs + first + column[None, :], mask=inside, other=0.0)


@triton.jit
def _product(weights, x):
    """weights [outputs, inputs] times x [inputs], summed in fp32; tensor cores gain nothing for one sequence."""
    return tl.sum(weights.to(tl.float32) * x[None, :], axis=1)


@triton.jit
def _layer_norm(x, scale, bias, column, eps, width: tl.constexpr):
    """Layer norm in fp32 of the row that begins at x, 0 beyond `width` columns."""
    inside = column < width
    values = tl.load(x + column, mask=inside, other=0.0)
    scale = tl.load(scale + column, mask=inside, other=0.0)
    bias = tl.load(bias + column, mask=inside, other=0.0)
    centred = tl.where(inside, values - tl.sum(values) / width, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred) / width + eps) * scale + bias


@triton.jit
def _places(position, kind: tl.constexpr, block: tl.constexpr, places: tl.constexpr):
    """Like `LayerCache.places`: place of the position, first place that it attends to, and number of these places."""
    p = tl.load(position).to(tl.int32)
    row, column, kept = p // block, p % block, places // block
    if kind == "column":
        place, first, count = column * kept + row, column * kept, row + 1
    else:
        start = row % kept * block
        if kind == "row":
            place, first, count = start + column, start, column + 1
        else:
            place, first, count = start + column, block - start, column * 0 + block
    return place, first, count


@triton.jit
def norm_qkv(
    x, scale, shift, weight, bias, query, cache, position, eps,
    width: tl.constexpr, inner: tl.constexpr, head: tl.constexpr, columns: tl.constexpr, tile: tl.constexpr,
    kind: tl.constexpr, block: tl.constexpr, places: tl.constexpr,
):  # fmt: skip
    """Layer norm of x [N, W] and QKV product; queries go to query [N, A], keys and values to their cache place."""
    sequence, sequences = tl.program_id(0), tl.num_programs(0)
    output, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, columns)
    inside = output < 3 * inner
    weights = _weights(weight, output, column, 3 * inner, width, 0, width)
    tl.debug_barrier()  # without it ptxas requests the weights only after the row of x has arrived
    result = tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    result += _product(weights, _layer_norm(x + sequence * width, scale, shift, column, eps, width))
    place, _, _ = _places(position, kind, block, places)
    part, at = output // inner, output % inner  # part 0: queries, 1: keys, 2: values
    at = ((part - 1) * sequences + sequence) * (inner * places) + (at // head * places + place) * head + at % head
    tl.store(query + sequence * inner + output, result, mask=part == 0)
    tl.store(cache + at, result, mask=inside & (part > 0))


@triton.jit
def attention_out(
    x, query, cache, weight, bias, position,
    width: tl.constexpr, inner: tl.constexpr, head: tl.constexpr, columns: tl.constexpr, tile: tl.constexpr,
    kind: tl.constexpr, block: tl.constexpr, places: tl.constexpr, visible: tl.constexpr,
):  # fmt: skip
    """Attention of query [N, A] over the cache, output projection, added to x [N, W]."""
    sequence, sequences = tl.program_id(0), tl.num_programs(0)
    output, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, columns)
    _, first, count = _places(position, kind, block, places)
    place = tl.arange(0, visible)
    inside = (place < count)[:, None] & (column < head)[None, :]
    result = tl.load(bias + output, mask=output < width, other=0.0).to(tl.float32)
    for h in tl.static_range(inner // head):  # every program recomputes attention, which is faster than a fifth launch
        weights = _weights(weight, output, column, width, inner, h * head, head)
        at = (sequence * inner + h * head) * places + (first + place)[:, None] * head + column[None, :]
        k = tl.load(cache + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(cache + sequences * inner * places + at, mask=inside, other=0.0).to(tl.float32)
        q = tl.load(query + sequence * inner + h * head + column, mask=column < head, other=0.0)
        scores = tl.where(place < count, tl.sum(k * q[None, :], axis=1) * (head**-0.5), float("-inf"))
        exps = tl.exp(scores - tl.max(scores))  # softmax without its denominator
        result += _product(weights, tl.sum(v * exps[:, None], axis=0) / tl.sum(exps))
    target = x + sequence * width + output
    tl.store(target, tl.load(target, mask=output < width) + result, mask=output < width)


@triton.jit
def norm_mlp_in(
    x, scale, shift, weight, bias, hidden, eps,
    width: tl.constexpr, outputs: tl.constexpr, columns: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Layer norm of x [N, W], first product of the MLP and SiLU, to hidden [N, H]."""
    sequence = tl.program_id(0)
    output, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, columns)
    weights = _weights(weight, output, column, outputs, width, 0, width)
    tl.debug_barrier()  # see norm_qkv
    result = tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)
    result += _product(weights, _layer_norm(x + sequence * width, scale, shift, column, eps, width))
    tl.store(hidden + sequence * outputs + output, result * tl.sigmoid(result), mask=output < outputs)


@triton.jit
def mlp_out(
    x, weight, bias, hidden,
    width: tl.constexpr, inputs: tl.constexpr, columns: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Second product of the MLP from hidden [N, H], added to x [N, W]."""
    sequence = tl.program_id(0)
    output, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, columns)
    weights = _weights(weight, output, column, width, inputs, 0, inputs)
    result = tl.load(bias + output, mask=output < width, other=0.0).to(tl.float32)
    result += _product(weights, tl.load(hidden + sequence * inputs + column, mask=column < inputs, other=0.0))
    target = x + sequence * width + output
    tl.store(target, tl.load(target, mask=output < width) + result, mask=output < width)


def tiling(inputs: int) -> dict[str, int]:
    """Return the columns of a program (a power of two >= inputs), and its tile: rows of the weights, one per output."""
    columns = triton.next_power_of_2(inputs)
    return {"columns": columns, "tile": max(1, TILE // columns)}


class FusedLayer:
    """One layer: its weights, the sizes that its kernels are compiled for, and the four launches.

    Args:
        layer: a layer whose weights are neither packed nor quantised.

    Raises:
        ValueError: packed or quantised weights.
    """

    def __init__(self, layer: DecoderLayer):
        linears = (layer.qkv, layer.attention_out, layer.mlp_in, layer.mlp_out)
        if not all(isinstance(linear, PlainLinear) for linear in linears):
            names = ", ".join(sorted({type(linear).__name__ for linear in linears}))
            raise ValueError(f"Triton kernels with {names}: weights must be plain; use precision=bf16 or fp32 on CUDA")
        self.qkv, self.out, self.mlp_in, self.mlp_out = (
            (linear.plain()[0].contiguous(), linear.plain()[2]) for linear in linears
        )
        self.norm_attention, self.norm_mlp, self.eps = layer.norm_attention, layer.norm_mlp, layer.norm_mlp.eps
        self.width, self.inner = self.out[0].shape
        self.hidden, self.head = len(self.mlp_in[0]), self.inner // layer.heads
        self.sizes = {"width": self.width, "inner": self.inner, "head": self.head}

    def project(self, x: Tensor, query: Tensor, cache: LayerCache, position: Tensor) -> None:
        """Write queries of x [N, W] to query [N, A], keys and values to the cache at position [1]."""
        options = {**self.sizes, **_geometry(cache), **tiling(self.width)}
        grid = (len(x), triton.cdiv(3 * self.inner, options["tile"]))
        norm = self.norm_attention.plain()
        norm_qkv[grid](x, *norm, *self.qkv, query, cache.buffer, position, self.eps, **options)

    def attend(self, x: Tensor, query: Tensor, cache: LayerCache, position: Tensor) -> None:
        """Add to x [N, W] the projected attention of query [N, A] at position [1]."""
        options = {**self.sizes, **_geometry(cache), **tiling(self.head)}
        visible = triton.next_power_of_2(cache.rows if cache.kind == "column" else cache.block)
        warps = 8 if visible * options["columns"] <= 64 * 256 else 16  # keys and values stay in registers
        grid = (len(x), triton.cdiv(self.width, options["tile"]))
        attention_out[grid](x, query, cache.buffer, *self.out, position, visible=visible, num_warps=warps, **options)

    def enter_mlp(self, x: Tensor, hidden: Tensor) -> None:
        """Compute the first half of the MLP: x [N, W] to hidden [N, H]."""
        options = {"width": self.width, "outputs": self.hidden, **tiling(self.width)}
        grid = (len(x), triton.cdiv(self.hidden, options["tile"]))
        norm_mlp_in[grid](x, *self.norm_mlp.plain(), *self.mlp_in, hidden, self.eps, **options)

    def leave_mlp(self, x: Tensor, hidden: Tensor) -> None:
        """Compute the second half of the MLP: add its output for hidden [N, H] to x [N, W]."""
        options = {"width": self.width, "inputs": self.hidden, **tiling(self.hidden)}
        grid = (len(x), triton.cdiv(self.width, options["tile"]))
        mlp_out[grid](x, *self.mlp_out, hidden, **options)


def _geometry(cache: LayerCache) -> dict[str, Any]:
    return {"kind": cache.kind, "block": cache.block, "places": cache.buffer.shape[3]}


class TritonLayers:
    """All layers of a transformer for one position of every sequence, with four kernels per layer.

    Launches go to the current CUDA device. A CUDA graph can capture them after a first step has compiled the kernels.

    Args:
        layers: layers of equal size, whose weights are neither packed nor quantised.

    Raises:
        ValueError: packed or quantised weights.
    """

    def __init__(self, layers: Sequence[DecoderLayer]):
        self.layers = [FusedLayer(layer) for layer in layers]

    def step(self, x: Tensor, caches: Sequence[LayerCache], position: int | Tensor) -> Tensor:
        """Add all layers to x [N, W] (fp32, contiguous) in place, and return it.

        Args:
            x: residual stream.
            caches: one for each layer; keys and values of the position are written.
            position: an int, or a tensor [1] of int64 that is read on the device, as a CUDA graph requires.
        """
        if isinstance(position, int):
            position = torch.full((1,), position, dtype=torch.long, device=x.device)
        query, hidden = (x.new_empty(len(x), size) for size in (self.layers[0].inner, self.layers[0].hidden))
        for layer, cache in zip(self.layers, caches, strict=True):
            layer.project(x, query, cache, position)
            layer.attend(x, query, cache, position)
            layer.enter_mlp(x, hidden)
            layer.leave_mlp(x, hidden)
        return x
