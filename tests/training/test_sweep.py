"""Sweeps at tiny size, through the real command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO, TINY, TINY_NET, command, logged_values
from helpers import PROCESS_ENVIRONMENT


def arguments(pairs, runs, *overrides) -> list[str]:
    words = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], f"paths.runs={runs}"]
    return [*words, "trainer.max_steps=1", "callbacks.progress=null", *overrides]


def test_a_grid_makes_one_run_for_each_combination(pairs, tmp_path):
    few = ["hydra.sweeper.params={model.optimizer.lr: '1e-4,1e-3', scheduler: constant}"]
    assert command("train", *arguments(pairs, tmp_path, "sweep=lr_grid", *few)) == 0
    (folder,) = (tmp_path / "base/sweeps").iterdir()
    runs = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    assert [(run / "last.ckpt").is_file() for run in runs] == [True, True]
    assert "lr: 0.001" in (runs[1] / "config.yaml").read_text()


def test_optuna_finds_the_metric_that_train_returns(pairs, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert command("train", *arguments(pairs, tmp_path, "sweep=optuna", "hydra.sweeper.n_trials=2")) == 0
    (folder,) = (tmp_path / "base/sweeps").iterdir()
    best = (folder / "optimization_results.yaml").read_text()
    value = float(best.split("best_value: ")[1].split()[0])
    found = []
    for log in folder.glob("*/csv"):
        found += logged_values(log.parent, "valid/loss")
    assert len(found) == 2
    assert value == pytest.approx(min(found))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_several_devices_inside_a_launcher_are_rejected(pairs, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    overrides = [f"hydra/launcher={launcher}", "trainer.devices=2", "+trainer.strategy=ddp", "-m"]
    overrides = [o.removeprefix("+") for o in overrides]
    run = subprocess.run(
        [sys.executable, "-m", "im2wav.train", *arguments(pairs, tmp_path, *overrides)],
        capture_output=True, text=True, env=PROCESS_ENVIRONMENT, check=False, timeout=200,
    )  # fmt: skip
    assert run.returncode != 0
    said = run.stderr + "".join(p.read_text() for p in Path(tmp_path).rglob("*_log.err"))
    assert "hydra/launcher=basic for one run after the other" in said
    assert launcher != "joblib" or run.stderr.count("error: ") == 1


@pytest.mark.slow
def test_ray_makes_one_run_for_each_combination(pairs, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    overrides = ["seed=0,1", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "-m"]
    run = subprocess.run(
        [sys.executable, "-m", "im2wav.train", *arguments(pairs, tmp_path, *overrides)],
        capture_output=True, text=True, env=PROCESS_ENVIRONMENT, check=False, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    (folder,) = (tmp_path / "base/sweeps").iterdir()
    found = [(folder / name / "config.yaml").read_text() for name in ("0", "1")]
    assert ["\nseed: 0\n" in found[0], "\nseed: 1\n" in found[1]] == [True, True]
    assert all((folder / name / "last.ckpt").is_file() for name in ("0", "1"))


@pytest.mark.slow
def test_the_wandb_agent_runs_the_real_entry(pairs, trained, tmp_path):
    """One point of the sweep, started as the agent starts it; expanded by wandb's own code, which needs no server."""
    from omegaconf import OmegaConf
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = OmegaConf.to_container(OmegaConf.load(REPO / "experiments/wandb_sweep.yaml"), resolve=False)
    point = {name: p.get("value", p.get("min", p.get("values", [None])[0])) for name, p in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    words |= {"interpreter": [sys.executable], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    line = []
    for word in create_sweep_command(sweep["command"]):
        line += words[word[2:-1]] if word.startswith("${") else [word]
    tiny = [f"data.root={pairs}", *TINY, *TINY_NET["low_prior"], f"paths.runs={tmp_path}", "trainer.max_steps=2"]
    tiny += [f"codec={trained}/base/vqvae/last.ckpt", "callbacks.progress=null"]  # behind the file's own: they win
    agent = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "point1", "WANDB_DIR": str(tmp_path)}
    run = subprocess.run(
        [*line, *tiny], capture_output=True, text=True, env=PROCESS_ENVIRONMENT | agent, check=False, timeout=200
    )
    assert run.returncode == 0, run.stderr[-3000:]
    out = tmp_path / "wandb_sweep/point1/low_prior"
    assert "lr: 0.0001" in (out / "config.yaml").read_text()
    (history,) = out.glob("wandb/offline-run-*-point1/*.wandb")  # the agent's run, which the server waits for
    item = sweep["metric"]["name"].encode() + rb"\x82\x01.([0-9.]+)"  # protobuf: a key, field 16, a length, JSON
    assert 0 < float(re.findall(item, history.read_bytes(), re.DOTALL)[-1]) < 20


def test_slurm_gets_one_task_for_each_device():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from im2wav.cli import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        words = ["model=low_prior", "hydra/launcher=slurm", "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2"]
        cfg = compose("train", words, return_hydra_config=True)
    launcher = OmegaConf.to_container(
        OmegaConf.masked_copy(cfg.hydra.launcher, ["tasks_per_node", "nodes"]), resolve=False
    )
    assert launcher == {"tasks_per_node": "${trainer.devices}", "nodes": "${trainer.num_nodes}"}
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert (cfg.hydra.launcher.tasks_per_node, cfg.hydra.launcher.nodes) == (8, 2)
