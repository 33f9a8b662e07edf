"""Two processes are one: the same losses from the same global batch."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from test_resume import one_thread  # noqa: F401 - used in all tests
from test_signals import sending
from torch.distributed.device_mesh import init_device_mesh

from conftest import TINY_NET, TINY_ON_ANY_TRAINER, config, logged_values
from helpers import PROCESS_ENVIRONMENT, run_on_two
from im2wav.checkpoint import load
from im2wav.data.datamodule import PairsDataModule
from im2wav.prior.transformer import LayerNorm
from im2wav.train import train
from im2wav.training.sharding import FSDP2Strategy, shard_modules

COMMON = [*TINY_ON_ANY_TRAINER, "data.global_batch_size=4", "data.windows_per_epoch=40"]
COMMON += ["callbacks.progress=null", "overwrite=true"]
COMMON += ["trainer.max_steps=20", "trainer.accelerator=cpu", "trainer.precision=32-true"]


@pytest.fixture(scope="module")
def codec_runs(pairs, tmp_path_factory) -> Path:
    """20 steps of the VQ-VAE in this process (one), and by the real command on two (two); what its callbacks wrote."""
    folder = tmp_path_factory.mktemp("codec_runs")
    overrides = ["model=vqvae", f"data.root={pairs}", *COMMON, *TINY_NET["vqvae"]]
    train(config("train", *overrides, "trainer=cpu", "trainer.precision=32-true", output=folder / "one"))
    for name in ("CodebookHashes", "Windows"):
        overrides.append(f"+callbacks.{name}={{_target_: spies.{name}, folder: {folder}}}")
    overrides += ["trainer=ddp", "trainer.devices=2", f"paths.runs={folder}", f"hydra.run.dir={folder / 'two'}"]
    call = [sys.executable, "-m", "im2wav.train", *overrides]
    run = subprocess.run(call, capture_output=True, text=True, env=PROCESS_ENVIRONMENT, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def test_two_processes_train_the_codec_as_one_does(codec_runs):
    one, two = (logged_values(codec_runs / name) for name in ("one", "two"))
    assert len(one) == 20
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0, atol=1e-5)
    assert not list(codec_runs.rglob("rank*/last.ckpt"))  # one run directory for all
    hashes = [(codec_runs / f"rank_{rank}.txt").read_text().split() for rank in (0, 1)]
    assert hashes[0] == hashes[1]  # nothing broadcasts them: strategy.broadcast_buffers=false
    assert len(set(hashes[0])) == 20


def test_two_processes_see_the_batches_of_one(codec_runs, pairs):
    """Each step's windows on two devices, joined, are those on one."""
    lines = [(codec_runs / f"windows_{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    found = [json.loads(first) + json.loads(second) for first, second in zip(*lines, strict=True)]
    loader = PairsDataModule(str(pairs), num_samples=4096, global_batch_size=4, windows_per_epoch=40).train_dataloader()
    batches = [batch for _ in range(2) for batch in loader]
    expected = [[*map(list, zip(b.id, b.timing["offset"].int().tolist(), strict=True))] for b in batches]
    assert found == expected
    assert len(set(map(str, expected))) == 20


def sharded_overrides(pairs, codec, out: Path, *overrides: str) -> list[str]:
    """12 steps of a prior with EMA; a checkpoint at step 8, and a validation at each of the two epochs."""
    arguments = ["model=low_prior", f"data.root={pairs}", *COMMON, *TINY_NET["low_prior"], f"codec={codec}"]
    arguments += ["model.net.conditioning.map_dropout=0"]  # drawn for each device
    arguments += ["trainer.max_steps=12", "data.windows_per_epoch=24"]
    arguments += ["model.optimizer.lr=0.01", "model.scheduler.steps=1"]  # so that losses fall and moments matter
    arguments += ["callbacks.ema.decay=0.9", "callbacks.checkpoint.every_n_steps=8", "callbacks.checkpoint.keep=9"]
    return [*arguments, f"paths.runs={out}", f"paths.output={out}", *overrides]


ONE = ["trainer=cpu", "trainer.precision=32-true"]
FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
FIRST = "checkpoints/step_00000008.ckpt"


@pytest.fixture(scope="module")
def sharded(pairs, trained, tmp_path_factory) -> Path:
    """Runs of one process (one*) and of two with sharded weights (two*), some resumed from one another."""
    folder = tmp_path_factory.mktemp("sharded")

    def run(name: str, *overrides: str) -> list[str]:
        return sharded_overrides(pairs, trained / "base/vqvae/last.ckpt", folder / name, *overrides)

    train(config("train", *run("one", *ONE)))
    run_on_two(
        [
            run("two", *FSDP),
            # rank 1 alone receives a signal
            run("two_stopped", *FSDP, "data.num_workers=1", sending(signal.SIGUSR1, step=4, rank=1)),
            run("two_stopped", *FSDP, "overwrite=false", "resume=auto"),
            run("two_resumed", *FSDP, f"ckpt_path={folder}/two/{FIRST}"),
            run("two_after_one", *FSDP, f"ckpt_path={folder}/one/{FIRST}"),
        ]
    )
    train(config("train", *run("one_after_two", *ONE, f"ckpt_path={folder}/two/{FIRST}")))
    return folder


@pytest.fixture(scope="module")
def sharded_bf16(pairs, trained, tmp_path_factory) -> Path:
    """Runs of one process (one*) and of two with sharded weights (two*) in other precisions than fp32."""
    folder = tmp_path_factory.mktemp("sharded_bf16")

    def run(name: str, *overrides: str) -> list[str]:
        return sharded_overrides(pairs, trained / "base/vqvae/last.ckpt", folder / name, *overrides)

    train(config("train", *run("one", *ONE)))
    train(config("train", *run("one_mixed", *ONE, "trainer.precision=bf16-mixed")))
    run_on_two(
        [
            run("two_mixed", *FSDP, "trainer.precision=bf16-mixed"),
            run("two_bf16", *FSDP, "trainer.precision=bf16-true"),
            run("two_bf16_resumed", *FSDP, "trainer.precision=bf16-true", f"ckpt_path={folder}/two_bf16/{FIRST}"),
        ]
    )
    return folder


def column(folder: Path, name: str) -> torch.Tensor:
    """The logged values of a metric."""
    return torch.tensor(logged_values(folder, name))


def assert_same_checkpoints(one: Path, other: Path, rtol: float, atol: float, key_bias_atol: float = 0.0) -> None:
    """Averaged weights, live weights and optimizer state; `key_bias_atol` is for biases of keys."""
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other))
    assert first.keys() == second.keys()
    for part in ("state_dict", "current_model_state"):
        assert second[part].keys() == first[part].keys()
        for name, value in first[part].items():
            found = second[part][name]
            if name.endswith("qkv.bias"):
                (keys, value), (found_keys, found) = split_keys(value), split_keys(found)
                torch.testing.assert_close(found_keys, keys, rtol=rtol, atol=max(atol, key_bias_atol))
            torch.testing.assert_close(found, value, rtol=rtol, atol=atol)
    assert first["averaging_state"] == second["averaging_state"]
    moments = [moments_in_order(checkpoint["optimizer_states"][0]) for checkpoint in (first, second)]
    torch.testing.assert_close(moments[1], moments[0], rtol=rtol, atol=atol)


