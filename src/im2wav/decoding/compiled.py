"""Compiled decoding steps: on a CPU, everything from one attention to the next is one kernel.

With few rows, overhead takes longer than reading the weights: oneDNN needs 12 microseconds before each product, and
norms, casts and sums come in between. Written as sums and compiled by TorchInductor, the four products of a layer and
everything between them are one call that reads the weights at nearly the memory bandwidth (docs/speed.md). The kernels
are batch-invariant. R rows of the network, W width, A width of attention.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.decoding.decoder_layer import DecoderLayer, LayerCache

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 4  # with 8 the loops over the weights take 2.5 times as long as with 4: worse than reading them twice

Function = Callable[..., tuple[Tensor, ...]]


class FusedLayers(Protocol):
    """All layers of a transformer as fused kernels: `CompiledLayers` or `TritonLayers`."""

    def step(self, x: Tensor, caches: Sequence[LayerCache], position: Any) -> Tensor:
        """x [R, W] -> [R, W] at a position, a number or a tensor [1] on the device."""


def _product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A linear layer [R, in] -> [R, out] with a separate sum for each row: compiled to one loop over the weights."""
    weight = weight.float()
    # rows by index: with `unbind`, the norm before would be computed again for each output
    return torch.stack([(weight * x[i]).sum(1) for i in range(len(x))]) * scale.float() + bias.float()


def _before(eps: float, x: Tensor, norm: Tensor, norm_bias: Tensor, *qkv: Tensor) -> tuple[Tensor]:
    """From the residual stream to the input of attention."""
    return (_product(F.layer_norm(x, norm.shape, norm, norm_bias, eps), *qkv),)


