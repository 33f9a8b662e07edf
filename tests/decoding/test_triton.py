"""The fused decoding kernels against their specification, `DecoderLayer.step`.

Where there is a GPU they run on it, elsewhere in Triton's interpreter. Triton chooses between the two when it is
imported, so the tests call this file as a script:
`python tests/decoding/test_triton.py kernels` prints what they check.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from im2wav.decoding.decoder_layer import DecoderLayer, LayerCache
from im2wav.decoding.linear import PlainLinear
from im2wav.prior.transformer import KINDS, Layer, Transformer, TransformerConfig

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# no size is a power of two, so that every mask matters: 3 rows of 3 positions, 2 heads of width 6
CONFIG = TransformerConfig(width=24, heads=2, blocks=3, attention_ratio=0.5, mlp_ratio=20 / 24)
SEQUENCES, BLOCK, LENGTH, INNER, HIDDEN = 2, 3, 9, 12, 20
STEP_DTYPES = (("float32", "float32"), ("bfloat16", "bfloat16"))
POSITIONS = (0, 2, 3, 7)  # the first, the ends of a row, and one in the last row
# dtype of weights, dtype of the cache: largest difference, relative to the largest value. Into an fp32 cache the
# specification sums in fp32 as the kernels do; otherwise it rounds activations and attention, which they do not
TOLERANCES = {
    ("float32", "float32"): 1e-5,
    ("bfloat16", "float32"): 1e-5,
    ("float16", "float16"): 2e-3,
    ("bfloat16", "bfloat16"): 2e-2,
}
PARTS = ("qkv", "cache", "attention_out", "mlp_in", "mlp_out")


def make_layers(kind: str, weights: str, cache: str) -> tuple[DecoderLayer, DecoderLayer, torch.dtype]:
    """Make a layer for the kernels, its specification with the same rounded weights, and the dtype of its cache."""
    layer = Layer(CONFIG, kind, BLOCK)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    dtype, kept = getattr(torch, weights), getattr(torch, cache)

    def exact(weight: Tensor, bias: Tensor, silu: bool = False) -> PlainLinear:
        return PlainLinear(weight.to(dtype).float(), bias.to(dtype).float(), silu, kept)

    plain = DecoderLayer(layer.to(DEVICE), lambda weight, bias, silu=False: PlainLinear(weight, bias, silu, dtype))
    return plain, DecoderLayer(layer, exact), kept


def small_tiles(inputs: int) -> dict[str, int]:
    """Return a tiling that gives a tiny layer several programs too, the last of which is not full."""
    return {"columns": 1 << (inputs - 1).bit_length(), "tile": 16}


def random_cache(kind: str, dtype: torch.dtype) -> LayerCache:
    like = torch.empty(0, dtype=dtype, device=DEVICE)
    cache = LayerCache(kind, SEQUENCES, CONFIG.heads, LENGTH, INNER // CONFIG.heads, BLOCK, like=like)
    cache.buffer.normal_()
    return cache


def difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest value; inf where a result is not finite."""
    if not got.isfinite().all():
        return float("inf")
    return float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def compare_kernels(layer, spec: DecoderLayer, cache: LayerCache, position: int) -> dict[str, float]:
    """Give each kernel the inputs that the specification has there."""
    x = torch.randn(SEQUENCES, CONFIG.width, device=DEVICE)
    x[0] *= 0.003  # so faint that the epsilon of the layer norm matters
    query, hidden = x.new_full((SEQUENCES, INNER), torch.nan), x.new_full((SEQUENCES, HIDDEN), torch.nan)
    at, before = torch.tensor([position], device=DEVICE), cache.buffer.clone()
    layer.project(x, query, cache, at)
    written = cache.buffer.clone()
    cache.buffer.copy_(before)
    qkv = spec.qkv(spec.norm_attention(x))
    attended = spec.attention_out(spec.attend(qkv, cache, position))  # writes the cache
    inner = spec.mlp_in(spec.norm_mlp(x))
    result = {"qkv": difference(query, qkv[:, :INNER]), "cache": difference(written, cache.buffer)}
    y, z = x.clone(), x.clone()
    layer.attend(y, qkv[:, :INNER].float().contiguous(), cache, at)
    layer.enter_mlp(x, hidden)
    layer.leave_mlp(z, inner.float())
    return result | {
        "attention_out": difference(y, x + attended),
        "mlp_in": difference(hidden, inner),
        "mlp_out": difference(z, x + spec.mlp_out(inner)),
    }


