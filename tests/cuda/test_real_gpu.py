"""What a simulated card cannot show: kernels, streams and memory of a real GPU. Skipped without one."""

import pytest
import torch

from conftest import ASSETS, tiny_config
from cuda.test_decoding import prior, start

pytestmark = pytest.mark.gpu
MODELS = ("vqvae", "low_prior", "up_prior")


@pytest.fixture(scope="session")
def gpu_runs(pairs, tmp_path_factory):
    """The three models, trained for a few steps on the GPU with the shipped configuration and a dashboard."""
    from im2wav.train import train

    runs = tmp_path_factory.mktemp("gpu_runs")
    for model in MODELS:
        more = ["trainer=gpu", "trainer.max_steps=6", "callbacks.dashboard.every_n_steps=3", "data.num_workers=2"]
        folder = runs / "base" / model
        result = train(tiny_config(model, pairs, folder, *more, f"codec={runs}/base/vqvae/last.ckpt"))
        assert result["trainer"].global_step == 6
        assert torch.tensor(result["train/loss"]).isfinite()
    return runs


def test_training_and_generation(gpu_runs):
    from im2wav import Im2Wav

    model = Im2Wav.from_pretrained(gpu_runs / "base", device="cuda")
    first, second = (model.generate(ASSETS / "images" / "bird_02.jpg", seed=1) for _ in range(2))
    assert torch.equal(first.codes["up"], second.codes["up"])  # also with the graph of the first time


@pytest.mark.parametrize("level", ["low", "up"])
def test_nothing_waits_after_the_first_code(level):
    from im2wav.generation import Decoder

    decoding = start(Decoder(prior(level).to("cuda"), "bf16"), level)
    decoding.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoding.steps(20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoding.codes[:, :21].max() < 64
