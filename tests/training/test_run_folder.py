"""One training at a time in the folder of a run; a start that is rejected changes nothing in it; other settings."""

import csv
import multiprocessing
import time

import pytest
import torch

from conftest import TINY, TINY_NET, command, tiny_config
from im2wav.train import train
from im2wav.training.run_folder import lock_run


def hold(folder, locked):
    with lock_run(folder):
        locked.set()
        time.sleep(100)


def arguments(pairs, folder, *overrides) -> list[str]:
    words = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], "callbacks.progress=null"]
    return [*words, "trainer.max_steps=2", f"paths.runs={folder}", f"hydra.run.dir={folder / 'run'}", *overrides]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_rejected_start_changes_nothing_in_the_folder(pairs, tmp_path, capfd):
    assert command("train", *arguments(pairs, tmp_path)) == 0
    before = contents(tmp_path / "run")
    names = {str(path.relative_to(tmp_path / "run")) for path in before}
    assert {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log", "config.yaml"} <= names
    assert "pairs to train on" in (tmp_path / "run/train.log").read_text()
    more = {
        "already holds a trained model": [],
        "does not exist": ["ckpt_path=nothing.ckpt"],
        "expected auto": ["overwrite=true", "callbacks.signals.requeue=maybe"],
        "num_nodes": ["overwrite=true", "trainer.num_nodes=0"],
    }
    for message, overrides in more.items():
        capfd.readouterr()
        assert command("train", *arguments(pairs, tmp_path, *overrides)) == 2
        assert message in capfd.readouterr().err
        assert contents(tmp_path / "run") == before


def test_a_second_training_into_the_folder_is_rejected_until_the_first_ends(pairs, tmp_path, capfd):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    holder = context.Process(target=hold, args=(folder, locked))
    holder.start()
    try:
        assert locked.wait(60)
        assert command("train", *arguments(pairs, tmp_path, "overwrite=true")) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert f"{folder} is in use by process {holder.pid} on " in line
        assert "run_name=NAME" in line
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        holder.kill()
        holder.join()
    assert command("train", *arguments(pairs, tmp_path, "overwrite=true")) == 0


def test_a_resumed_run_uses_the_new_optimizer_settings_and_says_so(pairs, tmp_path, caplog):
    common = ["data.windows_per_epoch=5", "resume=auto", "callbacks.progress=null"]
    first = ["trainer.max_steps=2", "model.optimizer.lr=0.01", "model.scheduler.steps=1"]
    train(tiny_config("vqvae", pairs, tmp_path, *common, *first))
    caplog.clear()
    caplog.set_level("INFO")
    again = ["trainer.max_steps=4", "scheduler=linear", "model.scheduler.steps=1", "model.optimizer.lr=0.004"]
    result = train(tiny_config("vqvae", pairs, tmp_path, *common, *again, "model.optimizer.weight_decay=0.5"))
    (line,) = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert line.startswith("from step 2 on with other settings: ")
    assert "model.optimizer.lr=0.004 (was 0.01)" in line
    assert "model.optimizer.weight_decay=0.5 (was 0.0)" in line
    assert "model.scheduler.shape=linear (was None)" in line
    decayed, plain = result["trainer"].optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    with (tmp_path / "csv/version_1/metrics.csv").open() as file:
        rates = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file) if row["lr-AdamW/pg1"]]
    assert rates == pytest.approx([0.004 * (1 - 1 / 3), 0.004 * (1 - 2 / 3)])  # of steps 2 and 3
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lr_schedulers"][0]["base_lrs"] == [0.004, 0.004]
    caplog.clear()
    train(
        tiny_config(
            "vqvae", pairs, tmp_path, *common, *again[1:], "trainer.max_steps=4", "model.optimizer.weight_decay=0.5"
        )
    )
    assert "other settings" not in caplog.text


def test_settings_that_an_optimizer_state_cannot_take_over_are_rejected(pairs, tmp_path):
    common = ["data.windows_per_epoch=5", "resume=auto", "trainer.max_steps=1"]
    train(tiny_config("vqvae", pairs, tmp_path, *common))
    with pytest.raises(ValueError, match=r"trained with model.decay_everything=False, now True"):
        train(tiny_config("vqvae", pairs, tmp_path, *common, "model.decay_everything=true"))


def test_slurm_variables_without_srun_are_ignored(pairs, tmp_path, monkeypatch, capfd):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
    assert command("train", *arguments(pairs, tmp_path)) == 0
    assert "SLURM_NTASKS=2 without srun: SLURM is ignored" in capfd.readouterr().out
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
    assert command("train", *arguments(pairs, tmp_path, "overwrite=true", "trainer.num_nodes=2")) == 2
    assert "trainer.num_nodes=2 in a SLURM job (SLURM_NTASKS=2) without srun" in capfd.readouterr().err
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # srun --ntasks=2
    assert command("train", *arguments(pairs, tmp_path, "overwrite=true")) == 2
    assert "--ntasks-per-node=2" in capfd.readouterr().err


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    for name in (".writing-best", "checkpoints/.writing-step", ".hydra/.writing-config", "csv/metrics.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with lock_run(tmp_path):
        assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {".lock", "metrics.csv"}
