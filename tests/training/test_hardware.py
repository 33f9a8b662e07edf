"""Defaults that depend on the machine, and the memory of a training step that they rest on."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import command, config, tiny_config
from im2wav.benchmarks.training_speed import loss_of, official_net
from im2wav.codec import AudioCodec
from im2wav.codec.codec import exact_fp32
from im2wav.data.datamodule import PairsDataModule
from im2wav.training import hardware
from im2wav.training.hardware import RESERVE, StepMemory, fewest_passes, step_memory, step_peak

CODEC = {"width": 8, "depth": 2, "code_dim": 8, "codebook_size": 32}

# docs/training.md, docs/finetuning.md: GB in bf16-mixed, fixed part and each window, by checkpointing and rank of LoRA
OFFICIAL = {
    ("low_prior", False, 0): (2.83, 2.12),
    ("low_prior", True, 0): (2.55, 0.47),
    ("low_prior", True, 8): (1.31, 0.49),
    ("up_prior", False, 0): (3.63, 8.73),
    ("up_prior", True, 0): (3.34, 2.12),
    ("up_prior", True, 8): (1.67, 1.94),
}


def device(monkeypatch, cuda=False, mps=False, bf16=True):
    monkeypatch.setattr(hardware.CUDAAccelerator, "is_available", staticmethod(lambda: cuda))
    monkeypatch.setattr(hardware.MPSAccelerator, "is_available", staticmethod(lambda: mps))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def linear(batch: int):
    net = nn.Linear(1000, 1000, bias=False)
    x = torch.zeros(batch, 1000)
    return net, lambda: net(x).sum()


def test_the_bytes_of_a_step_are_those_of_its_tensors():
    weights, state_copies = 4 * 1000 * 1000, 5  # weights, gradients, two moments, the average
    rounded = -(-weights // 512) * 512
    state, peak = step_peak(linear, 64)
    scalars = 3 * 512  # a step counter, and room for scalars
    assert state_copies * rounded <= state - 64 * 4000 <= state_copies * rounded + scalars
    # the input is there before; the output, its gradient, and the gradient of the weights come during the step
    assert 0 <= peak - (state - rounded) - rounded < 3 * 64 * 4096
    assert step_peak(linear, 64, averaged=False)[0] == state - rounded
    _, held = step_peak(linear, 64, accumulates=True)
    assert peak < held <= peak + 2 * rounded


def test_half_weights_take_half():
    whole, half = (step_peak(linear, 1, precision)[0] for precision in ("32-true", "bf16-true"))
    assert 0.49 < half / whole < 0.52


def test_counting_memory_changes_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    step_peak(linear, 4)
    assert torch.equal(torch.get_rng_state(), before)


def small(batch: int):
    from im2wav.prior import Conditions, Prior

    net = Prior(64, 256, {"width": 64, "depth": 6, "blocks": 8}, {"clip_dim": 16, "map_width": 16})
    codes = torch.zeros(batch, 256, dtype=torch.int64)
    conditions = Conditions(torch.zeros(batch, 3, 16))
    return net, lambda: net.bits(codes, conditions)


def test_memory_is_a_straight_line_in_the_batch():
    memory = step_memory(small, precision="bf16-mixed")
    for batch in (2, 16, 64):
        assert memory.peak(batch) == pytest.approx(max(step_peak(small, batch, "bf16-mixed")), rel=0.03)


@pytest.mark.parametrize(("model", "checkpointing", "rank"), OFFICIAL)
def test_memory_at_official_size_is_as_documented(model, checkpointing, rank):
    def build(batch):
        net = official_net(model, rank, checkpointing=checkpointing)
        return net, loss_of(net, batch, "cpu")

    fixed, each = OFFICIAL[model, checkpointing, rank]
    _, peak = step_peak(build, 4, "bf16-mixed")
    assert peak / 1e9 == pytest.approx(fixed + 4 * each, rel=0.03)


def test_the_largest_batch_is_a_power_of_two_that_fits():
    memory = StepMemory(state=3e9, fixed=2e9, per_window=1e9)
    assert [memory.largest_batch(total) for total in (3.9e9, 4e9, 7e9, 10.9e9, 11e9)] == [0, 1, 4, 4, 8]
    assert memory.sharded(2) == StepMemory(1.5e9, 0.5e9, 1e9)


def test_a_global_batch_takes_as_few_passes_as_fit():
    assert fewest_passes(8, devices=1, passes=1, most=8) == 1
    assert fewest_passes(8, devices=1, passes=1, most=2) == 4
    assert fewest_passes(24, devices=2, passes=1, most=8) == 2
    assert fewest_passes(24, devices=1, passes=2, most=8) == 4
    assert fewest_passes(8, devices=1, passes=1, most=0) == 8  # one window at a time, whatever fits
    with pytest.raises(ValueError, match=r"global_batch_size=8 is not divisible by 3 device.*multiple of 3"):
        fewest_passes(8, devices=3, passes=1, most=8)


def test_precision_follows_the_device(monkeypatch):
    assert (
        hardware.resolve_training_precision("auto", "cpu")
        == hardware.resolve_training_precision("auto", "mps")
        == "32-true"
    )
    device(monkeypatch, cuda=True)
    assert hardware.resolve_training_precision("auto", hardware.resolve_accelerator("auto")) == "bf16-mixed"
    assert hardware.resolve_training_precision("32-true", "cuda") == "32-true"
    device(monkeypatch, cuda=True, bf16=False)
    assert hardware.resolve_training_precision("auto", hardware.resolve_accelerator("gpu")) == "16-mixed"


@pytest.mark.parametrize("trainer", ["default", "gpu", "ddp", "fsdp"])
def test_training_on_cuda_is_in_bf16_with_tf32(monkeypatch, trainer):
    device(monkeypatch, cuda=True)
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    cfg = config("train", "model=low_prior", f"trainer={trainer}", "paths.output=x")
    hardware.configure_precision(cfg)
    assert (cfg.trainer.precision, asked) == ("bf16-mixed", ["high"])
    given = config("train", "model=low_prior", f"trainer={trainer}", "trainer.precision=16-mixed", "paths.output=x")
    hardware.configure_precision(given)
    assert given.trainer.precision == "16-mixed"


def test_training_on_an_apple_gpu_is_in_fp32(monkeypatch):
    device(monkeypatch, mps=True)
    cfg = config("train", "model=low_prior", "trainer=mps", "paths.output=x")
    hardware.configure_precision(cfg)
    assert (cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.precision) == ("mps", 1, "32-true")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "mps"])
def test_a_machine_without_a_gpu_says_so_in_one_line(trainer, tmp_path, capsys):
    assert command("train", "model=vqvae", f"trainer={trainer}", f"paths.runs={tmp_path}", "data.root=nowhere") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "found no" in error
    assert "use trainer=cpu" in error


def test_a_cpu_keeps_a_batch_of_eight_in_fp32(pairs, tmp_path):
    from im2wav.train import train

    result = train(tiny_config("vqvae", pairs, tmp_path, "data.batch_size=auto", "trainer.fast_dev_run=1"))
    assert (result["datamodule"].batch_size, result["trainer"].precision) == (8, "32-true")
    with pytest.raises(ValueError, match=r"data.batch_size=many: must be >= 1, or auto"):
        PairsDataModule(str(pairs), batch_size="many")


@pytest.mark.parametrize("model", ["vqvae", "low_prior", "up_prior"])
def test_a_small_device_accumulates_to_the_same_global_batch(model, pairs, trained, tmp_path, monkeypatch, caplog):
    """And to the same weights; not for the codec, whose codebooks move at each pass."""
    from im2wav.train import train

    common = [f"codec={trained}/base/vqvae/last.ckpt", "data.windows_per_epoch=24", "trainer.max_steps=2"]
    common += ["callbacks.dashboard.every_n_steps=null", "trainer.limit_val_batches=0"]
    if model != "vqvae":
        common.append("model.net.conditioning.map_dropout=0")  # drawn for each pass

    def weights_after(name, *overrides):
        train(tiny_config(model, pairs, tmp_path / name, *common, *overrides))
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)["current_model_state"]

    whole = weights_after("whole", "data.batch_size=8")
    seen = []
    measure = hardware.training_memory

    def measured(*arguments):
        seen.append(measure(*arguments))
        return StepMemory(0, 0, RESERVE)  # two windows on a device of 3 GB

    monkeypatch.setattr(hardware, "training_memory", measured)
    monkeypatch.setattr(hardware, "device_memory", lambda trainer: 3 * RESERVE)
    with caplog.at_level(logging.INFO):
        split = weights_after("split", "data.batch_size=auto")
    assert "2 windows on each of 1 device(s), 4 pass(es) per step, global batch 8" in caplog.text
    assert seen[0].per_window > 0
    assert seen[0].state < seen[0].peak(1)
    if model != "vqvae":
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("level", "other"), [("low", "up"), ("up", "low")])
def test_only_the_levels_asked_for_are_encoded(level, other, monkeypatch):
    codec = AudioCodec(**CODEC).eval()
    wav = torch.randn(1, 1, 4096)
    both = codec.encode(wav)
    monkeypatch.setattr(codec.encoders[other], "forward", lambda x: pytest.fail(f"{other} was encoded"))
    alone = codec.encode(wav, [level])
    assert list(alone) == [level]
    assert torch.equal(alone[level], both[level])
    with pytest.raises(ValueError, match="level='top': expected one of"):
        codec.encode(wav, ["top"])


@pytest.mark.parametrize(("model", "levels"), [("low_prior", {"low"}), ("up_prior", {"up", "low"})])
def test_training_encodes_the_levels_that_the_model_reads(model, levels, pairs, trained, tmp_path, monkeypatch):
    from im2wav.train import train
    from im2wav.training.priors import PriorModule

    seen, step = [], PriorModule.training_step
    monkeypatch.setattr(
        PriorModule, "training_step", lambda self, batch, i: seen.append(set(batch.codes)) or step(self, batch, i)
    )
    common = [f"codec={trained}/base/vqvae/last.ckpt", "trainer.fast_dev_run=1"]
    train(tiny_config(model, pairs, tmp_path, *common))
    assert seen == [levels]


def test_codes_are_computed_without_tf32():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with exact_fp32(torch.device("cuda")):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", before[1])
        with exact_fp32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_the_memory_of_a_device_is_that_of_the_smallest(monkeypatch):
    sizes = [80 * 10**9, 24 * 10**9]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    assert hardware.device_memory(SimpleNamespace(strategy=strategy, device_ids=[0, 1])) == sizes[1]
    assert hardware.device_memory(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))) is None
