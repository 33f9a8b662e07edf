"""Training that is interrupted by a signal at any moment: it saves, all processes stop together, and it resumes."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from test_resume import arguments, losses, one_thread, same_end, same_losses, saved_step, unbroken  # noqa: F401

from conftest import command, tiny_config
from im2wav.system import Interrupted
from im2wav.training.signals import StopOnSignal

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143, signal.SIGUSR2: 143}


class Send(pl.Callback):
    """Sends a signal to its own process in a hook, at a global step and rank."""

    def __init__(self, number: int, hook: str = "on_train_batch_start", step: int = 2, rank: int = 0):
        self.number, self.hook, self.step, self.rank = number, hook, step, rank
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if trainer.global_step == self.step and trainer.global_rank == self.rank and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)


def sending(number: int, **where) -> str:
    options = ", ".join(f"{key}: {value}" for key, value in {"number": int(number), **where}.items())
    return f"+callbacks.spy={{_target_: test_signals.Send, {options}}}"


@pytest.mark.parametrize("number", EXIT_CODES)
def test_each_signal_saves_after_its_step(pairs, tmp_path, number, capfd):
    assert command("train", *arguments(pairs, tmp_path, sending(number))) == EXIT_CODES[number]
    assert (
        f"interrupted by {number.name}: saved a checkpoint at step 3; resume with resume=auto" in capfd.readouterr().out
    )
    end = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert end["global_step"] == 3
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000003.ckpt"]


def test_a_validation_is_left_and_repeated(pairs, unbroken, tmp_path, capfd):  # noqa: F811
    where = {"hook": "on_validation_batch_start", "step": 16}
    assert command("train", *arguments(pairs, tmp_path, sending(signal.SIGTERM, **where))) == 143
    assert saved_step(capfd.readouterr().out) == 16
    assert command("train", *arguments(pairs, tmp_path)) == 0
    same_losses(tmp_path / "run", unbroken, 16)
    same_end(unbroken, tmp_path / "run")
    best = [torch.load(run / "best.ckpt", weights_only=True) for run in (unbroken, tmp_path / "run")]
    assert best[0]["global_step"] == best[1]["global_step"]


def test_a_stop_before_training_says_that_there_is_nothing_to_save(pairs, tmp_path, capfd):
    where = {"hook": "on_fit_start", "step": 0}
    assert command("train", *arguments(pairs, tmp_path, sending(signal.SIGTERM, **where))) == 143
    assert "before the first step: nothing to save; the same command starts again" in capfd.readouterr().out
    assert not (tmp_path / "run/last.ckpt").exists()


def test_slurm_gets_its_job_back_after_sigusr1_only(pairs, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr("im2wav.training.signals.requeue_job", lambda: jobs.append(os.environ["SLURM_JOB_ID"]))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert command("train", *arguments(pairs, tmp_path / number.name, sending(number))) == 143
    assert jobs == ["7"]
    with pytest.raises(ValueError, match="requeue=sometimes: expected auto, true or false"):
        StopOnSignal("sometimes")


def test_submitit_requeues_in_its_own_way_after_the_checkpoint(pairs, tmp_path):
    saved = []

    def requeue(number, frame):
        saved.append((number, (tmp_path / "last.ckpt").is_file()))

    requeue.__module__ = "submitit.core.job_environment"
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        from im2wav.train import train

        with pytest.raises(Interrupted):
            train(tiny_config("vqvae", pairs, tmp_path, sending(signal.SIGUSR2, step=0)))
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert saved == [(signal.SIGUSR2, True)]
