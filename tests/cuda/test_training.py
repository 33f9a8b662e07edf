"""The real `train` with its shipped GPU configurations."""

import pytest
import torch

from cuda.budget import check_budget

pytestmark = pytest.mark.fake_cuda
MODELS = ("vqvae", "low_prior", "up_prior")


@pytest.mark.parametrize("model", MODELS)
def test_trainer_gpu_trains_with_a_dashboard(card_runs, model):
    result, costs = card_runs.results[model], card_runs.costs[model]
    assert result["trainer"].global_step == 6
    assert result["trainer"].precision == "bf16-mixed"
    assert result["trainer"].gradient_clip_val == 1
    assert result["trainer"].optimizers[0].defaults["fused"]
    assert torch.stack(costs.losses).isfinite().all()
    assert (card_runs.folder / "base" / model / "media/step_00000003/index.html").is_file()


@pytest.mark.parametrize("model", MODELS)
def test_a_training_step_stays_within_its_budget(card_runs, model):
    costs = card_runs.costs[model]
    syncs = costs.syncs[4]  # no dashboard, no validation, no checkpoint
    measured = {"syncs": syncs.total(), "operations": costs.operations[4]}
    check_budget(f"training step of {model}", measured, dict(syncs))
