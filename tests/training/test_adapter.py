"""Fine-tuning: init_from, and adapters (LoRA) of both priors and both families."""

import json
from pathlib import Path

import pytest
import torch

from conftest import ASSETS, TINY, command, config
from im2wav import Im2Wav
from im2wav.adapter import adapter_state, apply_adapters, read_adapter
from im2wav.checkpoint import load, net_sha256, training_state
from im2wav.train import train
from im2wav.training import hardware

OWL = ASSETS / "images" / "owl_03.jpg"
LORA = ["adapter=lora", "model.adapter.rank=2", "model.optimizer.lr=0.05", "model.scheduler.steps=1"]


def base_config(model: str, pairs: Path, base: Path, output: Path, *overrides: str):
    """A short training that begins with a model; its sizes are not repeated."""
    options = [f"model={model}", f"data.root={pairs}", *TINY, f"init_from={base}", "trainer.max_steps=3", *overrides]
    return config("train", *options, output=output)


@pytest.fixture(scope="module")
def tuned(pairs, trained, tmp_path_factory) -> Path:
    """Adapters of both priors, trained for three steps."""
    folder = tmp_path_factory.mktemp("tuned")
    for model in ("low_prior", "up_prior"):
        train(base_config(model, pairs, trained / "base", folder / model, *LORA))
    return folder


