"""The average of the weights: its numbers, its dtype, its device, and its place in checkpoints."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conftest import tiny_config
from im2wav.checkpoint import load
from im2wav.train import train
from im2wav.training.ema import EMA


class Small(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))


def steps(ema: EMA, module: Small, count: int, start: int = 0):
    """Change the weights and the buffers, and report each step to the callback."""
    for step in range(start + 1, start + count + 1):
        for value in [*module.parameters(), *module.buffers()]:
            value.data.copy_(torch.randn(value.shape, device=value.device) * 100)
        ema.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)
        yield


def started(module: Small, **options) -> EMA:
    ema = EMA(**options)
    ema.setup(SimpleNamespace(), module, "fit")
    return ema


def test_the_average_is_that_of_pytorch_to_the_last_bit():
    torch.manual_seed(0)
    module = Small()
    options = {"decay": 0.9, "warmup": False}
    ema, expected = started(module, **options), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in steps(ema, module, 5):
        expected.update_parameters(module)
        for name, value in ema.averaged.state_dict().items():
            assert (value == expected.module.state_dict()[name]).all(), name
    assert (ema.averaged.net[0].weight != module.net[0].weight).any()


def test_the_average_of_a_short_training_does_not_hold_the_first_weights():
    ema, module = started(Small()), Small()
    weight = module.net[0].weight
    for step in range(1, 101):
        weight.data.fill_(float(step == 1))  # the first weights are the only ones that are not zero
        ema.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)
    kept = 1.0
    for n in range(1, 100):
        kept *= min(0.999, (1 + n) / (10 + n))
    torch.testing.assert_close(ema.averaged.net[0].weight.mean().item(), kept, rtol=1e-4, atol=0)
    assert kept < 1e-9 < 0.9 < 0.999**99


def test_the_average_is_on_the_device_of_the_weights_and_no_update_waits():
    """Reading a value of a "meta" tensor, or copying one to a CPU, is an error."""
    module = Small()
    ema = started(module)
    module.to("meta")
    ema.on_fit_start(SimpleNamespace(strategy=None), module)
    assert {value.device.type for value in ema.averaged.state_dict().values()} == {"meta"}
    assert len(list(steps(ema, module, 3))) == ema.num_updates == 3


def test_the_average_of_bf16_weights_moves_and_validation_does_not_round_it():
    torch.manual_seed(0)
    module = Small()
    ema = started(module)
    module.bfloat16()
    list(steps(ema, module, 1))
    first = ema.averaged.net[0].weight.clone()
    list(steps(ema, module, 3, start=1))
    average, live = ema.averaged.net[0].weight.clone(), module.net[0].weight.clone()
    assert average.dtype == torch.float32
    assert (average != first).all()
    assert (average.bfloat16() != average).any()
    ema.on_validation_epoch_start(SimpleNamespace(), module)
    assert (module.net[0].weight == average.bfloat16()).all()
    ema.on_validation_epoch_end(SimpleNamespace(), module)
    assert (module.net[0].weight == live).all()
    assert (ema.averaged.net[0].weight == average).all()


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": "slow"}, {"update_every_n_steps": 0}])
def test_options_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match=r"callbacks.ema.(decay|update_every_n_steps)="):
        EMA(**options)


@pytest.mark.parametrize("model", ["vqvae", "low_prior"])
def test_bf16_true_trains_with_ema_resumes_and_loads(model, pairs, trained, tmp_path):
    def run(name: str, *overrides: str):
        common = [f"codec={trained}/base/vqvae/last.ckpt", "trainer.precision=bf16-true", "callbacks.progress=null"]
        common += ["data.windows_per_epoch=10", "callbacks.checkpoint.every_n_steps=3", "callbacks.checkpoint.keep=9"]
        cfg = tiny_config(model, pairs, tmp_path / name, *common, "trainer.max_steps=5", *overrides)
        return torch.load(train(cfg)["checkpoint"], weights_only=True)

    unbroken = run("unbroken")
    resumed = run("resumed", f"ckpt_path={tmp_path}/unbroken/checkpoints/step_00000003.ckpt")
    for part, dtype in (("state_dict", torch.float32), ("current_model_state", torch.bfloat16)):
        for name, value in unbroken[part].items():
            assert value.dtype == (
                torch.bool if "initialised" in name else torch.float32 if "codebooks" in name else dtype
            )
            assert (resumed[part][name] == value).all(), name
    assert resumed["averaging_state"] == unbroken["averaging_state"] == {"n_averaged": torch.tensor(5)}
    net = load(tmp_path / "resumed/last.ckpt", model).net
    assert {p.dtype for p in net.parameters()} == {torch.float32}
