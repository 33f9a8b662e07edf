"""`debug=` configs, each through a whole small run."""

import pytest
import torch

from conftest import logged_values, tiny_config
from im2wav.train import train


def test_fdr_leaves_nothing_behind(pairs, tmp_path):
    train(tiny_config("vqvae", pairs, tmp_path, "debug=fdr"))
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "csv").exists()


def test_overfit_learns_one_batch_by_heart(pairs, trained, tmp_path):
    more = ["trainer.max_steps=60", "model.optimizer.lr=0.01", "+model.net.transformer.init_scale=5"]
    more += ["model.scheduler.steps=5", "model.condition_dropout=0.1", f"codec={trained}/base/vqvae/last.ckpt"]
    train(tiny_config("low_prior", pairs, tmp_path, "debug=overfit", *more))
    found = logged_values(tmp_path)
    assert len(found) == 60
    assert sum(found[-5:]) / 5 < 0.7 * found[0]


def test_limit_goes_the_whole_way(pairs, tmp_path):
    train(tiny_config("vqvae", pairs, tmp_path, "debug=limit", "data.windows_per_epoch=100", "data.batch_size=2"))
    assert len(logged_values(tmp_path)) == 30
    assert (tmp_path / "media/step_00000020/index.html").is_file()
    assert (tmp_path / "best.ckpt").is_file()


def test_profiler_writes_a_table(pairs, tmp_path):
    train(tiny_config("vqvae", pairs, tmp_path, "debug=profiler", "trainer.max_steps=6"))
    (path,) = tmp_path.glob("*profile*.txt")
    assert "run_training_batch" in path.read_text()


def test_anomaly_names_the_operation(pairs, tmp_path, monkeypatch):
    from im2wav.training.vqvae import VQVAE

    whole = VQVAE.training_step

    def step(self, batch, batch_idx):
        zero = torch.zeros(1, requires_grad=True)
        return whole(self, batch, batch_idx) + (zero * zero).sqrt().sum()  # its gradient is 0 / 0

    monkeypatch.setattr(VQVAE, "training_step", step)
    with pytest.raises(RuntimeError, match="returned nan values"):
        train(tiny_config("vqvae", pairs, tmp_path, "debug=anomaly", "trainer.max_steps=2"))
