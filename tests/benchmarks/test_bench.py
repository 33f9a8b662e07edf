"""Benchmarks give ratios to limits measured in the same run."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from conftest import HAS_COMPILER, command, write_mp4
from helpers import low_prior
from im2wav.benchmarks.baselines import PeerDecoder
from im2wav.benchmarks.machine import Row, format_rows
from im2wav.prior.transformer import TransformerConfig


def test_the_table_names_figure_limit_and_ratio():
    text = format_rows([Row("decode", 3.0, "ms", 2.0, "weights read once", "a note"), Row("read", 4.0, "GB/s")])
    assert all(part in text for part in ("decode", "3 ms", "2 ms (weights read once)", "1.500", "a note", "4 GB/s"))


def test_the_machine_is_measured(tmp_path):
    assert command("bench", "measure.precisions=[fp32]", f"out={tmp_path / 'b.json'}", "device=cpu") == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["matmul, fp32", "memory read"]
    assert all(row["value"] > 0.1 for row in found["rows"])


def test_an_unknown_measurement_is_rejected():
    assert command("bench", "measure=dreams") == 2


def test_an_unknown_precision_is_rejected(capsys):
    assert command("bench", "measure.precisions=[fp8]") == 2
    assert "expected one of" in capsys.readouterr().err


def test_the_evaluation_is_timed(tmp_path):
    options = ["measure=evaluate", "measure.num_files=6", "measure.seconds=1", f"out={tmp_path / 'b.json'}"]
    assert command("bench", *options) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["unit"] for row in rows] == ["min", "min", "GB"]
    assert all(row["value"] > 0 for row in rows)


def test_a_failed_evaluation_is_an_error(capsys):
    assert command("bench", "measure=evaluate", "measure.num_files=0") == 2
    assert "the evaluation failed: error: " in capsys.readouterr().err


def test_embedding_needs_videos(capsys):
    assert command("bench", "measure=embed") == 2
    assert "measure.videos=None contains no videos" in capsys.readouterr().err


def test_decoding_videos_is_compared_with_decord_alone(tmp_path):
    write_mp4(tmp_path / "a.mp4")
    threads, out = torch.get_num_threads(), tmp_path / "b.json"
    try:
        assert command("bench", "measure=embed", f"measure.videos={tmp_path}", "measure.repeats=1", f"out={out}") == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["a.mp4, 30 fps", "a.mp4, 8 fps"]
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.slow  # `make test` counts the memory of a training at official size in tests/training/test_hardware.py
def test_memory_and_operations_of_official_sizes_are_counted_without_computing(tmp_path):
    options = ["measure.parts=[memory]", "measure.models=[low_prior]", "measure.precision=bf16"]
    assert command("bench", "measure=training", *options, f"out={tmp_path / 'b.json'}") == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    state = rows["low_prior, bf16-mixed: weights, gradients, moments, average"]
    assert 1 < state / (157344768 * 20 / 1e9) < 1.001
    kept = 48 * 2048 * 1024 * 4 / 1e9  # the input of each layer
    assert kept < rows["low_prior, bf16-mixed, checkpointing: peak, each window"] < 1.2 * kept
    assert rows["low_prior, bf16-mixed: peak, each window"] > 4 * kept
    from im2wav.benchmarks.training_speed import step_flops

    linear = 6 * 2048 * 48 * (1024 * 768 + 256 * 1024 + 2 * 1024 * 1024)  # forward and backward of all layers
    assert linear < step_flops("low_prior", 1) < 1.1 * linear  # and the output layer


def test_an_unknown_part_of_the_training_benchmark_is_rejected(capsys):
    assert command("bench", "measure=training", "measure.parts=[speed]") == 2
    assert "expected some of throughput, memory" in capsys.readouterr().err


@pytest.mark.slow
def test_every_figure_of_decoding_is_measured(tmp_path):
    out, ways = tmp_path / "d.json", [", compiled", ""] if HAS_COMPILER else [""]
    tiny = ["measure.transformer={width:32,depth:3,blocks:8}", "measure.context={low:64,up:256}", "measure.rounds=1"]
    tiny.append(f"measure.compile={[bool(way) for way in ways]}")
    tiny += ["measure.precisions=[fp32]", "measure.whole=true", "measure.peer=true", "device=cpu"]
    assert command("bench", "measure=decode", *tiny, f"out={out}") == 0
    rows = json.loads(out.read_text())["rows"]
    names = [row["name"] for row in rows]
    named = {f"{code}, fp32{way}" for code in ("guided low code", "unguided up code") for way in ways}
    assert named | {"peak memory, fp32", "start to first code, fp32", f"last 16 codes of 64, fp32{ways[0]}"} <= set(
        names
    )
    assert {"batch 1, fp32", "batch 8, fp32", "0.128 s of audio, batch 1"} <= set(names)
    assert sum(row["limit_name"] == "transformers, MusicGen's decoder" for row in rows) == 2
    assert all(row["value"] > 0 for row in rows)


def test_the_comparison_with_transformers_names_the_extra(monkeypatch):
    """`bench measure=decode measure.peer=true` without the library."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"measure.peer=true needs .* pip install 'im2wav\[bench\]'"):
        PeerDecoder(low_prior().transformer.config, 16, 64, 2, "fp32")


def test_the_decoder_of_transformers_has_as_many_weights():
    """And it decodes: its KV cache grows by a code with each step, and begins again at the end."""
    config = TransformerConfig()
    shape = (4 * config.attention_width + 2 * int(config.mlp_ratio * config.width)) * config.width
    peer = PeerDecoder(replace(config, depth=4), 16, 3, 2, "bf16")
    assert peer.weights == pytest.approx(4 * shape, rel=0.01)
    for expected in (1, 2, 3, 1):
        peer.step()
        assert peer.cache.get_seq_length() == expected


def test_the_official_way_draws_the_same_logits():
    """Two passes and growing caches are a fair reference only if they compute the same."""
    from im2wav.benchmarks.baselines import ConcatenatedKVCache
    from im2wav.prior import Conditions

    prior, codes = low_prior(frames=False, timing=False), torch.randint(16, (1, 64))
    given = Conditions(torch.randn(1, 1, 6))
    with torch.no_grad():
        start, _ = prior.conditioner(given, 64)
        sequence = ConcatenatedKVCache(prior, torch.zeros(1, 32))
        inputs = [start, *(prior.code_embedding(codes[:, t]) for t in range(63))]
        logits = torch.stack([sequence.logits(x) for x in inputs], 1)
        torch.testing.assert_close(logits, prior(codes, given), rtol=1e-4, atol=1e-5)
