"""Training in every precision, by the real Trainer."""

import pytest

from conftest import tiny_config
from im2wav.train import train

MODELS = ("vqvae", "low_prior", "up_prior")


def run(model: str, pairs, trained, out, *overrides: str):
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    return train(tiny_config(model, pairs, out, codec, "callbacks.progress=null", *overrides))


@pytest.mark.parametrize("model", MODELS)
def test_bf16_mixed_trains_with_the_default_optimizer_and_clipping(model, pairs, trained, tmp_path):
    """Fused AdamW with gradient clipping: what Lightning alone rejects (Lightning #21435)."""
    result = run(model, pairs, trained, tmp_path, "trainer.precision=bf16-mixed", "trainer.max_steps=2")
    optimizer = result["trainer"].optimizers[0]
    assert optimizer.defaults["fused"] is True
    assert result["trainer"].gradient_clip_val == 1.0
    assert result["trainer"].global_step == 2
    gradients = [p.grad for p in result["module"].parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
