"""Long work shows its progress: a bar on a terminal, in log files a line every half minute."""

import shutil
import sys

import pytest

from conftest import ASSETS, TINY, TINY_NET, command
from helpers import TINY_ENCODER
from im2wav import system
from im2wav.system import LogLines, track_progress


@pytest.fixture
def lines(monkeypatch, caplog):
    """The lines that are logged, of every update."""
    monkeypatch.setattr(system, "INTERVAL", 0.0)
    caplog.set_level("INFO", "im2wav.system")
    return caplog


def test_a_line_every_half_minute_names_done_total_rate_and_remaining(caplog):
    caplog.set_level("INFO")
    clock = [0.0]
    with track_progress(desc="embed", unit="item", total=200) as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = 0.0
        for second in range(1, 101):
            clock[0] = float(second)
            bar.update()
        clock[0] = 131.0
        bar.update(0)  # one item takes long
    said = caplog.messages
    assert len(said) == 4
    assert said[:2] == [
        f"embed: {n} of 200, 1.00item/s, {left} remaining" for n, left in ((30, "02:50"), (60, "02:20"))
    ]
    assert said[3].startswith("embed: 100 of 200, ")


def test_short_work_logs_nothing(caplog, capfd):
    caplog.set_level("INFO")
    assert list(track_progress(range(3), desc="shard", unit="chunk")) == [0, 1, 2]
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = track_progress(range(3), desc="shard", unit="chunk")
    assert not isinstance(bar, LogLines)
    assert list(bar) == [0, 1, 2]
    assert "shard: 100%" in capfd.readouterr().err


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(ASSETS / "images" / "owl_03.jpg", folder)
    return folder


def test_commands_log_their_progress(lines, pairs, trained, photo, tmp_path, capfd):
    codec, names = f"codec={trained}/base/vqvae/last.ckpt", ["encoder=efficientnet_lite2", f"paths.runs={trained}"]
    shutil.copytree(pairs, tmp_path / "pairs")
    sampled = [*names, f"input={photo}", f"out={tmp_path / 'out'}", "device=cpu"]
    training = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], "trainer.max_steps=2"]
    judged = [
        f"generated={pairs / 'wav'}",
        f"reference={pairs / 'wav'}",
        "resamples=50",
        "resamples_fd=3",
        "seconds=1.2",
    ]
    runs = {
        "embed: 1 of 1": ("embed", f"input={photo}", f"out={tmp_path / 'new'}", *TINY_ENCODER),
        "tokenize: 6 of 6": ("tokenize", f"data.root={tmp_path / 'pairs'}", codec, "data.num_samples=4096"),
        "train: 2 of 2": ("train", *training, f"paths.output={tmp_path / 'run'}", f"paths.runs={tmp_path}"),
        "owl_03: 640 of 640": ("sample", *sampled),
        "evaluate generated: 6 of 6": ("evaluate", *judged, f"out={tmp_path / 'figures'}"),
    }
    for line, (verb, *arguments) in runs.items():
        assert command(verb, *arguments) == 0, capfd.readouterr().err
        out, err = capfd.readouterr()
        assert any(text.startswith(line) for text in out.splitlines()), out[-2000:]
        assert "\r" not in out + err