def split_keys(bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bias of the keys, and that of queries and values."""
    queries, keys, values = bias.chunk(3)
    return keys, torch.cat([queries, values])


def moments_in_order(state) -> list:
    """The state of each parameter in the order of the groups, which is how PyTorch reads them."""
    keys = [key for group in state["param_groups"] for key in group["params"]]
    return [dict(state["state"][key]) for key in keys]


def test_sharded_processes_train_a_prior_with_its_average_as_one_does(sharded):
    torch.testing.assert_close(
        column(sharded / "two", "train/loss"), column(sharded / "one", "train/loss"), rtol=0, atol=1e-5
    )
    for name in ("valid/loss", "run/ema_distance", "run/gradient_norm"):
        torch.testing.assert_close(column(sharded / "two", name), column(sharded / "one", name), rtol=1e-3, atol=1e-5)
    assert len(column(sharded / "two", "train/loss")) == 12
    # the gradient of a bias of keys is rounding noise, which AdamW scales up to steps of the learning rate, 0.01
    assert_same_checkpoints(sharded / "one", sharded / "two", 1e-3, 1e-4, key_bias_atol=5e-4)
    end = torch.load(sharded / "two/last.ckpt", weights_only=True)
    assert any((end["state_dict"][k] != v).any() for k, v in end["current_model_state"].items())


def test_processes_stop_together_and_resume_when_one_receives_a_signal(sharded):
    saved = torch.load(sharded / "two_stopped/checkpoints/step_00000005.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    for version, steps in (("version_0", slice(0, 4)), ("version_1", slice(5, None))):
        found = logged_values(sharded / "two_stopped", version=version)
        assert found == logged_values(sharded / "two")[steps]
    assert_same_checkpoints(sharded / "two", sharded / "two_stopped", 0, 0)


@pytest.mark.parametrize(
    ("runs", "name"), [("sharded", "two"), pytest.param("sharded_bf16", "two_bf16", marks=pytest.mark.slow)]
)
def test_a_resumed_sharded_run_equals_an_unbroken_one(request, runs, name):
    folder = request.getfixturevalue(runs)
    expected = column(folder / name, "train/loss")[8:]
    assert column(folder / f"{name}_resumed", "train/loss").tolist() == expected.tolist()
    assert_same_checkpoints(folder / name, folder / f"{name}_resumed", 0, 0)


@pytest.mark.parametrize(("name", "origin"), [("one_after_two", "two"), ("two_after_one", "one")])
def test_checkpoints_resume_on_another_number_of_devices(sharded, name, origin):
    torch.testing.assert_close(
        column(sharded / name, "train/loss"), column(sharded / origin, "train/loss")[8:], rtol=0, atol=1e-5
    )
    assert_same_checkpoints(sharded / origin, sharded / name, 1e-3, 1e-4)


@pytest.mark.slow
def test_sharding_in_mixed_precision_is_that_of_one_process(sharded_bf16):
    one, two = (column(sharded_bf16 / f"{name}_mixed", "train/loss") for name in ("one", "two"))
    exact = column(sharded_bf16 / "one", "train/loss")
    torch.testing.assert_close(two, one, rtol=0, atol=0.005)
    assert (two != exact).any()
    assert two[-3:].mean() < two[:3].mean() - 0.2
    weights = torch.load(sharded_bf16 / "two_mixed/last.ckpt", weights_only=True)["current_model_state"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_a_checkpoint_of_sharded_bf16_weights_holds_an_fp32_average_and_loads(sharded_bf16):
    end = torch.load(sharded_bf16 / "two_bf16/last.ckpt", weights_only=True)
    assert {value.dtype for value in end["state_dict"].values()} == {torch.float32}
    assert {value.dtype for value in end["current_model_state"].values()} == {torch.bfloat16}
    weights = load(sharded_bf16 / "two_bf16/last.ckpt", "low_prior").net.state_dict()
    assert all((end["state_dict"][f"net.{name}"] == value).all() for name, value in weights.items())


@pytest.fixture
def mesh():
    """A device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_mixed_precision_gathers_layers_in_bf16_and_leaves_the_rest_and_the_gradients_in_fp32(mesh):
    layers = [torch.nn.Linear(4, 4), LayerNorm(4)]
    net = torch.nn.Sequential(torch.nn.Embedding(3, 4), *layers)
    shard_modules([*layers, net], mesh, mixed=True)
    seen = {}
    for name, part in net.named_children():  # before each forward pass, after FSDP has gathered
        part.register_forward_pre_hook(lambda part, args, name=name: seen.update({name: part.weight.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(torch.tensor([[0, 1, 2]])).float().square().mean()
    loss.backward()
    low, full = torch.bfloat16, torch.float32
    assert seen == {"0": full, "1": low, "2": low}
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters()} == {full}


def test_sharding_in_fp16_is_an_error():
    strategy = FSDP2Strategy()
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(ValueError, match="16-mixed with trainer=fsdp: expected bf16-mixed, bf16-true or 32-true"):
        strategy.setup_environment()


def test_the_choices_of_scale():
    gpu = config("train", "model=low_prior", "trainer=gpu", "paths.output=x")
    assert (gpu.trainer.accelerator, gpu.trainer.devices, gpu.model.optimizer.fused) == ("gpu", 1, True)
    fp16 = config("train", "model=low_prior", "trainer=gpu", "trainer.precision=16-mixed", "paths.output=x")
    assert fp16.model.optimizer.fused is True
    nodes = config("train", "model=low_prior", "trainer=ddp", "trainer.num_nodes=4", "paths.output=x")
    assert (nodes.trainer.num_nodes, nodes.trainer.devices, nodes.callbacks.ema.decay) == (4, -1, 0.999)
    assert config("train", "model=low_prior", "trainer=fsdp", "paths.output=x").callbacks.ema.decay == 0.999


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_checkpointing_changes_no_gradient(checkpointing):
    from im2wav.prior.transformer import Transformer, TransformerConfig

    def gradients(again: bool):
        torch.manual_seed(0)
        net = Transformer(TransformerConfig(width=16, depth=4, heads=2, blocks=4, checkpointing=again), 16).train()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = net(torch.randn(2, 16, 16)).square().mean()
        loss.backward()
        return [p.grad for p in net.parameters()], sum(saved)

    found, kept = gradients(checkpointing)
    plain, kept_plain = gradients(False)
    assert all((a == b).all() for a, b in zip(found, plain, strict=True))
    assert kept < kept_plain / 4 if checkpointing else kept == kept_plain
