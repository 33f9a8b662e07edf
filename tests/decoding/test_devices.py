"""Devices and precisions of generation, as far as they can be tested without a GPU."""

import gc
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import config, needs_compiler
from helpers import CASES, conditions, low_prior, up_prior
from im2wav.codec import AudioCodec
from im2wav.decoding import Decoder, DecodeState, SamplingOptions, sample_codes
from im2wav.decoding import decoder as decode
from im2wav.decoding import linear as precision
from im2wav.decoding import sampler as sampling
from im2wav.decoding.compiled import compile_step
from im2wav.decoding.linear import check_compile, pick_device, resolve_precision
from im2wav.decoding.sampler import uniforms
from im2wav.prior import Prior, conditioning

CUDA, MPS, CPU = (torch.device(name) for name in ("cuda", "mps", "cpu"))
NO_KERNEL = {"view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "split"}
NO_KERNEL |= {"unsqueeze", "squeeze", "unbind", "alias", "detach", "empty"}
MOST_OPERATIONS = 700  # of one generated code with 48 layers: a GPU takes 2 to 3 us for each, whatever its size


class Decomposed(TorchDispatchMode):
    """Sees what composite operations are made of, also in inference mode, where they arrive whole."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return self.seen(func, args, kwargs or {})


class Operations(Decomposed):
    """Counts operations that are no views: on a GPU each is one kernel or more."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def seen(self, func, args, kwargs):
        name = func._schema.name.split("::")[1]
        if name not in NO_KERNEL:
            self.names.append(name)
        return func(*args, **kwargs)


def device_decoder(prior: Prior, monkeypatch, step=None) -> Decoder:
    """A decoder on the CPU whose steps run the operations of CUDA, without a graph."""
    monkeypatch.setattr(precision, "packs_weights", lambda dtype: False)
    decoder = Decoder(prior)
    decoder.on_device = True
    decoder.step_at_place = step or decoder.step_at_place
    return decoder


@pytest.mark.parametrize(("make", "given"), CASES)
def test_a_code_on_a_gpu_takes_few_operations(make, given, monkeypatch):
    """A CPU decomposes attention further than CUDA does, so that attention counts as one operation here."""
    monkeypatch.setattr("helpers.SIZES", {"width": 32, "depth": 48, "heads": 2, "blocks": 8})
    decoder = device_decoder(make(), monkeypatch)
    decoding = decoder.start(given, uniforms([1, 2, 3], 64, "any"), SamplingOptions())
    attention = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def counted(*args, **kwargs):
        with torch.utils._python_dispatch._disable_current_modes():
            calls.append(1)
            return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with Operations() as operations:
        decoding.step()
    assert len(calls) == 48
    casts = 2 * 48  # in bf16 the input of two products of each layer is cast
    assert 500 < len(operations.names) + len(calls) + casts <= MOST_OPERATIONS


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])])
def test_the_whole_step_compiles_to_one_graph_and_draws_the_same(backend, monkeypatch):
    """What compile=true records on CUDA, with the code generated for a CPU. Graph breaks raise an error."""
    from torch._dynamo.utils import counters

    prior, given, uniform = low_prior(), conditions(1), uniforms([1], 64, "low")
    expected = sample_codes(prior, given, uniform, SamplingOptions())
    torch._dynamo.reset()
    counters.clear()
    try:
        decoder = device_decoder(prior, monkeypatch, compile_step(DecodeState._step_at_place, backend))
        for _ in range(2):  # also in a DecodeState that is used again
            assert (sample_codes(decoder, given, uniform, SamplingOptions()) == expected).all()
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
    finally:
        torch._dynamo.reset()


def test_a_step_that_cannot_be_compiled_is_one_clear_error():
    def broken(decoding):
        torch._dynamo.graph_break()

    with pytest.raises(ValueError, match=r"compile=true: compilation of the step failed \(.*use compile=false"):
        compile_step(broken, "eager")(None)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("compile", "device", "message"),
    [
        ("triton", CPU, "compile=triton on cpu: needs device=cuda; use compile=true or compile=false"),
        ("triton", MPS, "compile=triton on mps: needs device=cuda"),
        ("triton", CUDA, "compile=triton: Triton is not installed; run pip install triton"),
        ("maybe", CPU, "compile=maybe: expected false, true or triton"),
    ],
)
def test_a_compile_option_that_is_not_available_is_rejected(compile, device, message, monkeypatch):
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        check_compile(compile, device)


def test_triton_kernels_reject_int8_and_a_cpu():
    with pytest.raises(ValueError, match="precision=int8 on cuda"):
        resolve_precision("int8", CUDA)  # the only device with Triton kernels
    with pytest.raises(ValueError, match="compile=triton on cpu: needs device=cuda"):
        Decoder(low_prior(), "int8", compile="triton")


