"""Paths and texts on the command line are taken literally, whatever characters are in them."""

import os
import shutil

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from conftest import ASSETS, command, config
from im2wav.cli import quoted, register_resolvers, rewrite

NAMES = [" lead", "[x]", "{x}", "a,b", "epoch=3", "it's", 'quote"d', "null", "1e5", "photo (1)", "photo #1"]
NAMES += [
    "Rock & Roll!",
    "~home",
    "Müller",
    "写真",
    "😀",
    "clip [dQw4w9WgXcQ]",
    "50%",
    "$HOME",
    "a\\b",
    "-dash",
    "two  spaces",
]
FOLDERS = ["1.50", "20251125", "true", "null"]


@given(st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"])))
def test_hydra_reads_a_quoted_text_literally(text):
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        shutil.copy(ASSETS / "images" / "owl_03.jpg", folder / f"{name}.jpg")
    for name in FOLDERS:
        (folder / name).mkdir()
        shutil.copy(ASSETS / "images" / "owl_03.jpg", folder / name / "photo.jpg")
    return folder


@pytest.mark.parametrize("name", [f"{name}.jpg" for name in NAMES] + FOLDERS)
def test_sample_reads_a_photo_of_any_name(name, photos, trained, monkeypatch, capfd):
    monkeypatch.chdir(photos)
    options = ["run_name=base", f"paths.runs={trained}", "dry_run=true"]
    assert command("sample", f"input={name}", *options, f"out={name} audio") == 0
    path = f"{name}{os.sep}photo.jpg" if name in FOLDERS else name
    assert capfd.readouterr().out.endswith(f" from {path}\n")


def test_photos_of_any_name_get_audio_of_the_same_name(photos, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    options = ["run_name=base", f"paths.runs={trained}", "device=cpu", "seconds=0.02"]
    assert command("sample", "input=.", *options, f"out={tmp_path / 'ü (1)'}") == 0
    written = {path.name for path in (tmp_path / "ü (1)" / "up").glob("*.wav")}
    assert written == {f"{name}_00.wav" for name in [*NAMES, *(f"{folder}_photo" for folder in FOLDERS)]}


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("sample", "out", "20251125", "20251125"),
        ("sample", "continue_from", "~/a [1].wav", os.path.expanduser("~/a [1].wav")),
        ("sample", "encoder.weights", "1e5", "1e5"),
        ("sample", "input.text", "a dog, barking: twice", "a dog, barking: twice"),
        ("sample", "negative.image", "null.jpg", "null.jpg"),
        ("sample", "run_name", "1", "1"),
        ("train", "data.root", "3", "3"),
        ("train", "paths.runs", "my runs", "my runs"),
        ("embed", "input", "1.50", "1.50"),
        ("convert", "official", "a,b", "a,b"),
        ("demo", "demo.images", "fotos (Müller)", "fotos (Müller)"),
        ("inspect", "out", "null", None),
        ("evaluate", "labels", "it's.csv", "it's.csv"),
    ],
)
def test_values_of_paths_and_texts_are_literal(name, key, value, expected):
    required = {"train": ["model=vqvae"], "convert": ["out=x"], "evaluate": ["mode=folders", "generated=x"]}
    cfg = config(name, f"{key}={value}", *required.get(name, []))
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == expected


def test_other_values_keep_their_types():
    cfg = config(
        "train",
        "model=low_prior",
        "trainer.devices=2",
        "data.batch_size=4",
        "tags=[a,b]",
        "model.net.context_length=64",
    )
    assert cfg.model.net.context_length == 64
    assert (cfg.trainer.devices, cfg.data.batch_size, list(cfg.tags)) == (2, 4, ["a", "b"])


def test_a_multirun_sweeps_over_texts(tmp_path, monkeypatch):
    register_resolvers()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.jpg").touch()
    assert rewrite("sample", ["-m", "run_name=a,b", "out=x y"]) == ["-m", "run_name=a,b", "out='x y'"]
    assert rewrite("sample", ["-m", "input=a,b.jpg"]) == ["-m", "input='a,b.jpg'"]
    assert rewrite("sample", ["run_name=a,b"]) == ["run_name='a,b'"]


def test_values_that_are_quoted_for_hydra_stay():
    register_resolvers()
    assert rewrite("sample", ["input='photo (1).jpg'"]) == ["input='photo (1).jpg'"]