def _attend(qkv: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Queries of qkv [R, 3 A] attend to keys and values [R, H, n, D], with a mask [n] added to the scores: [R, A]."""
    q = qkv.chunk(3, 1)[0].unflatten(1, (keys.shape[1], -1))
    scores = (q[:, :, None] * keys).sum(-1) * q.shape[-1] ** -0.5 + mask
    return (scores.softmax(-1)[..., None] * values).sum(2).flatten(1)


def _after(
    eps: float, x: Tensor, qkv: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *weights: Tensor
) -> tuple[Tensor]:
    """From attention to the end of the layer."""
    attended = _attend(qkv, keys, values, mask)
    out, (norm, norm_bias), mlp_in, mlp_out = weights[:3], weights[3:5], weights[5:8], weights[8:]
    x = x + _product(attended, *out)
    inner = F.silu(_product(F.layer_norm(x, norm.shape, norm, norm_bias, eps), *mlp_in))
    return (x + _product(inner, *mlp_out),)


def _between(
    eps: float, x: Tensor, qkv: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """From one attention to the next one."""
    (x,) = _after(eps, x, qkv, keys, values, mask, *weights[:11])
    return x, *_before(eps, x, *weights[11:])


@cache
def _compile(function: Function, eps: float, threads: int, *arguments: tuple[Any, ...]) -> Function:
    """A kernel of `function` for arguments of these (shape, stride, dtype). Torch caches it on disk.

    The number of threads is compiled into the kernel.
    """
    import torch._inductor  # here, because it takes some seconds
    from torch.fx.experimental.proxy_tensor import make_fx

    if function is _before:
        log.info("compiling for %d rows: about 20 s the first time on a machine, then about 5 s", arguments[0][0][0])
    # products of int8 weights take more time to compute than to read: fused multiply-adds save a tenth of it. With bf16
    # they would cost 5 %.
    has_int8 = any(dtype == torch.int8 for _, _, dtype in arguments)
    contract = {"cpp.enable_floating_point_contract_flag": "fast" if has_int8 else "off"}
    with torch.inference_mode(False), torch.no_grad(), torch._inductor.config.patch(contract):
        examples: list[Any] = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in arguments]
        try:
            graph = make_fx(partial(function, eps))(*examples)
            return torch._inductor.compile(graph, examples, {"size_asserts": False})  # the cache key contains the sizes
        except Exception as error:  # torch has many types for errors of compilers and linkers
            raise ValueError(
                f"compile=true: compilation failed ({_first_error(error)}); use compile=false. It needs a "
                "C++ compiler and the headers of Python (Debian, Ubuntu: g++ and python3-dev)"
            ) from error


def _first_error(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error:" in line.lower()), lines[0]).strip()[:200]


def compile_step(step: Callable[[Any], None], backend: str = "inductor") -> Callable[[Any], None]:
    """Compile a whole step of a `DecodeState`, for CUDA; the first call of each batch size compiles.

    Inductor's own CUDA graphs stay off: the compiled step is recorded in the CUDA graph of the `DecodeState`.

    Raises:
        ValueError: from the compiled step, if compilation fails.
    """
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    @wraps(step)
    def run(decoding: Any) -> None:
        # compiled code is cached per function: levels and batch sizes share its limit, which is 8 by default
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024):
            try:
                compiled(decoding)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise ValueError(
                    f"compile=true: compilation of the step failed ({_first_error(error)}); use compile=false. It "
                    "needs Triton, a C compiler and a GPU of compute capability 7.0 or later"
                ) from error

    return run


class CompiledLayers:
    """All layers of a transformer, one position of every sequence at a time.

    Args:
        layers: of one size, with linear layers that are not packed (`PlainLinear`, `Int8Linear`).
    """

    def __init__(self, layers: Sequence[DecoderLayer]):
        self.layers = layers
        self.eps = layers[0].norm_mlp.eps
        self.before = [(*layer.norm_attention.plain(), *layer.qkv.plain()) for layer in layers]
        self.after = [
            (*layer.attention_out.plain(), *layer.norm_mlp.plain(), *layer.mlp_in.plain(), *layer.mlp_out.plain())
            for layer in layers
        ]
        self.between = [here + there for here, there in zip(self.after, self.before[1:], strict=False)]
        self.kernels: dict[tuple[Any, ...], Function] = {}
        self.masks: dict[int, Tensor] = {}  # [n, n] by n: row i shows the first i + 1 of n places

    def step(self, x: Tensor, caches: Sequence[LayerCache], position: int) -> Tensor:
        """x [R, W] -> [R, W]. The first call with a number of rows compiles its kernels.

        Raises:
            ValueError: compilation failed.
        """
        (qkv,) = self._run(_before, self.before[0], x)
        for layer, layer_cache, weights in zip(self.layers, caches, self.between, strict=False):
            x, qkv = self._run_attention(_between, weights, x, qkv, layer, layer_cache, position)
        return self._run_attention(_after, self.after[-1], x, qkv, self.layers[-1], caches[-1], position)[0]

    def _run_attention(
        self,
        function: Function,
        weights: tuple[Tensor, ...],
        x: Tensor,
        qkv: Tensor,
        layer: DecoderLayer,
        layer_cache: LayerCache,
        position: int,
    ) -> tuple[Tensor, ...]:
        """Store keys and values of qkv [R, 3 A], and apply a `function` that begins with attention."""
        kv = qkv.view(len(qkv), 3, layer.heads, 1, -1)[:, 1:].transpose(0, 1)
        keys, values, count = layer_cache.store(kv, position)
        size = keys.shape[2]
        if size not in self.masks:
            self.masks[size] = torch.full((size, size), -torch.inf).triu(1)
        return self._run(function, (self.masks[size][count - 1], *weights), x, qkv, keys, values)

    def _run(self, function: Function, weights: tuple[Tensor, ...], *rows: Tensor) -> tuple[Tensor, ...]:
        """Apply `function` to rows [R, ...] and weights, a group of rows at a time."""
        count = len(rows[0])
        if count > ROWS_AT_ONCE:
            groups = zip(*(x.split(ROWS_AT_ONCE) for x in rows), strict=True)
            parts = [self._run(function, weights, *group) for group in groups]
            return tuple(map(torch.cat, zip(*parts, strict=True)))
        if count == 1:  # loops for one row are slower, and round differently
            found = self._run(function, weights, *(x.expand(2, *x.shape[1:]) for x in rows))
            return tuple(x[:1] for x in found)
        key = (function, rows[0].stride(), rows[-1].shape, rows[-1].stride(), torch.get_num_threads())
        kernel = self.kernels.get(key)
        if kernel is None:
            given = ((tuple(x.shape), x.stride(), x.dtype) for x in (*rows, *weights))
            kernel = self.kernels[key] = _compile(function, self.eps, torch.get_num_threads(), *given)
        return kernel(*rows, *weights)
