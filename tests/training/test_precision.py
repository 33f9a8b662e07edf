"""Training in every precision, by the real Trainer with its default callbacks."""

import pytest
import torch

from conftest import logged_values, tiny_config
from im2wav.train import train

MODELS = ("vqvae", "low_prior", "up_prior")
CHECKPOINTING = "model.net.transformer.checkpointing=true"
# two passes a step, clipping that is felt, and an average that moves
EVERYTHING = ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1", "callbacks.ema.decay=0.5"]


def run(model: str, pairs, trained, out, *overrides: str):
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    quiet = ["callbacks.progress=null", "callbacks.monitor=null", "trainer.limit_val_batches=0"]
    return train(tiny_config(model, pairs, out, codec, *quiet, *overrides))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("model", MODELS)
def test_every_precision_trains_and_resumes_to_the_same_weights(model, precision, pairs, trained, tmp_path):
    options = [f"trainer.precision={precision}", "data.batch_size=2", "data.windows_per_epoch=100", *EVERYTHING]
    options += [CHECKPOINTING] * (model != "vqvae")
    whole = run(model, pairs, trained, tmp_path / "whole", *options, "trainer.max_steps=2")
    run(model, pairs, trained, tmp_path / "parts", *options, "trainer.max_steps=1")
    parts = run(model, pairs, trained, tmp_path / "parts", *options, "trainer.max_steps=2", "resume=auto")

    assert whole["trainer"].optimizers[0].defaults["fused"] is True
    assert whole["trainer"].global_step == parts["trainer"].global_step == 2
    first, second = (torch.load(r["checkpoint"], weights_only=True) for r in (whole, parts))
    for state in ("state_dict", "current_model_state"):
        for name, value in first[state].items():
            assert torch.equal(value, second[state][name]), f"{state}: {name}"
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in whole["module"].parameters()} == {expected}
    assert {v.dtype for k, v in first["state_dict"].items() if "initialised" not in k} == {torch.float32}


@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_in_bf16_mixed_lower_the_loss(model, pairs, trained, tmp_path):
    """Fused AdamW with gradient clipping, which Lightning alone rejects (Lightning #21435)."""
    options = ["trainer.precision=bf16-mixed", "trainer.max_steps=20", "data.crop=start"]
    result = run(model, pairs, trained, tmp_path, *options, "model.optimizer.lr=1e-3", "model.scheduler.steps=1")
    assert result["trainer"].gradient_clip_val == 1.0
    losses = logged_values(tmp_path)
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.99 * sum(losses[:5]), losses


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_keeps_its_precision_where_the_weights_are_bf16(model, pairs, trained, tmp_path):
    """Audio rounded to bf16 would give other codes, and window offsets in samples would be rounded away."""
    result = run(model, pairs, trained, tmp_path, "trainer.precision=bf16-true", "trainer.max_steps=1")
    batch = next(iter(result["datamodule"].train_dataloader()))
    assert result["trainer"].precision_plugin.convert_input(batch).wav.dtype == torch.float32
