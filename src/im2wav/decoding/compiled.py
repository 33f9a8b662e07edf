"""Steps on a CPU in which everything between two attentions is one compiled kernel.

For few rows torch's own products wait more than they read: oneDNN takes 12 microseconds before each, and norms, casts
and sums lie between them. Written as sums and compiled by TorchInductor, the four products of a layer, with all that
lies between them, are one call that reads the weights nearly as fast as memory gives them (docs/speed.md). A row's
result does not depend on the rows beside it. R rows of the net, W width, A width of attention.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.decoding.decoder_layer import DecoderLayer
from im2wav.decoding.kv_cache import LayerCache

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 4  # with 8 the loops over the weights take 2.5 times as long as with 4: worse than reading them twice

Function = Callable[..., tuple[Tensor, ...]]


def _product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A linear layer [R, in] -> [R, out], each row summed for itself: one loop over the weights when compiled."""
    weight = weight.float()
    # rows are taken by index: taken by `unbind`, the norm before would be computed anew for each output
    return torch.stack([(weight * x[i]).sum(1) for i in range(len(x))]) * scale.float() + bias.float()


def _before(eps: float, x: Tensor, norm: Tensor, norm_bias: Tensor, *qkv: Tensor) -> tuple[Tensor]:
    """From the residual stream to what attention takes."""
    return (_product(F.layer_norm(x, norm.shape, norm, norm_bias, eps), *qkv),)


def _after(eps: float, x: Tensor, attended: Tensor, *weights: Tensor) -> tuple[Tensor]:
    """From what attention gives to the end of the layer."""
    out, (norm, norm_bias), mlp_in, mlp_out = weights[:3], weights[3:5], weights[5:8], weights[8:]
    x = x + _product(attended, *out)
    inner = F.silu(_product(F.layer_norm(x, norm.shape, norm, norm_bias, eps), *mlp_in))
    return (x + _product(inner, *mlp_out),)


def _between(eps: float, x: Tensor, attended: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """From one attention to the next one."""
    (x,) = _after(eps, x, attended, *weights[:11])
    return x, *_before(eps, x, *weights[11:])


@cache
def _compile(function: Function, eps: float, threads: int, *arguments: tuple[Any, ...]) -> Function:
    """A kernel for arguments of these (shape, stride, dtype). Torch keeps it on disk for the next process.

    Args:
        function: what it computes.
        eps: of the layer norms.
        threads: those that torch uses now; their number is written into the kernel.
        arguments: what it will be called with.

    Raises:
        ValueError: nothing can be compiled here.
    """
    import torch._inductor  # where it is used: that takes some seconds
    from torch.fx.experimental.proxy_tensor import make_fx

    if function is _before:
        log.info("compiling for %d rows: some 20 s the first time on a machine, then some 5 s", arguments[0][0][0])
    with torch.inference_mode(False), torch.no_grad():
        examples: list[Any] = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in arguments]
        try:
            graph = make_fx(partial(function, eps))(*examples)
            return torch._inductor.compile(graph, examples, {"size_asserts": False})  # the arguments' sizes are the key
        except Exception as error:  # torch wraps what compilers, linkers and missing headers say in types of its own
            raise ValueError(
                f"compile=true: nothing can be compiled here ({_first_error(error)}); use compile=false. It needs a "
                "C++ compiler and the headers of Python (Debian, Ubuntu: g++ and python3-dev)"
            ) from error


def _first_error(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error:" in line.lower()), lines[0]).strip()[:200]


def compile_step(step: Callable[[Any], None], backend: str = "inductor") -> Callable[[Any], None]:
    """Compile a whole step of a `DecodeState`, for CUDA; the first call of each batch size compiles.

    Inductor's own CUDA graphs stay off: the compiled step is recorded in the CUDA graph of the `DecodeState`.

    Raises:
        ValueError: from the compiled step, if nothing can be compiled here.
    """
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    @wraps(step)
    def run(decoding: Any) -> None:
        # the compiled code is kept per function: two levels and many batch sizes share its limit, which is 8 by default
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024):
            try:
                compiled(decoding)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise ValueError(
                    f"compile=true: the step cannot be compiled here ({_first_error(error)}); use compile=false. It "
                    "needs Triton, a C compiler and a GPU of compute capability 7.0 or later"
                ) from error

    return run


class CompiledLayers:
    """All layers of a transformer, one position of every sequence at a time.

    Args:
        layers: of one size, whose linear layers show their weights (`PlainLinear`, `Int8Linear`).
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
        self.kernels: dict[tuple[Function, int, int], Function] = {}

    def step(self, x: Tensor, caches: Sequence[LayerCache], position: int) -> Tensor:
        """x [R, W] -> [R, W]. The first one compiles what this number of rows needs.

        Raises:
            ValueError: nothing can be compiled here.
        """
        rows = len(x)
        x = _paired(x)
        (qkv,) = self._run(_before, self.before[0], x)
        for layer, layer_cache, weights in zip(self.layers, caches, self.between, strict=False):
            x, qkv = self._run(_between, weights, x, _paired(layer.attend(qkv[:rows], layer_cache, position)))
        last = self.layers[-1].attend(qkv[:rows], caches[-1], position)
        return self._run(_after, self.after[-1], x, _paired(last))[0][:rows]

    def _run(self, function: Function, weights: tuple[Tensor, ...], *rows: Tensor) -> tuple[Tensor, ...]:
        """`function` of rows [R, .] and weights, a group of rows at a time."""
        count = len(rows[0])
        if count > ROWS_AT_ONCE:
            groups = zip(*(x.split(ROWS_AT_ONCE) for x in rows), strict=True)
            parts = [self._run(function, weights, *map(_paired, group)) for group in groups]
            return tuple(torch.cat(part)[:count] for part in zip(*parts, strict=True))
        key = (function, count, torch.get_num_threads())
        kernel = self.kernels.get(key)
        if kernel is None:
            given = ((tuple(x.shape), x.stride(), x.dtype) for x in (*rows, *weights))
            kernel = self.kernels[key] = _compile(function, self.eps, key[2], *given)
        return kernel(*rows, *weights)


def _paired(x: Tensor) -> Tensor:
    """A row alone goes through twice: loops written for one row are slower, and round otherwise."""
    return x.repeat(2, 1) if len(x) == 1 else x
