"""Benchmarks give ratios to limits measured in the same run, and an exit code that tells the truth."""

import importlib
import json
import sys

import torch

from conftest import HAS_COMPILER, command
from im2wav.bench import format_rows
from im2wav.benchmarks import Row


def test_a_row_knows_whether_its_bar_holds():
    assert Row("a", 3, "s", limit=2, bar=1.5).holds is True
    assert Row("a", 3, "s", limit=2, bar=1.6).holds is False
    assert Row("a", 3, "s", limit=2, bar=1.6, at_least=False).holds is True
    assert Row("a", 3, "s").holds is None


def test_the_table_names_figure_limit_ratio_and_bar():
    text = format_rows([Row("decode", 3.0, "ms", limit=2.0, limit_name="weights read once", bar=1.2, at_least=False)])
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


def test_the_evaluation_is_timed(tmp_path):
    options = ["measure=evaluate", "measure.sounds=6", "measure.seconds=1", f"out={tmp_path / 'b.json'}"]
    assert command("bench", *options) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["unit"] for row in rows] == ["min", "min", "GB"]
    assert all(row["holds"] for row in rows if row["limit"])


def test_the_memory_of_an_evaluation_is_its_own(monkeypatch):
    """A child process starts with the peak memory of its parent, which must not be counted."""
    from im2wav.benchmarks.footprint import memory_held

    held = torch.ones(2**26)  # 256 MiB
    evaluation = importlib.import_module("im2wav.benchmarks.evaluation_speed")
    monkeypatch.setattr(evaluation, "COMMAND", [sys.executable, "-c", "b'x' * (64 * 2**20)"])
    *_, memory = evaluation.measure_evaluation(sounds=2, seconds=0.1)
    assert held.nbytes < memory_held("VmHWM")
    assert 0.06 < memory.value < 0.12  # 64 MiB and Python itself


def test_memory_and_operations_of_official_sizes_are_counted_without_computing(tmp_path):
    options = ["measure.parts=[memory]", "measure.models=[low_prior]", "measure.precision=bf16"]
    assert command("bench", "measure=training", *options, f"out={tmp_path / 'b.json'}") == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    state = rows["low_prior, bf16-mixed: weights, gradients, moments, average"]
    assert 1 < state / (157344768 * 20 / 1e9) < 1.001
    kept = 48 * 2048 * 1024 * 4 / 1e9  # the input of each layer
    assert kept < rows["low_prior, bf16-mixed, checkpointing: peak, each window"] < 1.2 * kept
    assert rows["low_prior, bf16-mixed: peak, each window"] > 4 * kept
    from im2wav.benchmarks.training import step_flops

    linear = 6 * 2048 * 48 * (1024 * 768 + 256 * 1024 + 2 * 1024 * 1024)  # forward and backward of all layers
    assert linear < step_flops("low_prior", 1) < 1.1 * linear


def test_an_unknown_part_of_the_training_benchmark_is_refused(capsys):
    assert command("bench", "measure=training", "measure.parts=[speed]") == 2
    assert "expected some of throughput, dense, memory" in capsys.readouterr().err


def test_every_figure_of_decoding_is_measured(tmp_path):
    out = tmp_path / "d.json"
    tiny = ["measure.transformer={width:32,depth:3,blocks:8}", "measure.context={low:64,up:256}", "measure.rounds=1"]
    ways = [", compiled", ""] if HAS_COMPILER else [""]
    tiny.append(f"measure.compile={[bool(way) for way in ways]}")
    code = command(
        "bench", "measure=decode", *tiny, "measure.precisions=[fp32]", "measure.whole=true", f"out={out}", "device=cpu"
    )
    rows = json.loads(out.read_text())["rows"]
    assert code == int(any(row["holds"] is False for row in rows))
    names = [row["name"] for row in rows]
    named = {f"{code}, fp32{way}" for code in ("guided low code", "unguided up code") for way in ways}
    assert named | {"peak memory, fp32", "start to first code, fp32", f"last 16 codes of 64, fp32{ways[0]}"} <= set(
        names
    )
    assert {"batch 1, fp32", "batch 8, fp32", "0.128 s of audio, batch 1"} <= set(names)
    assert all(row["value"] > 0 for row in rows)


def test_the_official_way_draws_the_same_logits():
    """Two passes and growing caches are a fair reference only if they compute the same."""
    import torch

    from im2wav.benchmarks.official_decoder import ConcatenatedKVCache
    from im2wav.prior import Conditions
    from test_prior import low_prior

    prior, codes = low_prior(frames=False, timing=False), torch.randint(16, (1, 64))
    given = Conditions(torch.randn(1, 1, 6))
    with torch.no_grad():
        start, _ = prior.conditioner(given, 64)
        sequence = ConcatenatedKVCache(prior, torch.zeros(1, 32))
        inputs = [start, *(prior.code_embedding(codes[:, t]) for t in range(63))]
        logits = torch.stack([sequence.logits(x) for x in inputs], 1)
        torch.testing.assert_close(logits, prior(codes, given), rtol=1e-4, atol=1e-5)
