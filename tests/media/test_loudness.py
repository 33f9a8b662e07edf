"""Loudness in LUFS, compared with torchaudio's implementation of the same recommendation."""

import pytest
import torch
import torchaudio

from im2wav.media import loudness
from im2wav.media.loudness import check_loudness_options, normalise_loudness


@pytest.fixture
def wav():
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    return noise.clamp(-3, 3) * torch.linspace(0.01, 0.1, 8000)


def test_the_loudness_is_reached_and_noted(wav):
    scaled, noted = normalise_loudness(wav, 16000, -30.0, -1.0)
    measured = torchaudio.functional.loudness(scaled[None], 16000).item()
    assert measured == pytest.approx(-30.0, abs=0.02)
    assert noted["loudness"] == -30.0
    assert torch.allclose(scaled, wav * 10 ** (noted["gain_db"] / 20), rtol=1e-3)


def test_the_peak_limit_wins(wav):
    scaled, noted = normalise_loudness(wav, 16000, -5.0, -3.0)
    assert scaled.abs().max().item() == pytest.approx(10 ** (-3 / 20), rel=1e-5)
    assert noted["loudness"] < -5.0
    assert torchaudio.functional.loudness(scaled[None], 16000).item() == pytest.approx(noted["loudness"], abs=0.02)


def test_silent_audio_is_not_scaled():
    scaled, noted = normalise_loudness(torch.zeros(8000), 16000, -23.0, -1.0)
    assert not scaled.any()
    assert noted == {"loudness": None, "gain_db": 0.0}


def test_short_audio_and_a_missing_package_are_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"needs at least 0\.4 s of audio; 0\.2 s are to be generated"):
        check_loudness_options(0.2)
    monkeypatch.setitem(__import__("sys").modules, "pyloudnorm", None)
    with pytest.raises(ValueError, match=r"pip install 'im2wav\[loudness\]'"):
        loudness.check_loudness_options(1.0)