def measure_kernels() -> dict[str, float]:
    """Compare each kernel for each dtype, kind of attention and one of POSITIONS: the largest differences."""
    from im2wav.decoding.triton_kernels import FusedLayer

    result: dict[str, float] = {}
    for dtypes in TOLERANCES:
        for kind in KINDS:
            layer, spec, kept = make_layers(kind, *dtypes)
            fused, cache = FusedLayer(layer), random_cache(kind, kept)
            for position in POSITIONS:
                for part, value in compare_kernels(fused, spec, cache, position).items():
                    name = f"{'/'.join(dtypes)} {kind} {part}"
                    result[name] = max(value, result.get(name, 0.0))
    return result


def measure_steps() -> dict[str, float]:
    """Compare all positions of three layers, one of each kind, with caches that begin empty.

    `alone` is the difference that the other sequences of the batch make to the first one.
    """
    from im2wav.decoding.triton_kernels import TritonLayers

    result: dict[str, float] = {}
    for dtypes in STEP_DTYPES:
        made = [make_layers(kind, *dtypes) for kind in KINDS]
        fused, spec = TritonLayers([layer for layer, _, _ in made]), [spec for _, spec, _ in made]
        caches, wanted_caches = ([random_cache(kind, made[0][2]) for kind in KINDS] for _ in range(2))
        for cache in caches + wanted_caches:
            cache.clear()
        single = [LayerCache(kind, 1, 2, LENGTH, INNER // 2, BLOCK, like=caches[0].buffer) for kind in KINDS]
        step, alone = 0.0, 0.0
        for position in range(LENGTH):
            x = torch.randn(SEQUENCES, CONFIG.width, device=DEVICE)
            first, wanted = x[:1].clone(), x.clone()
            for layer, cache in zip(spec, wanted_caches, strict=True):
                wanted = layer.step(wanted, cache, position)
            got = fused.step(x, caches, torch.tensor([position], device=DEVICE))
            step = max(step, difference(got, wanted))
            alone = max(alone, float((fused.step(first, single, position) - got[:1]).abs().max()))
        result |= {f"{'/'.join(dtypes)} step": step, f"{'/'.join(dtypes)} alone": alone}
    return result


def measure_logits() -> dict[str, float]:
    """Compare logits of a guided prior after a prefix, with the kernels as the decoder's layers, with its forward."""
    from helpers import conditions, forced_logits, low_prior
    from im2wav.decoding import Decoder
    from im2wav.decoding.triton_kernels import TritonLayers
    from im2wav.prior import Conditions

    prior, codes, given = low_prior(), torch.randint(16, (1, 64)), conditions().take(slice(1))
    decoder = Decoder(prior, compile=True)  # with weights that are not packed
    decoder.fused, decoder.compile = TritonLayers(decoder.layers), "triton"
    with torch.no_grad():
        whole = prior(codes.repeat(2, 1), Conditions.cat([given, given.null_like()]))[:, 61:]
    return {"logits": difference(forced_logits(decoder, codes, given, 61), whole)}


def measure_compiled() -> dict[str, float]:
    """Compile for Ampere and Hopper at official size, which takes no GPU: bytes of shared memory of each kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from im2wav.decoding import triton_kernels as kernels

    wide, narrow = kernels.tiling(1024), kernels.tiling(256)
    attention = {"width": 1024, "inner": 256, "head": 256, "kind": "column", "block": 32, "places": 2048}
    constants = {
        kernels.norm_qkv: attention | wide,
        kernels.attention_out: attention | narrow | {"visible": 64},
        kernels.norm_mlp_in: {"width": 1024, "outputs": 1024} | wide,
        kernels.mlp_out: {"width": 1024, "inputs": 1024} | wide,
    }
    types = dict.fromkeys(["weight", "bias", "cache"], "*bf16") | {"position": "*i64", "eps": "fp32"}
    result = {}
    for kernel, sizes in constants.items():
        signature = {name: "constexpr" if name in sizes else types.get(name, "*fp32") for name in kernel.arg_names}
        pointers = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
        aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}  # as all of torch's memory is
        for capability in (80, 90):
            source = ASTSource(kernel, signature, sizes, aligned)
            options = {"num_warps": 8 if kernel is kernels.attention_out else 4}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            result[f"{kernel.__name__} sm_{capability}"] = compiled.metadata.shared
            assert compiled.asm["cubin"]
    return result


MEASURES = {"kernels": measure_kernels, "steps": measure_steps, "logits": measure_logits, "compile": measure_compiled}


@pytest.fixture(scope="module")
def measure():
    """Call this file as a script: a measure's results by name."""

    def call(name: str) -> dict[str, float]:
        interpret = DEVICE == "cpu" and name != "compile"
        environment = os.environ | {"TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, name], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return call


def test_each_kernel_equals_its_part_of_the_specification(measure):
    results = measure("kernels")
    assert len(results) == len(TOLERANCES) * len(KINDS) * len(PARTS)
    for dtypes, tolerance in TOLERANCES.items():
        for kind in KINDS:
            for part in PARTS:
                assert results[f"{'/'.join(dtypes)} {kind} {part}"] < tolerance, (dtypes, kind, part)


def test_steps_equal_the_specification_and_are_batch_invariant(measure):
    results = measure("steps")
    for dtypes in STEP_DTYPES:
        assert results[f"{'/'.join(dtypes)} step"] < TOLERANCES[dtypes], dtypes
        assert results[f"{'/'.join(dtypes)} alone"] == 0.0, dtypes


@pytest.mark.skipif(DEVICE == "cuda", reason="compares on the CPU")
def test_a_decoder_with_the_kernels_has_the_logits_of_the_whole_forward_pass(measure):
    assert measure("logits")["logits"] < 1e-5


def test_kernels_compile_for_ampere_and_hopper_without_a_gpu(measure):
    results = measure("compile")
    assert len(results) == 8
    assert max(results.values()) <= 48 * 1024  # bytes of shared memory that every card has


def test_packed_weights_are_rejected():
    from im2wav.decoding.linear import PackedLinear
    from im2wav.decoding.triton_kernels import FusedLayer

    layer = DecoderLayer(Layer(CONFIG, "row", BLOCK), lambda w, b, silu=False: PackedLinear(w, b, silu, torch.float32))
    with pytest.raises(ValueError, match="PackedLinear: weights must be plain; use precision=bf16 or fp32 on CUDA"):
        FusedLayer(layer)


def capture_step(config: TransformerConfig, context: int, sequences: int):
    """Record a step of random layers in bf16: the graph, bytes of the weights, and what it reads."""
    from im2wav.decoding.triton_kernels import TritonLayers

    def linear(weight: Tensor, bias: Tensor, silu: bool = False) -> PlainLinear:
        return PlainLinear(weight, bias, silu, torch.bfloat16)

    layers = [DecoderLayer(layer, linear) for layer in Transformer(config, context).to(DEVICE).layers]
    like = torch.empty(0, dtype=torch.bfloat16, device=DEVICE)
    sizes = (sequences, config.heads, context, config.attention_width // config.heads, context // config.blocks)
    caches = [LayerCache(layer.kind, *sizes, like=like) for layer in layers]
    fused, x = TritonLayers(layers), torch.randn(sequences, config.width, device=DEVICE)
    position, graph = torch.tensor([context // 2], device=DEVICE), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        fused.step(x, caches, position)  # compiles
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            fused.step(x, caches, position)
    # with all that the graph reads, so that it stays allocated
    return graph, sum(layer.nbytes for layer in layers), (x, position, caches, fused)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA card")
@pytest.mark.parametrize("sequences", [1, 2, 4, 8])
def test_time_of_a_step_at_official_size(sequences, figure):
    """A CUDA graph of 48 layers in bf16, at a position in the middle of the context."""
    graph, nbytes, _memory = capture_step(TransformerConfig(), context=2048, sequences=sequences)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(100):
        graph.replay()
    end.record()
    end.synchronize()
    ms = start.elapsed_time(end) / 100
    figure(f"48 fused layers, {sequences} sequences", ms, "ms", f"weights at {nbytes / ms / 1e6:.0f} GB/s")


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] != "compile":
        from im2wav.decoding import triton_kernels

        triton_kernels.tiling = small_tiles
    with torch.inference_mode():
        sys.stdout.write(json.dumps(MEASURES[sys.argv[1]](), indent=1))
