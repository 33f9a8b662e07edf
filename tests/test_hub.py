"""Model cards; uploads to the Hub and downloads from it, which a server on loopback stands in for."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from conftest import ASSETS, REPO, command
from hub_server import TOKEN, Hub, Repository
from im2wav import Im2Wav
from im2wav.cards import adapter_card, is_edited, read_card
from im2wav.hub import find_folder, push_adapter

OWL = ASSETS / "images" / "owl_03.jpg"
FILES = {"README.md", "config.json", "vqvae.safetensors", "low_prior.safetensors", "up_prior.safetensors"}


@pytest.fixture(scope="module")
def model(trained):
    return Im2Wav.from_pretrained(trained / "base", device="cpu")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "dogs", license="cc-by-4.0", datasets=["me/clips"])
    return tmp_path / "dogs"


@pytest.fixture
def report(tmp_path):
    """Files of an evaluation, as far as a card reads them."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    figures = {"fd/yamnet": {"value": 18.3, "low": 14.9, "high": 21.7, "n": 66}}
    content = {"im2wav": "0.1.0", "protocol_sha256": "ca7c", "rows": {"generated": figures}}
    (folder / "report.json").write_text(json.dumps(content))
    (folder / "report.md").write_text("| figure | generated |\n|---|---|\n| Fréchet distance | 18.30 |\n")
    return folder


def repository(folder, **access) -> Repository:
    return Repository({path.name: path.read_bytes() for path in folder.iterdir()}, **access)


def test_a_saved_model_is_safetensors_with_a_card(model, saved, report):
    assert {path.name for path in saved.iterdir()} == FILES
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "im2wav"
    assert card.data.datasets == ["me/clips"]
    assert "image-to-audio" in card.data.tags
    assert 'Im2Wav.from_pretrained("dogs")' in card.text
    parameters = sum(value.numel() for value in model.loaded["up"].net.parameters())
    assert f"| `up_prior.safetensors` | Prior | {parameters:,} | 3 | 5 | none |" in card.text
    assert "`efficientnet_lite2`, 1280 dimensions" in card.text
    assert "16000 Hz, mono, windows of 0.256 s" in card.text
    assert "RMS level of the audio: -18" in card.text
    assert "No figures were given." in card.text
    assert not is_edited(read_card(saved))


def test_figures_of_an_evaluation_are_in_the_card(model, tmp_path, report):
    model.save_pretrained(tmp_path / "dogs", figures=report)
    card = ModelCard.load(tmp_path / "dogs" / "README.md")
    assert "| Fréchet distance | 18.30 |" in card.text
    assert "`ca7c`" in card.text
    assert [(x.metric_type, x.metric_value) for x in card.data.eval_results] == [("fd/yamnet", 18.3)]
    assert "Not stated" in card.text
    with pytest.raises(ValueError, match=r"figures=.*none: expected a folder with report.json and report.md"):
        model.save_pretrained(tmp_path / "cats", figures=tmp_path / "none")
    assert not (tmp_path / "cats").exists()


def test_a_generated_card_is_written_again_and_an_edited_one_is_kept(model, saved, tmp_path, report):
    loaded = Im2Wav.from_pretrained(saved, device="cpu")
    loaded.save_pretrained(tmp_path / "again", figures=report)
    card = ModelCard.load(tmp_path / "again" / "README.md")
    assert card.data.license == "cc-by-4.0"  # of the folder that it was loaded from
    assert "Data sets: me/clips." in card.text
    assert 'from_pretrained("again")' in card.text
    Im2Wav.from_pretrained(tmp_path / "again", device="cpu").save_pretrained(tmp_path / "third")
    card = ModelCard.load(tmp_path / "third" / "README.md")
    assert "| Fréchet distance | 18.30 |" in card.text
    assert card.data.eval_results[0].metric_value == 18.3

    edited = read_card(saved).replace("# dogs", "# All about my dogs")
    (saved / "README.md").write_text(edited)
    assert is_edited(edited)
    loaded = Im2Wav.from_pretrained(saved, device="cpu")
    loaded.save_pretrained(tmp_path / "fourth")
    assert read_card(tmp_path / "fourth") == edited
    model.save_pretrained(saved, license="mit", figures=report)  # another model, into the folder
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 18.3
    assert card.text == ModelCard(edited).text


