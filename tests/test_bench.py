"""Benchmarks give ratios to limits measured in the same run, and an exit code that tells the truth."""

import json

from conftest import command
from im2wav.bench import table
from im2wav.benchmarks import Row


def test_a_row_knows_whether_its_bar_holds():
    assert Row("a", 3, "s", limit=2, bar=1.5).holds is True
    assert Row("a", 3, "s", limit=2, bar=1.6).holds is False
    assert Row("a", 3, "s", limit=2, bar=1.6, at_least=False).holds is True
    assert Row("a", 3, "s").holds is None


def test_the_table_names_figure_limit_ratio_and_bar():
    text = table([Row("decode", 3.0, "ms", limit=2.0, limit_name="weights read once", bar=1.2, at_least=False)])
    assert all(part in text for part in ("decode", "3 ms", "2 ms (weights read once)", "1.500", "<= 1.2 MISSED"))


def test_the_machine_is_measured(tmp_path):
    assert command("bench", "measure.precisions=[fp32]", f"out={tmp_path / 'b.json'}", "device=cpu") == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["matmul, fp32", "memory read"]
    assert all(row["value"] > 0.1 for row in found["rows"])


def test_an_unknown_measurement_is_refused():
    assert command("bench", "measure=dreams") == 2


def test_an_unknown_precision_is_refused(capsys):
    assert command("bench", "measure.precisions=[fp8]") == 2
    assert "expected one of" in capsys.readouterr().err


def test_every_figure_of_decoding_is_measured(tmp_path):
    out = tmp_path / "d.json"
    tiny = ["measure.transformer={width:32,depth:3,blocks:8}", "measure.context={low:64,up:256}", "measure.rounds=1"]
    code = command(
        "bench", "measure=decode", *tiny, "measure.precisions=[fp32]", "measure.whole=true", f"out={out}", "device=cpu"
    )
    rows = json.loads(out.read_text())["rows"]
    assert code == int(any(row["holds"] is False for row in rows))
    names = [row["name"] for row in rows]
    for name in ("guided low code, fp32", "unguided up code, fp32", "peak memory, fp32", "start to first code, fp32"):
        assert name in names
    assert {"batch 1, fp32", "batch 8, fp32", "a sound of 0.128 s, batch 1", "last 16 codes of 64, fp32"} <= set(names)
    assert all(row["value"] > 0 for row in rows)


def test_the_official_way_draws_the_same_logits():
    """Two passes and growing caches are a fair reference only if they compute the same."""
    import torch

    from im2wav.benchmarks.official_way import GrowingSequence
    from im2wav.prior import Conditions
    from test_prior import low_prior

    prior, codes = low_prior(frames=False, timing=False), torch.randint(16, (1, 64))
    given = Conditions(torch.randn(1, 1, 6))
    with torch.no_grad():
        start, _ = prior.conditioner(given, 64)
        sequence = GrowingSequence(prior, torch.zeros(1, 32))
        inputs = [start, *(prior.code_embedding(codes[:, t]) for t in range(63))]
        logits = torch.stack([sequence.logits(x) for x in inputs], 1)
        torch.testing.assert_close(logits, prior(codes, given), rtol=1e-4, atol=1e-5)
