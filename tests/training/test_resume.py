"""Runs that are killed, interrupted by a signal, or given non-finite data."""

import csv
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from conftest import TINY, TINY_NET, command, tiny_config
from im2wav.train import train
from im2wav.training.checkpoints import Checkpoints, checkpoint_error, find_newest_checkpoint

LOGGED = ["trainer.log_every_n_steps=1", "callbacks.progress=null"]


def losses(folder) -> dict[int, str]:
    """Step -> loss as written, over all starts of a run; a step that two starts made must have the same in both."""
    found: dict[int, str] = {}
    for path in sorted((folder / "csv").glob("version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    step = int(row["step"])
                    assert found.setdefault(step, row["train/loss"]) == row["train/loss"], f"step {step} differs"
    return found


RUN = ["data.batch_size=2", "data.windows_per_epoch=16", "callbacks.checkpoint.every_n_steps=3"]
RUN += ["trainer.max_steps=24", "resume=auto"]


def arguments(pairs, folder, *overrides) -> list[str]:
    words = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], *LOGGED, *RUN]
    return [*words, f"paths.runs={folder}", f"hydra.run.dir={folder / 'run'}", *overrides]


def start(pairs, folder, *overrides, **environment) -> subprocess.Popen:
    """The real command, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "im2wav.train", *arguments(pairs, folder, *overrides)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many as in the processes that are killed: sums are rounded by how they are shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert command("train", *arguments(pairs, folder)) == 0
    return folder / "run"


def same_end(one, other):
    ends = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other)]
    for part in ("state_dict", "current_model_state"):
        for name, value in ends[0][part].items():
            assert (ends[1][part][name] == value).all(), name
    moments = [end["optimizer_states"][0]["state"] for end in ends]
    for number, state in moments[0].items():
        assert all((moments[1][number][name] == value).all() for name, value in state.items())
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    assert ends[0]["callbacks"].keys() == ends[1]["callbacks"].keys()


def same_losses(one, other, saved):
    """The step that a checkpoint was made in may be missing in the log: it is written after the checkpoint."""
    found, expected = losses(one), losses(other)
    assert expected.keys() - found.keys() <= {saved - 1}
    assert found == {step: loss for step, loss in expected.items() if step in found}


def test_a_killed_run_continues_to_the_same_losses_to_the_last_bit(pairs, unbroken, tmp_path, capfd):
    process = start(pairs, tmp_path)
    wait_for(tmp_path / "run/checkpoints/step_00000012.ckpt", process)  # epochs are of 8 steps: in the middle of one
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    newest = find_newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert command("train", *arguments(pairs, tmp_path)) == 0
    assert f"resuming from {newest}" in capfd.readouterr().out
    assert len(list((tmp_path / "run/csv").iterdir())) == 2
    assert len(losses(unbroken)) == 24
    same_losses(tmp_path / "run", unbroken, int(newest.stem[5:]))
    same_end(unbroken, tmp_path / "run")


def saved_step(output: str) -> int:
    """The step of the checkpoint that an interrupted run says it saved."""
    return int(output.split("saved a checkpoint at step ")[1].split(";")[0])


def test_a_signal_to_all_processes_saves_and_says_so(pairs, unbroken, tmp_path):
    process = start(pairs, tmp_path, "callbacks.checkpoint.every_n_steps=null", "data.num_workers=2")
    wait_for(tmp_path / "run/last.ckpt", process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert "DataLoader worker" not in output
    step = saved_step(output)
    assert command("train", *arguments(pairs, tmp_path)) == 0
    same_losses(tmp_path / "run", unbroken, step)
    same_end(unbroken, tmp_path / "run")


def test_a_broken_newest_checkpoint_is_passed_over(pairs, trained, tmp_path, caplog):
    cfg = ["data.windows_per_epoch=5", "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=3"]
    result = train(tiny_config("vqvae", pairs, tmp_path, *cfg, "trainer.max_steps=4"))
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step_00000002.ckpt", "step_00000003.ckpt", "step_00000004.ckpt"]  # pruned to three
    assert checkpoint_error(tmp_path / "last.ckpt") is None
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["kind"] == "vqvae"
    whole = (tmp_path / "checkpoints" / steps[2]).read_bytes()
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "checkpoints" / steps[2]).write_bytes(whole[: len(whole) // 2])  # cut
    changed = bytearray((tmp_path / "checkpoints" / steps[1]).read_bytes())
    with zipfile.ZipFile(tmp_path / "checkpoints" / steps[1]) as archive:
        content = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    changed[changed.index(content) + len(content) // 2] ^= 1  # one bit of a tensor; padding has no checksum
    (tmp_path / "checkpoints" / steps[1]).write_bytes(changed)
    again = train(tiny_config("vqvae", pairs, tmp_path, *cfg, "trainer.max_steps=4", "resume=auto"))
    assert "step_00000004.ckpt is not complete" in caplog.text
    assert "step_00000003.ckpt is not complete" in caplog.text
    for name, value in result["module"].state_dict().items():
        assert (again["module"].state_dict()[name] == value).all()
    for path in [tmp_path / "last.ckpt", *(tmp_path / "checkpoints").iterdir()]:
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 4 checkpoints in .* is complete"):
        train(tiny_config("vqvae", pairs, tmp_path, *cfg, "resume=auto"))


def test_a_run_that_dies_in_the_last_validation_makes_it_after_resuming(pairs, tmp_path, monkeypatch):
    def die(callback, trainer, module):
        if trainer.global_step == 4:
            raise RuntimeError("killed")

    cfg = ["data.windows_per_epoch=10", "callbacks.checkpoint.every_n_steps=2", "trainer.max_steps=4", "resume=auto"]
    train(tiny_config("vqvae", pairs, tmp_path / "whole", *cfg))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_validation_start", die, raising=False)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny_config("vqvae", pairs, tmp_path / "killed", *cfg))
    train(tiny_config("vqvae", pairs, tmp_path / "killed", *cfg))
    same_end(tmp_path / "whole", tmp_path / "killed")
    best = [torch.load(tmp_path / name / "best.ckpt", weights_only=True) for name in ("whole", "killed")]
    assert best[0]["global_step"] == best[1]["global_step"] == 4
    assert best[0]["callbacks"] == best[1]["callbacks"]


def test_resume_auto_of_a_finished_run_changes_nothing(pairs, tmp_path):
    cfg = tiny_config("vqvae", pairs, tmp_path, "trainer.max_steps=2", "resume=auto")
    train(cfg)
    before = (tmp_path / "last.ckpt").read_bytes()
    train(cfg)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def poisoned(monkeypatch, calls):
    """Batches of these numbers become NaN."""
    from im2wav.training.vqvae import VQVAE

    count, whole = [0], VQVAE.training_step

    def step(self, batch, batch_idx):
        count[0] += 1
        return whole(self, batch._replace(wav=batch.wav * float("nan")) if count[0] in calls else batch, batch_idx)

    monkeypatch.setattr(VQVAE, "training_step", step)


def test_a_bad_step_moves_nothing_and_is_written_down(pairs, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2})
    overrides = ["trainer.max_steps=3", "data.windows_per_epoch=5", "callbacks.checkpoint.every_n_steps=1"]
    result = train(tiny_config("vqvae", pairs, tmp_path, *overrides, "callbacks.checkpoint.keep=9"))
    one, two, three = (torch.load(tmp_path / f"checkpoints/step_0000000{n}.ckpt", weights_only=True) for n in (1, 2, 3))
    for name, value in one["current_model_state"].items():
        assert (two["current_model_state"][name] == value).all(), name
    assert any((three["current_model_state"][k] != v).any() for k, v in one["current_model_state"].items())
    assert all(value.isfinite().all() for value in result["module"].state_dict().values())
    with (tmp_path / "skipped_steps.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["step"], row["loss"]) == ("1", "nan")
    assert len(row["ids"].split()) == 5


def test_too_many_bad_steps_end_the_training(pairs, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 4, 5, 6})
    overrides = ["data.windows_per_epoch=5", "callbacks.skip_non_finite.max_in_row=3"]
    with pytest.raises(ValueError, match=r"3 consecutive steps .*skipped_steps.csv"):
        train(tiny_config("vqvae", pairs, tmp_path, *overrides, "trainer.max_steps=9"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail at "
    "alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate")])  # fmt: skip
def test_running_out_of_memory_names_the_options_that_help(pairs, trained, tmp_path, monkeypatch, error):
    from im2wav.training.priors import PriorModule

    def step(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(PriorModule, "training_step", step)
    with pytest.raises(ValueError, match=r"data.batch_size=5 lower .*checkpointing=true.*bf16-mixed"):
        train(tiny_config("low_prior", pairs, tmp_path, f"codec={trained}/base/vqvae/last.ckpt"))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from im2wav.training.checkpoints import AtomicCheckpointIO

    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"kind": "vqvae"}, path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError, match=r"cannot write .*a\.ckpt: No space left on device"):
        AtomicCheckpointIO().save_checkpoint({"kind": "other"}, path)
    assert checkpoint_error(path) is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_slurm_gets_its_job_back(monkeypatch, caplog):
    from im2wav.training.signals import requeue_job

    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda args, **_: commands.append(args) or subprocess.CompletedProcess(args, 0)
    )
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    requeue_job()
    assert "outside SLURM" in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    requeue_job()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    requeue_job()
    assert commands == [["scontrol", "requeue", "9"], ["scontrol", "requeue", "7_2"]]


def test_a_run_that_continues_is_one_run_in_wandb(pairs, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    ids = []
    for steps, more in ((1, []), (2, ["resume=auto"]), (1, ["overwrite=true"])):
        train(tiny_config("vqvae", pairs, tmp_path, "logger=wandb", f"trainer.max_steps={steps}", *more))
        ids.append((tmp_path / "wandb_run_id.txt").read_text())
    assert ids[0] == ids[1] != ids[2]
    # offline-run-TIME-ID, and -1 behind it where two begin within a second
    names = [path.name.split("-")[3] for path in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert set(names) == set(ids)
