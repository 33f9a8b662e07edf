"""compile=true: the same losses, and each kind of layer compiled once, whatever else the run does."""

import pytest
import torch

from conftest import logged_values, needs_compiler, tiny_config
from im2wav.train import train

SMALL = "model.net.transformer={width: 32, depth: %d, heads: 2, blocks: 8}"
# model; backend (`eager` traces and generates no code, which takes a quarter of a minute and more); sizes; number of
# graphs, one for each kind of layer, and for an encoder and a decoder of each codec level; precision
CASES = [
    pytest.param("low_prior", "inductor", SMALL % 1, 1, "32-true", marks=[needs_compiler, pytest.mark.slow]),
    ("low_prior", "eager", SMALL % 4, 3, "32-true"),
    ("vqvae", "eager", "model.net.depth=1", 4, "32-true"),
    pytest.param("low_prior", "eager", SMALL % 3, 3, "bf16-mixed", marks=pytest.mark.slow),
    ("up_prior", "eager", SMALL % 3, 3, "bf16-mixed"),
    pytest.param("vqvae", "eager", "model.net.depth=1", 4, "bf16-mixed", marks=pytest.mark.slow),
]


def losses(folder) -> list[float]:
    return [value for name in ("train/loss", "valid/loss") for value in logged_values(folder, name)]


@pytest.mark.parametrize(("model", "backend", "size", "graphs", "precision"), CASES, ids=lambda x: str(x).split("=")[0])
def test_compiled_training_has_the_same_losses_and_compiles_each_kind_once(
    pairs, trained, tmp_path, monkeypatch, model, backend, size, graphs, precision
):
    """Validation, with batches of another size, and the dashboard are between the steps."""
    from torch._dynamo.utils import counters

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile_(self, backend=backend, **options))
    always = [f"codec={trained}/base/vqvae/last.ckpt", "trainer.max_steps=3", "callbacks.dashboard.every_n_steps=2"]
    always += ["data.batch_size=2", "data.windows_per_epoch=4", "callbacks.dashboard.items=1", "callbacks.ema=null"]
    always += ["callbacks.dashboard.guidance=[1]", f"trainer.precision={precision}", size]
    train(tiny_config(model, pairs, tmp_path / "eager", *always))
    torch._dynamo.reset()
    counters.clear()
    try:
        train(tiny_config(model, pairs, tmp_path / "compiled", *always, "compile=true"))
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]
    finally:
        torch._dynamo.reset()
    wanted = losses(tmp_path / "eager")
    assert len(wanted) == 4
    torch.testing.assert_close(losses(tmp_path / "compiled"), wanted, rtol=1e-4, atol=1e-5)
