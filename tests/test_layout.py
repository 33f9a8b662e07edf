"""Configs compose, and packages import in one direction."""

import ast
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from conftest import REPO, command, config
from im2wav.cli import CONF, SUMMARIES
from im2wav.options import check_config

SOURCE = REPO / "src" / "im2wav"
ENTRIES = {
    *("bench", "cli", "convert", "demo", "embed", "evaluate", "inspect", "licenses", "sample", "shard", "tokenize"),
    "train",
    "web",
}
SHARED = {"files", "layers", "network", "system", "tables"}  # every package may import these
# package -> what else it may import of ours, besides itself
MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "layers": set(),
    "network": set(),
    "system": set(),
    "tables": set(),
    "options": set(),
    "config_inference": {"options"},
    "config_tools": {"options"},
    "config": {"config_inference", "config_tools", "options"},
    "codec": set(),
    "prior": set(),
    "media": set(),
    "report": set(),
    "decoding": {"codec", "prior"},
    "data": {"codec"},
    "adapter": set(),
    "checkpoint": {"adapter", "codec", "prior"},
    "official": {"codec", "prior", "data", "media", "checkpoint"},
    "cards": {"adapter", "checkpoint"},
    "hub": {"cards", "checkpoint", "data", "official"},
    "notices": {"report"},
    "distributed": set(),
    "prepare": {"data", "media", "report", "distributed"},
    "inference": {
        "adapter",
        "cards",
        "codec",
        "prior",
        "media",
        "data",
        "decoding",
        "checkpoint",
        "hub",
        "distributed",
    },
    "training": {"adapter", "codec", "prior", "data", "decoding", "report", "checkpoint", "hub", "distributed"},
    "webpage": {"media", "decoding", "inference", "report"},
    "evaluation": {"data", "media", "prior", "decoding", "inference", "report", "checkpoint", "hub"},
    "benchmarks": {
        "adapter",
        "codec",
        "prior",
        "decoding",
        "media",
        "data",
        "prepare",
        "training",
        "checkpoint",
        "hub",
    },
}
ONLY_IN = {
    "hydra": ENTRIES | {"config", "options"},
    "lightning": {
        "training",
        "data/datamodule.py",
        "prepare/embedder.py",
        "prepare/embedding.py",
        "distributed.py",
    },
    "open_clip": {"media/encoder.py"},
    "decord": {"media/video.py", "benchmarks"},
    "av": {"media"},
    "litdata": {"data/pairs.py"},
    "jinja2": {"report"},
    "matplotlib": {"report"},
    "gradio": {"webpage"},
}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_keep_their_direction(path):
    relative = path.relative_to(SOURCE)
    package = relative.parts[0].removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "im2wav" and rest and package in MAY_IMPORT:
            allowed = MAY_IMPORT[package] | {package} | (set() if package in SHARED else SHARED)
            assert rest[0] in allowed, f"{relative} imports {name}"
        assert not (top == "im2wav" and rest and rest[0] in ENTRIES - {"cli"}) or package == "cli", (
            f"{relative} imports {name}"
        )
        if top in ONLY_IN:
            assert {package, str(relative)} & ONLY_IN[top], f"{relative} imports {name}"


def test_every_package_has_its_rule():
    packages = {
        p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.name != "__init__.py" and not p.name.startswith("__")
    }
    assert packages == set(MAY_IMPORT) | ENTRIES | {"assets"}


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (REPO / "conf" / group).glob("*.yaml"))


@pytest.mark.parametrize("model", ["vqvae", "low_prior", "up_prior"])
def test_every_choice_composes_with_every_model(model):
    """The first choices of all groups together, then the second ones, and so on: a composition takes a while."""
    from omegaconf import OmegaConf

    groups = ("trainer", "logger", "encoder", "data", "callbacks", "debug", "scheduler")
    for together in zip_longest(*([f"{group}={choice}" for choice in choices(group)] for group in groups)):
        cfg = config("train", f"model={model}", *filter(None, together), "paths.output=x")
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


EXPERIMENTS = sorted((REPO / "experiments" / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_composes(path):
    from omegaconf import OmegaConf

    from im2wav.cli import instantiate

    name = path.relative_to(REPO / "experiments" / "experiment").with_suffix("").as_posix()
    chosen = "override /model:" in path.read_text() or path.parent.name == "ablation"
    model = [] if chosen else ["model=low_prior"]
    if path.parent.name == "ablation":  # rows of a table, at any size
        name = f"[demo/{'vqvae' if 'VQ-VAE' in path.read_text() else 'low_prior'},{name}]"
    cfg = config("train", f"experiment={name}", *model, "paths.output=x")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_config(cfg, Path(CONF))
    instantiate(cfg.model)


def test_the_im2wav_command_passes_help_on():
    run = subprocess.run(
        [sys.executable, "-m", "im2wav.cli", "embed", "--help"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "encoder=clip_vit_b32" in run.stdout


@pytest.mark.parametrize("name", sorted(SUMMARIES))
def test_every_command_rejects_an_unknown_key_in_one_line(name, capfd):
    assert command(name, *(["model=vqvae"] if name == "train" else []), "colour=red") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "colour" in line


def test_im2wav_lists_all_commands():
    run = subprocess.run([sys.executable, "-m", "im2wav.cli"], capture_output=True, text=True, check=True)
    assert all(name in run.stdout for name in SUMMARIES)
    run = subprocess.run([sys.executable, "-m", "im2wav.cli", "sing"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "has no command 'sing'" in run.stderr


@pytest.mark.parametrize("packages", ["torchvision, torchaudio, torch", "lightning.pytorch, open_clip"])
def test_set_up_left_packages_that_import(packages):
    code = f"import {packages}"
    if "torchaudio" in packages:
        code += "; torchaudio.functional.resample(torch.zeros(1, 100), 44100, 16000)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