def test_compile_triton_uses_the_fused_kernels_with_the_position_on_the_device(monkeypatch):
    """With a stand-in for the kernels, which need a GPU: `DecoderLayer.step` at the position of `place`."""
    calls = []

    class Layers:
        def __init__(self, layers):
            self.layers = layers

        def step(self, x, caches, position):
            calls.append(position)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer.step(x, cache, int(position))
            return x

    module = SimpleNamespace(TritonLayers=Layers)
    monkeypatch.setitem(sys.modules, "im2wav.decoding.triton_kernels", module)
    monkeypatch.setattr(decode, "check_compile", lambda *_: None)
    prior, given, uniform = low_prior(), conditions(), uniforms([1, 2, 3], 64, "low")
    expected = sample_codes(Decoder(prior), given, uniform, SamplingOptions())
    prefix = expected[:, :9]
    for on_device in (False, True):
        decoder = Decoder(prior, compile="triton")
        decoder.on_device = on_device
        assert (sample_codes(decoder, given, uniform, SamplingOptions(), prefix) == expected).all()
    assert len(calls) == 2 * (64 - 9)
    assert all(isinstance(position, torch.Tensor) for position in calls)


def test_compile_is_rejected_on_mps():
    for device in (CPU, CUDA):
        check_compile(True, device)
    with pytest.raises(ValueError, match=r"compile=true on mps: .* use compile=false"):
        check_compile(True, MPS)


@pytest.mark.parametrize("release", [False, True])
def test_weights_and_caches_are_freed_without_the_garbage_collector(release):
    prior, given, uniform = low_prior(), conditions(), uniforms([1, 2, 3], 64, "low")
    gc.collect()
    gc.disable()
    try:
        decoder = Decoder(prior)
        decoding = decoder.start(given, uniform, SamplingOptions())
        decoding.step()
        kept = [weakref.ref(x) for x in (decoding.caches[0].buffer, decoder.layers[0].qkv, decoding, decoder)]
        if release:
            decoding.release()
        del decoding, decoder
        assert [x() for x in kept] == [None] * 4
    finally:
        gc.enable()


def test_a_released_decoding_is_not_used_again():
    decoding = Decoder(low_prior()).start(conditions(), uniforms([1, 2, 3], 64, "low"), SamplingOptions())
    decoding.release()
    with pytest.raises(RuntimeError, match="was released"):
        decoding.step()


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device("auto") == expected
        assert pick_device("auto", mps=False) == ("cuda" if cuda else "cpu")
    with pytest.raises(ValueError, match="device=mps: torch sees no Apple GPU here"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == "mps"
    with pytest.raises(ValueError, match="device=mps: expected auto, cpu or cuda"):
        pick_device("mps", mps=False)


def test_auto_precision_fits_the_device(monkeypatch):
    asked = []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            asked.append(self.device)

        def __exit__(self, *_):
            asked.append(None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Current)
    for real, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, real=real: real)
        assert resolve_precision("auto", torch.device("cuda:1")) == expected
    assert asked == [torch.device("cuda:1"), None] * 2
    assert resolve_precision("auto", CPU) == resolve_precision("auto", MPS) == "fp32"


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fp16", CPU, r"precision=fp16 on cpu: .* fp32, bf16, int8 \(precision=fp16 needs device=cuda or device=mps\)"),
        ("int8", CUDA, r"precision=int8 on cuda: .* \(precision=int8 needs device=cpu\)"),
        ("bf16", MPS, "precision=bf16 on mps: expected auto or one of fp32, fp16"),
        ("fp8", CPU, "precision=fp8 on cpu: expected auto or one of fp32, bf16, int8$"),
    ],
)
def test_a_precision_that_the_device_cannot_do_is_rejected(name, device, message):
    with pytest.raises(ValueError, match=message):
        resolve_precision(name, device)


@pytest.mark.parametrize(("make", "given"), CASES)
def test_fp16_stays_close_with_the_residual_stream_in_fp32(make, given, monkeypatch):
    """Computed by a CPU, which users cannot choose as it is slow."""
    from helpers import forced_logits

    prior, codes = make(), torch.randint(16, (3, 64))
    exact = forced_logits(Decoder(prior), codes, given)
    monkeypatch.setattr(decode, "resolve_precision", lambda *_: "fp16")
    monkeypatch.setattr(decode, "cache_dtype", lambda *_: torch.float16)
    decoder = device_decoder(prior, monkeypatch)
    decoding = decoder.start(given, torch.zeros(3, 64, dtype=torch.float64), SamplingOptions(top_k=1))
    decoding.step()
    assert {cache.buffer.dtype for cache in decoding.caches} == {torch.float16}
    assert decoder.layers[0].qkv.weight.dtype == torch.float16
    assert decoding.input.dtype == torch.float32
    rounded = forced_logits(decoder, codes, given)
    assert 1e-6 < (rounded - exact).std() / exact.std() < 0.005