def test_a_card_whose_metadata_are_broken_is_one_line(model, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\nMine.\n")
    with pytest.raises(ValueError, match=r"README.md: the metadata between the lines --- cannot be read"):
        model.save_pretrained(tmp_path, license="mit")


def test_convert_writes_the_same_card(trained, saved, tmp_path):
    out = tmp_path / "other" / "dogs"
    options = ["license=cc-by-4.0", "datasets=[me/clips]"]
    assert command("convert", f"run={trained / 'base'}", f"out={out}", *options) == 0
    assert read_card(out) == read_card(saved)
    assert {path.name for path in out.iterdir()} == FILES


def test_base_models_are_in_the_card(model, tmp_path):
    loaded = Im2Wav(**model.loaded, device="cpu")
    for key, base in (("low", "someone/base"), ("up", "official")):
        loaded.loaded[key] = replace(model.loaded[key], training={"steps": 7, "base": base})
    loaded.save_pretrained(tmp_path / "tuned")
    card = ModelCard.load(tmp_path / "tuned" / "README.md")
    assert card.data.base_model == ["someone/base"]
    assert card.data.base_model_relation == "finetune"
    assert "| 7 | not recorded | someone/base |" in card.text
    assert "the official Im2Wav weights" in card.text


def test_a_model_is_pushed_and_loaded_again(model, hub, tmp_path):
    address = model.push_to_hub("me/dogs", license="mit", private=True, token=TOKEN)
    assert address.startswith(f"{hub.address}/me/dogs/commit/")
    repo = hub.repositories["me/dogs"]
    assert repo.private
    assert set(repo.files) == FILES
    card = repo.files["README.md"].decode()
    assert 'Im2Wav.from_pretrained("me/dogs")' in card
    assert "license: mit" in card
    again = Im2Wav.from_pretrained("me/dogs", token=TOKEN, device="cpu")
    assert again.sha256 == model.sha256
    assert torch.equal(again.generate(OWL, seed=1).wav, model.generate(OWL, seed=1).wav)

    repo.files["README.md"] = card.replace("# dogs", "# My dogs").encode()
    model.push_to_hub("me/dogs", license="cc0-1.0", token=TOKEN)
    card = repo.files["README.md"].decode()
    assert "# My dogs" in card
    assert "license: cc0-1.0" in card


def test_a_private_model_needs_a_token(saved, hub):
    hub.repositories["me/secret"] = repository(saved, private=True)
    for token, said in (
        (None, "me/secret is no folder, and the Hub shows no model of this name: correct it; if the model is private, "
         "log in with `hf auth login`, or set HF_TOKEN or token="),
        ("hf_wrong", "me/secret is no folder, and the Hub rejects the token: log in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said) as caught:
            find_folder("me/secret", token=token)
        assert "\n" not in str(caught.value)
    assert Im2Wav.from_pretrained("me/secret", token=TOKEN, device="cpu").window == 0.256


def test_a_gated_model_needs_its_conditions(saved, hub):
    hub.repositories["me/gated"] = repository(saved, gated=True)
    with pytest.raises(
        ValueError, match=f"on the Hub is gated: accept its conditions at {hub.address}/me/gated, and log in"
    ):
        find_folder("me/gated")
    assert Im2Wav.from_pretrained("me/gated", token=TOKEN, device="cpu").window == 0.256


def test_other_names_that_cannot_be_fetched(saved, hub):
    hub.repositories["me/dogs"] = repository(saved)
    for name, options, said in (
        ("me/nothing", {}, "the Hub shows no model of this name"),
        ("me/dogs", {"revision": "v9"}, "has no revision=v9: choose another"),
        ("a/b/c", {}, "no id on the Hub, which has the form OWNER/NAME"),
        ("me/dogs", {"local_files_only": True}, "not in the cache of the Hub: run this once with a connection"),
    ):
        with pytest.raises(ValueError, match=said):
            find_folder(name, **options)


def test_a_cached_model_is_loaded_without_a_request(saved, hub, monkeypatch):
    hub.repositories["me/dogs"] = repository(saved)
    folder = find_folder("me/dogs")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_folder("me/dogs") == folder
    assert hub.requests == []
    with pytest.raises(ValueError, match="me/cats is no folder, and it is not in the cache of the Hub"):
        find_folder("me/cats")


@pytest.mark.slow
def test_the_command_line_reads_the_hub_of_the_environment(saved, hub, tmp_path):
    hub.repositories["me/dogs"] = repository(saved, private=True)
    common = [f"input={OWL}", f"out={tmp_path / 'out'}", "device=cpu"]
    variables = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    variables |= {"PYTHONPATH": str(REPO / "src"), "HF_HUB_DISABLE_XET": "1"}

    def sample(**more: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "im2wav.sample", "pretrained=me/dogs", *common]
        done = subprocess.run(words, env={**variables, **more}, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    code, said = sample()
    assert code == 2
    assert said.startswith("error: me/dogs is no folder, and the Hub shows no model of this name")
    assert len(said.splitlines()) == 1
    assert sample(HF_TOKEN=TOKEN)[0] == 0
    (tmp_path / "out" / "up" / "owl_03_00.wav").unlink()
    assert sample(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")[0] == 0
    assert (tmp_path / "out" / "up" / "owl_03_00.wav").is_file()


@pytest.fixture(scope="module")
def adapter(trained, pairs, tmp_path_factory):
    """An adapter of the low prior of `trained`, trained for two steps."""
    pytest.importorskip("peft")
    from conftest import tiny_config
    from im2wav.train import train

    runs = tmp_path_factory.mktemp("tuned")
    base = shutil.copytree(trained / "base", runs / "base")
    options = [f"init_from={base}", "adapter=lora", "model.adapter.rank=2", "trainer.max_steps=2"]
    train(tiny_config("low_prior", pairs, runs / "mine" / "low_prior", *options))
    return runs / "mine" / "low_prior" / "adapter.safetensors"


def test_an_adapter_is_pushed_with_a_card_and_used_from_the_hub(model, adapter, saved, hub, tmp_path):
    hub.repositories["me/dogs"] = repository(saved)
    push_adapter(adapter, "me/barks", base_model="me/dogs", license="mit", token=TOKEN)
    repo = hub.repositories["me/barks"]
    assert set(repo.files) == {"README.md", "adapter.safetensors"}
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.base_model == "me/dogs"
    assert card.data.base_model_relation == "adapter"
    assert 'Im2Wav.from_pretrained("me/dogs", adapters=["me/barks"])' in card.text
    assert "rank 2" in card.text
    local = adapter_card(adapter, "barks")
    assert "trained on: a local model (sha256" in local
    assert 'Im2Wav.from_pretrained("BASE_MODEL", adapters=["barks"])' in local
    tuned = Im2Wav.from_pretrained("me/dogs", adapters=["me/barks@0.5"], device="cpu")
    local = Im2Wav.from_pretrained(saved, adapters=[f"{adapter}@0.5"], device="cpu")
    assert tuned.sha256 == local.sha256
    assert tuned.sha256["low"] != model.sha256["low"]

    tuned.save_pretrained(tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.base_model == ["me/dogs"]
    assert "Adapters in the weights: barks@0.5." in card.text
    assert "low_prior.safetensors" in card.text
    assert load_file(tmp_path / "merged" / "low_prior.safetensors")

    repo.files["README.md"] = b"---\nlicense: mit\n---\nMy barks.\n"
    push_adapter(adapter, "me/barks", license="cc0-1.0", token=TOKEN)
    assert repo.files["README.md"].decode() == "---\nlicense: cc0-1.0\n---\nMy barks.\n"
    with pytest.raises(ValueError, match="is not an adapter of im2wav"):
        push_adapter(saved / "vqvae.safetensors", "me/x", token=TOKEN)
