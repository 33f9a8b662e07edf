import math

import pytest
import torch

from im2wav.evaluation.distance import log_mel, mel_distance, si_sdr
from im2wav.evaluation.page import Card, Section, curves, write_page
from im2wav.evaluation.retrieval import nearest, share_right, share_shuffled

RATE = 16000


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


def test_the_distance_ignores_loudness_and_finds_the_best_alignment():
    torch.manual_seed(0)
    long = torch.randn(32000) * torch.linspace(0, 1, 32000).repeat_interleave(1)
    one, part = log_mel(long, RATE), log_mel(long[10 * 512 : 10 * 512 + 16000] * 0.01, RATE)
    assert mel_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert mel_distance(one, part) == mel_distance(part, one) < 0.05
    assert mel_distance(log_mel(tone(300), RATE), log_mel(tone(4000), RATE)) > 0.9


def test_retrieval_by_hand():
    recordings = [tone(200, 2.0), tone(1000, 2.0), tone(4000, 2.0)]
    found = nearest([tone(4000), tone(210), tone(1000)], recordings, RATE)
    assert found == [2, 0, 1]
    assert share_right(found, [2, 0, 0]) == pytest.approx(2 / 3)
    assert share_right(found, found) == 1
    assert share_shuffled([0, 1, 2], [0, 1, 2]) == 0
    assert share_shuffled([0, 0, 0], [0, 1, 2]) == pytest.approx(1 / 3)  # a hub is right as often as chance


def test_si_sdr_by_hand():
    target = tone(440)
    noise = tone(1000) * 0.1  # orthogonal: a tenth of the amplitude is 20 dB
    assert si_sdr(target, target + noise).item() == pytest.approx(20, abs=0.01)
    assert si_sdr(target, 5 * (target + noise)).item() == pytest.approx(20, abs=0.01)


def test_a_page_is_one_file_that_holds_everything(tmp_path):
    from conftest import ASSETS

    card = Card("an <owl>", ASSETS / "images" / "owl_03.jpg", {"real": tone(440), "generated": tone(880)}, "a note")
    figure = curves({"vqvae": {"train/loss": [(0, 1.0), (1, 0.5)]}})
    path = tmp_path / "index.html"
    write_page(path, "title", "text", {"Table": [("a", "b"), ("x", 0.5)]}, figure, [Section("S", "t", [card])], RATE)
    page = path.read_text()
    assert page.count("<audio") == 2
    assert page.count("data:audio/flac;base64,") == 2
    assert "an &lt;owl&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/svg+xml' in page