class AppleGPU(Decomposed):
    """The meta device as an Apple GPU: no float64 there, no mixed devices; copies to the CPU are random numbers."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def seen(self, func, args, kwargs):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if len({x.device.type for x in given if x.dim()}) > 1 and not copies:
            raise RuntimeError(f"{func}: tensors on the CPU and on the GPU")
        if copies and given[-1].is_meta and torch.device(kwargs.get("device", given[0].device)).type == "cpu":
            self.copies += 1
            return torch.rand(given[-1].shape).to(kwargs.get("dtype", given[-1].dtype))
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_meta and x.dtype == torch.float64:
                raise TypeError(f"{func}: float64 on MPS")
        return out


def test_the_simulated_apple_gpu_rejects_float64_and_mixed_devices():
    with AppleGPU():
        with pytest.raises(TypeError, match="float64 on MPS"):
            torch.zeros(2, dtype=torch.float64).to("meta")
        with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
            torch.zeros(2, device="meta") + torch.zeros(2)


@pytest.mark.parametrize(("make", "given"), CASES)
def test_on_mps_nothing_is_float64_and_codes_are_drawn_on_the_cpu(make, given, monkeypatch):
    monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", ("mps", "meta"))
    frames = conditioning.frame_of_position  # asks for the type of device mps
    monkeypatch.setattr(conditioning, "frame_of_position", lambda *sizes: frames(*sizes[:2]).to(sizes[2]))
    gpu, prior = torch.device("meta"), make().to("meta")
    with AppleGPU() as simulated:
        decoder = Decoder(prior, "fp16")
        decoding = decoder.start(given.to(gpu), uniforms([1, 2, 3], 64, "any", gpu), SamplingOptions(top_p=0.9))
        decoding.steps(10)
        prefix = torch.zeros(3, 9, dtype=torch.long, device=gpu)
        decoder.start(given.to(gpu), uniforms([1, 2, 3], 64, "any", gpu), SamplingOptions(), prefix).step()
        decoder.score(given.to(gpu), prefix)
    assert simulated.copies >= 11
    assert decoding.codes.device == gpu
    assert decoding.uniform.device == CPU


def test_the_codec_encodes_and_decodes_without_tf32(monkeypatch):
    codec, inside, seen = AudioCodec(width=8, depth=1, code_dim=8, codebook_size=16).eval(), [], []

    @contextmanager
    def exact_fp32(device):
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr("im2wav.codec.codec.exact_fp32", exact_fp32)
    for net in (*codec.encoders.values(), *codec.decoders.values()):
        net.register_forward_pre_hook(lambda *_: seen.append(list(inside)))
    with torch.no_grad():
        codec.decode(codec.encode(torch.zeros(1, 1, 1024)), "up")
    assert seen == [[CPU]] * 3


def test_the_reach_of_a_decoder_is_measured_on_the_cpu():
    codec = AudioCodec(width=8, depth=1, code_dim=8, codebook_size=16).eval()
    seen = []
    codec.decoders["up"].register_forward_pre_hook(lambda net, args: seen.append((net, args[0].device.type)))
    expected = codec.reach("up")
    assert {device for _, device in seen} == {"cpu"}
    assert all(net is not codec.decoders["up"] for net, _ in seen)
    assert min(expected) > 0


def test_processes_wait_for_the_slowest_as_long_as_it_takes():
    from im2wav.cli import instantiate
    from im2wav.distributed import LONGEST_WAIT, predict_trainer

    def strategy(*overrides):
        options = config("sample", "input=x", "trainer.accelerator=cpu", *overrides).trainer
        return predict_trainer(options, instantiate).strategy

    assert not hasattr(strategy(), "_timeout")
    gloo = "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, process_group_backend: gloo}"
    for several in (["trainer.num_nodes=2"], ["trainer.devices=2"], ["trainer.devices=2", gloo]):
        assert strategy(*several)._timeout == LONGEST_WAIT
    assert strategy("trainer.devices=2", gloo).process_group_backend == "gloo"


def test_each_device_sizes_its_batches_by_its_own_memory(monkeypatch):
    """With several devices the nets are on the CPU until the Trainer gives a process its device."""
    from im2wav.inference import api

    nets = SimpleNamespace(low=low_prior(), up=up_prior(), precision="fp32", compile=False, device=CPU)
    work = api.Runner(SimpleNamespace(networks=nets))
    asked = []
    monkeypatch.setattr(
        api, "batch_that_fits", lambda priors, *_: asked.append(priors[0].position_embedding.device) or 7
    )
    nets.low, nets.device = nets.low.to("meta"), torch.device("meta")
    assert work.fit_batch(has_negative=False) == 7
    assert work.fit_batch(has_negative=False) == 7
    assert asked == [torch.device("meta")]
