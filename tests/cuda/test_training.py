"""The real `train` on the card: as it is shipped, and in other precisions, strategies and options."""

import gc

import pytest
import torch

from cuda.budget import check_budget

pytestmark = [pytest.mark.fake_cuda, pytest.mark.slow]
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


@pytest.fixture
def train(machine, pairs, card_runs, tmp_path):
    """Train a tiny model on the card in a run of its own, 3 steps."""
    from cuda.training import train_tiny

    def call(model, *overrides, name=tmp_path.name):
        options = ["trainer=gpu", "trainer.max_steps=3", "callbacks.dashboard.every_n_steps=null", *overrides]
        result, costs = train_tiny(model, pairs, card_runs.folder, *options, run_name=name)
        assert torch.stack(costs.losses).isfinite().all()
        return result, costs

    return call


def weights(result) -> dict[str, torch.Tensor]:
    """The trained weights, from the checkpoint, on the CPU."""
    return torch.load(result["checkpoint"], map_location="cpu", weights_only=True)["current_model_state"]


def assert_finite(result) -> None:
    for name, weight in weights(result).items():
        assert weight.isfinite().all(), name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "32-true"])
def test_precisions(train, model, precision):
    result, _ = train(model, f"trainer.precision={precision}")
    assert result["trainer"].global_step == 3
    assert_finite(result)


@pytest.mark.parametrize("model", MODELS)
def test_training_in_fp32_gives_the_weights_of_the_cpu(train, model):
    card, costs = train(model, "trainer.precision=32-true", name="fp32_card")
    cpu, cpu_costs = train(model, "trainer.precision=32-true", "trainer.accelerator=cpu", name="fp32_cpu")
    torch.testing.assert_close(torch.stack(costs.losses), torch.stack(cpu_costs.losses), rtol=1e-4, atol=1e-5)
    expected = weights(cpu)
    for name, weight in weights(card).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_fp16_skips_a_step_that_overflows_and_lowers_the_loss_scale(train, monkeypatch):
    initial = 2.0**60
    defaults = torch.amp.GradScaler.__init__
    monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", lambda self, *a, **k: defaults(self, *a, **k | {"init_scale": initial})
    )
    result, costs = train("low_prior", "trainer.precision=16-mixed")
    assert costs.scales == [initial / 2, initial / 4, initial / 8]
    skipped = (card_folder(result) / "skipped_steps.csv").read_text().splitlines()
    assert len(skipped) == 1 + 3
    for name, weight in result["module"].net.named_parameters():
        assert torch.equal(weight.detach().cpu(), costs.initial[name]), name


def test_fp16_without_an_overflow_makes_every_step(train):
    result, costs = train("low_prior", "trainer.precision=16-mixed")
    assert costs.scales == [65536.0] * 3
    assert not (card_folder(result) / "skipped_steps.csv").exists()


def card_folder(result):
    from pathlib import Path

    return Path(result["checkpoint"]).parent


@pytest.mark.parametrize("model", MODELS)
def test_accumulated_batches(train, model):
    result, costs = train(model, "trainer.accumulate_grad_batches=2")
    assert (result["trainer"].global_step, len(costs.losses)) == (3, 6)
    assert_finite(result)


@pytest.mark.parametrize("model", ["low_prior", "up_prior"])
def test_activation_checkpointing(train, model):
    again = "model.net.transformer={width: 32, depth: 3, heads: 2, blocks: 8, checkpointing: true}"
    _, costs = train(model, "trainer.precision=32-true", again, name="again")
    _, plain = train(model, "trainer.precision=32-true", name="not_again")
    torch.testing.assert_close(torch.stack(costs.losses), torch.stack(plain.losses))
    assert costs.operations[1] > plain.operations[1]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_resumed(train, model):
    first, _ = train(model, "trainer.max_steps=2")
    second, costs = train(model, "trainer.max_steps=4", "resume=auto")
    assert (first["trainer"].global_step, second["trainer"].global_step, len(costs.losses)) == (2, 4, 2)


@pytest.mark.parametrize("model", ["low_prior", "up_prior"])
def test_the_dashboard_with_a_partner(train, card_runs, model):
    partner = f"callbacks.dashboard.partner={card_runs.folder}/base"
    result, _ = train(model, "callbacks.dashboard.every_n_steps=2", partner)
    assert (card_folder(result) / "media/step_00000002/index.html").is_file()


def test_the_memory_of_a_dashboard_event_is_freed_without_garbage_collection(train):
    gc.collect()
    gc.disable()
    try:
        _, costs = train("low_prior", "callbacks.dashboard.every_n_steps=3", "trainer.max_steps=4")
    finally:
        gc.enable()
    assert costs.allocated[2:] == [costs.allocated[1]] * 2


@pytest.mark.parametrize("model", MODELS)
def test_trainer_ddp(train, model):
    try:  # on the one device that there is; NCCL is not simulated
        result, costs = train(model, "trainer=ddp", "+trainer.strategy.process_group_backend=gloo")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert type(result["trainer"].strategy).__name__ == "DDPStrategy"
    assert result["trainer"].precision == "bf16-mixed"
    assert (result["trainer"].global_step, len(costs.losses)) == (3, 3)
    assert_finite(result)
