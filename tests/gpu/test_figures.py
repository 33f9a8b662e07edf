"""A real card against the CPU: the same numbers, and how fast they come."""

import pytest
import torch

from conftest import TINY_NET, TINY_ON_ANY_TRAINER, config, logged_values
from im2wav.benchmarks.decoding_speed import measure_decoding
from im2wav.benchmarks.training_speed import measure_training
from im2wav.decoding import Decoder, SamplingOptions
from im2wav.decoding.sampler import uniforms
from im2wav.prior import Conditions, Prior, Timing
from im2wav.train import train

pytestmark = pytest.mark.gpu

MODELS = ("vqvae", "low_prior", "up_prior")
CONDITIONING = {
    "low": {"frames": True, "timing": True, "guidance": True},
    "up": {"upsampler": {"width": 64, "depth": 4}},
}


def run(model: str, pairs, trained, out, *overrides: str) -> list[float]:
    """Losses of a tiny training by the real command."""
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    arguments = [f"model={model}", f"data.root={pairs}", codec, *TINY_ON_ANY_TRAINER, *TINY_NET[model], *overrides]
    train(config("train", *arguments, "callbacks.progress=null", "trainer.max_steps=6", output=out))
    return logged_values(out)


def small_prior(level: str) -> tuple[Prior, Conditions]:
    torch.manual_seed(0)
    length = 512 if level == "low" else 2048
    sizes = {"width": 256, "depth": 6, "blocks": 16}
    net = Prior(512, length, sizes, {"clip_dim": 64, **CONDITIONING[level]}).eval().requires_grad_(False)
    timing = Timing(*(torch.full((8,), v) for v in (160000.0, 0.0, 65536.0)))
    coarse = torch.randint(0, 512, (8, 512)) if level == "up" else None
    return net, Conditions(torch.randn(8, 3, 64), timing, coarse)


@pytest.mark.parametrize("model", MODELS)
def test_training_follows_the_cpu(model, pairs, trained, tmp_path, figure):
    """The shipped defaults, with the dashboard and with workers that pin memory while a CUDA graph is captured."""
    more = ["callbacks.dashboard.every_n_steps=3", "callbacks.dashboard.items=2", "data.num_workers=2"]
    mixed = run(model, pairs, trained, tmp_path / "gpu", "trainer=gpu", *more)
    exact = run(model, pairs, trained, tmp_path / "gpu32", "trainer=gpu", "trainer.precision=32-true")
    cpu = run(model, pairs, trained, tmp_path / "cpu", "trainer=cpu")
    apart = max(abs(a / b - 1) for a, b in zip(mixed, cpu, strict=True))
    figure(f"{model}: losses of 6 steps, mixed precision against CPU, largest relative difference", apart, "")
    torch.testing.assert_close(torch.tensor(exact), torch.tensor(cpu), rtol=1e-2, atol=0)
    assert apart < 0.1


@pytest.mark.parametrize("level", ["low", "up"])
def test_logits_equal_those_of_the_cpu(level):
    net, conditions = small_prior(level)
    codes = torch.randint(0, 512, (8, net.context_length))
    expected = net(codes, conditions)
    found = net.cuda()(codes.cuda(), conditions.to(torch.device("cuda"))).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("level", ["low", "up"])
def test_a_captured_step_generates_what_full_passes_say(level, compile, figure):
    """Greedy codes from the CUDA graph; the uncached network, given them, would choose them too."""
    net, conditions = small_prior(level)
    net, conditions = net.cuda(), conditions.to(torch.device("cuda"))
    decoding = Decoder(net, "fp32", compile=compile).start(
        conditions, uniforms(range(8), 256, "x", torch.device("cuda")), SamplingOptions(guidance_scale=1.0, top_k=1)
    )
    codes = decoding.steps().clone()
    agree = (net(codes, conditions).argmax(-1) == codes).float().mean().item()
    figure(f"{level}{', compiled' if compile else ''}: greedy codes as in full passes", agree, "of 1")
    assert agree > 0.99


def test_one_audio_file_alone_and_among_eight(figure):
    """Products on a GPU are not batch-invariant: how many codes differ is a figure, not a promise."""
    net, conditions = small_prior("low")
    decoder, device = Decoder(net.cuda(), "fp32"), torch.device("cuda")
    numbers, options = uniforms(range(8), 256, "x", device), SamplingOptions()
    together = decoder.start(conditions.to(device), numbers, options).steps().clone()
    alone = decoder.start(conditions.take(slice(0, 1)).to(device), numbers[:1], options).steps().clone()
    figure("guided low codes, batch 1 as in batch 8", (alone[0] == together[0]).float().mean().item(), "of 1")
    assert alone[0, 0] == together[0, 0]


def test_codes_per_second(figure):
    """Official size, random weights."""
    rows = measure_decoding(device="cuda", precisions=["bf16"], rounds=3, batches=[1, 8, 64], whole=True)
    for row in rows:
        figure(row.name, row.value, row.unit, f"{row.ratio:.3g} of {row.limit_name}" if row.ratio else "")
    assert all(row.value > 0 for row in rows)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_training_throughput_and_memory(model, checkpointing, figure):
    """Official size in bf16-mixed, two windows."""
    if model == "vqvae" and checkpointing:
        pytest.skip("the codec has no activation checkpointing")
    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    if model == "up_prior" and not checkpointing and total < 23:
        pytest.skip("needs 23 GB")
    for row in measure_training("cuda", [model], 2, "bf16", checkpointing, 3, ["throughput"]):
        figure(row.name, row.value, row.unit, f"{row.ratio:.3g} of {row.limit_name}" if row.ratio else "")