def test_a_run_that_begins_with_a_model_has_its_sizes_its_codec_and_its_weights(pairs, trained, tmp_path):
    train(base_config("low_prior", pairs, trained / "base", tmp_path / "run", "model.optimizer.lr=1e-12"))
    start, found = load(trained / "base" / "low_prior" / "last.ckpt"), load(tmp_path / "run" / "last.ckpt")
    assert (found.config, found.codec_sha256) == (start.config, start.codec_sha256)
    for name, value in start.net.state_dict().items():
        torch.testing.assert_close(found.net.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_prior_fine_tuned_from_half_precision_still_belongs_to_the_other_prior(pairs, trained, tmp_path):
    assert command("convert", f"run={trained}/base", f"out={tmp_path}/half", "dtype=fp16") == 0
    partner = f"callbacks.dashboard.partner={tmp_path}/half"
    train(base_config("low_prior", pairs, tmp_path / "half", tmp_path / "run", partner))
    priors = load(tmp_path / "run" / "last.ckpt"), load(tmp_path / "half" / "up_prior.safetensors")
    assert priors[0].codec_sha256 == priors[1].codec_sha256


@pytest.mark.parametrize("model", ["low_prior", "up_prior"])
def test_an_adapter_is_all_that_changes(trained, tuned, model):
    base, found = load(trained / "base" / model / "last.ckpt"), load(tuned / model / "last.ckpt")
    about, tensors = read_adapter(tuned / model / "adapter.safetensors")
    assert about["base_sha256"] == net_sha256(base.net)
    assert all(min(tensor.shape) == 2 for tensor in tensors.values())  # the rank
    changed = {name.removesuffix(".A") + ".weight" for name in tensors if name.endswith(".A")}
    for name, value in base.net.state_dict().items():
        assert torch.equal(value, found.net.state_dict()[name]) == (name not in changed), name
    apply_adapters({model: base.net}, [str(tuned / model / "adapter.safetensors")])
    assert net_sha256(base.net) == net_sha256(found.net)  # the file and the checkpoint are the same model


def test_there_is_an_adapter_of_the_last_and_of_the_best_checkpoint(pairs, trained, tmp_path):
    steps = set()
    for mode in ("min", "max"):
        options = [*LORA, f"callbacks.checkpoint.mode={mode}", "data.windows_per_epoch=8", "data.batch_size=8"]
        train(base_config("low_prior", pairs, trained / "base", tmp_path / mode, *options))
        for checkpoint, adapter in (("last.ckpt", "adapter"), ("best.ckpt", "adapter_best")):
            found, state = training_state(tmp_path / mode / checkpoint)
            _, tensors = read_adapter(tmp_path / mode / f"{adapter}.safetensors")
            for name, value in adapter_state(state).items():
                assert torch.equal(value, tensors[name]), name
        steps.add(found["global_step"])
    assert len(steps) == 2  # in one of them the best is not the last


def test_a_stopped_run_of_an_adapter_resumes_to_the_same_adapter(pairs, trained, tuned, tmp_path):
    arguments = ("low_prior", pairs, trained / "base", tmp_path / "run", *LORA)
    train(base_config(*arguments, "trainer.max_steps=1"))
    train(base_config(*arguments, "resume=auto"))
    files = [(folder / "adapter.safetensors").read_bytes() for folder in (tmp_path / "run", tuned / "low_prior")]
    assert files[0] == files[1]


def test_the_memory_of_an_adapter_is_counted_without_gradients_of_the_model(pairs, trained, tmp_path, monkeypatch):
    seen, measure = [], hardware.training_memory

    def measured(*arguments):
        seen.append(measure(*arguments))
        return seen[-1]

    monkeypatch.setattr(hardware, "training_memory", measured)
    monkeypatch.setattr(hardware, "device_memory", lambda trainer: 8 * 10**9)
    for options in ([], LORA):
        options = [*options, "data.batch_size=auto", "trainer.fast_dev_run=1"]
        train(base_config("low_prior", pairs, trained / "base", tmp_path, *options))
    whole, adapter = (found.state for found in seen)
    assert 2 / 5 < adapter / whole < 3 / 5  # weights and average; without gradients and two moments


def test_adapters_change_the_audio_and_without_them_it_is_that_of_the_model(trained, tuned, tmp_path):
    low, up = (tuned / model / "adapter.safetensors" for model in ("low_prior", "up_prior"))
    plain = Im2Wav.from_pretrained(trained / "base", device="cpu").generate(OWL, seed=1)
    off = Im2Wav.from_pretrained(trained / "base", device="cpu", adapters=[f"{low}@0", f"{up}@0"])
    assert torch.equal(off.generate(OWL, seed=1).wav, plain.wav)
    on = Im2Wav.from_pretrained(trained / "base", device="cpu", adapters=[str(low), str(up)]).generate(OWL, seed=1)
    assert not torch.equal(on.codes["low"], plain.codes["low"])
    where = [f"paths.runs={trained}", "run_name=base", f"input={OWL}", "seed=1", "device=cpu"]
    assert command("sample", *where, f"adapter={low}", f"out={tmp_path / 'one'}") == 0
    assert command("sample", *where, f"adapter=[{low}@0.5,{up}]", f"out={tmp_path / 'two'}") == 0
    hashes = [
        json.loads((tmp_path / out / "up/owl_03_00.json").read_text())["identity"]["models"] for out in ("one", "two")
    ]
    assert hashes[0]["low"] != hashes[1]["low"]
    assert hashes[0]["codec"] == hashes[1]["codec"]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("none.safetensors", "none.safetensors is not an adapter of im2wav"),
        ("LOW@much", "expected a number after @"),
        ("UP_OF_OTHER", "was trained on another low_prior than that of this model"),
    ],
)
def test_adapters_that_do_not_fit_are_errors_of_one_line(trained, tuned, tmp_path, capfd, adapter, message):
    low = tuned / "low_prior" / "adapter.safetensors"
    options = [f"paths.runs={trained}", "run_name=base", f"input={OWL}", f"out={tmp_path}"]
    if adapter == "UP_OF_OTHER":
        options.append(f"low={tuned / 'low_prior' / 'last.ckpt'}")  # changed already
        adapter = str(low)
    assert command("sample", *options, f"adapter={adapter.replace('LOW', str(low))}") == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=lora", "init_from=null"], "adapter=lora trains changes of a model: name it with init_from"),
        (["adapter=lora", "model.adapter.targets=[colour]"], "adapter: .*colour"),
        (["ckpt_path=a.safetensors"], "set one of them"),
        (["init_from=none"], "none is no folder"),
        (["model=vqvae", "adapter=lora"], "adapter=lora is for priors, and model=vqvae"),
    ],
)
def test_fine_tuning_that_cannot_work_is_rejected(pairs, trained, tmp_path, overrides, message):
    (tmp_path / "a.safetensors").touch()
    overrides = [word.replace("a.safetensors", str(tmp_path / "a.safetensors")) for word in overrides]
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    with pytest.raises(ValueError, match=message):
        train(
            config(
                "train",
                "model=low_prior",
                f"data.root={pairs}",
                *TINY,
                codec,
                f"init_from={trained / 'base'}",
                *overrides,
                output=tmp_path / "run",
            )
        )
