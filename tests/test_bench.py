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
