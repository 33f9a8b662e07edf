"""Two processes are one: the same losses from the same global batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import TINY, TINY_NET, config

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
}
COMMON = [o for o in TINY if not o.startswith("trainer=")]
COMMON += ["data.global_batch_size=4", "data.windows_per_epoch=40", "callbacks.progress=null", "overwrite=true"]
COMMON += ["trainer.max_steps=20", "trainer.accelerator=cpu", "trainer.precision=32-true"]


def losses(pairs, out: Path, model: str, *overrides: str) -> list[float]:
    """Losses of 20 steps by the real command."""
    arguments = [f"model={model}", f"data.root={pairs}", *COMMON, *TINY_NET[model], f"paths.runs={out}"]
    arguments += [f"hydra.run.dir={out}", *overrides]
    run = subprocess.run(
        [sys.executable, "-m", "im2wav.train", *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list(out.glob("rank*/last.ckpt"))  # one run directory for all
    with (out / "csv/version_0/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_two_processes_train_the_codec_as_one_does(pairs, tmp_path):
    spy = f"+callbacks.spy={{_target_: spies.CodebookHashes, folder: {tmp_path}}}"
    one = losses(pairs, tmp_path / "one", "vqvae", "trainer=cpu")
    two = losses(pairs, tmp_path / "two", "vqvae", "trainer=ddp", "trainer.devices=2", spy)
    assert len(one) == 20
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0, atol=1e-5)
    hashes = [(tmp_path / f"rank_{rank}.txt").read_text().split() for rank in (0, 1)]
    assert hashes[0] == hashes[1]  # nothing broadcasts them: strategy.broadcast_buffers=false
    assert len(set(hashes[0])) == 20


def test_sharded_processes_train_a_prior_as_one_does(pairs, trained, tmp_path):
    common = [f"codec={trained}/base/vqvae/last.ckpt", "+model.net.conditioning.map_dropout=0"]  # drawn for each device
    one = losses(pairs, tmp_path / "one", "low_prior", "trainer=cpu", *common)
    two = losses(pairs, tmp_path / "two", "low_prior", "trainer=fsdp", "trainer.devices=2", *common)
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0, atol=1e-5)
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two")]
    assert ends[1]["state_dict"].keys() == ends[0]["state_dict"].keys()  # one file, whole weights
    for name, value in ends[0]["current_model_state"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], value, rtol=1e-3, atol=1e-4)


def test_the_choices_of_scale():
    gpu = config("train", "model=low_prior", "trainer=gpu", "paths.output=x")
    assert (gpu.trainer.accelerator, gpu.trainer.devices, gpu.model.optimizer.fused) == ("gpu", 1, True)
    fp16 = config("train", "model=low_prior", "trainer=gpu", "trainer.precision=16-mixed", "paths.output=x")
    assert fp16.model.optimizer.fused is True
    nodes = config("train", "model=low_prior", "trainer=ddp", "trainer.num_nodes=4", "paths.output=x")
    assert (nodes.trainer.num_nodes, nodes.trainer.devices, nodes.callbacks.ema.decay) == (4, -1, 0.999)
    assert config("train", "model=low_prior", "trainer=fsdp", "paths.output=x").callbacks.ema is None


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
