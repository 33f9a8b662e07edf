import math

import pytest
import torch

from im2wav.evaluation.metrics import best_cosine, nearest, retrieval_values, si_sdr
from im2wav.report.plots import log_mel

RATE = 16000


def mel_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Distance of two log-mel spectrograms over the best alignment: 0 equal, 1 nothing in common."""
    short, long = sorted((one, other), key=len)
    return 1 - best_cosine(short[None], long[None]).item()


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


def test_the_distance_ignores_loudness_and_finds_the_best_alignment():
    torch.manual_seed(0)
    long = torch.randn(32000) * torch.linspace(0, 1, 32000).repeat_interleave(1)
    one, part = log_mel(long, RATE), log_mel(long[10 * 512 : 10 * 512 + 16000] * 0.01, RATE)
    assert mel_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert mel_distance(one, part) == mel_distance(part, one) < 0.05
    assert mel_distance(log_mel(tone(300), RATE), log_mel(tone(4000), RATE)) > 0.9


def test_the_distance_is_one_minus_the_cosine_at_the_best_place():
    generator = torch.Generator().manual_seed(0)
    short, long = torch.rand(5, 64, generator=generator), torch.rand(9, 64, generator=generator)
    cosines = [
        torch.nn.functional.cosine_similarity(short.flatten(), long[start : start + 5].flatten(), 0)
        for start in range(5)
    ]
    assert mel_distance(short, long) == pytest.approx(1 - max(cosines).item(), abs=1e-5)
    assert mel_distance(torch.zeros(5, 64), long) == pytest.approx(1)


def test_the_nearest_recording_is_found_among_shorter_and_longer_ones():
    recordings = [log_mel(tone(*about), RATE) for about in ((200, 2.0), (1000, 0.5), (4000, 2.0))]
    queries = torch.stack([log_mel(tone(hertz), RATE) for hertz in (4000, 210, 1000)])
    assert nearest(queries, recordings) == [2, 0, 1]
    distances = [[mel_distance(query, recording) for recording in recordings] for query in queries]
    assert nearest(queries, recordings) == [row.index(min(row)) for row in distances]


def test_retrieval_by_hand():
    recordings = {"a": "owl", "b": "owl", "c": "cat"}
    items, labels = ["a", "b", "c", "d"], {"a": "owl", "b": "owl", "c": "cat", "d": "cat"}  # d has no recording
    found = retrieval_values(["a", "a", "b", "c"], items, recordings, labels)
    known, values = found["retrieval"]
    assert known.tolist() == [True, True, True, False]
    assert values.tolist() == [1, 0, 0]
    assert found["retrieval_label"][1].tolist() == [1, 1, 0, 1]
    shuffled = retrieval_values(["a", "a", "b", "c"], items, recordings, labels, shuffled=True)
    assert shuffled["retrieval"][1].tolist() == [0, 0.5, 0.5]  # of the two other items with a recording
    assert shuffled["retrieval_label"][1].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1 / 3])
    one = retrieval_values(["a"], ["a"], recordings, {}, shuffled=True)
    assert one == {}


def test_si_sdr_by_hand():
    target = tone(440)
    noise = tone(1000) * 0.1  # orthogonal: a tenth of the amplitude is 20 dB
    assert si_sdr(target, target + noise).item() == pytest.approx(20, abs=0.01)
    assert si_sdr(target, 5 * (target + noise)).item() == pytest.approx(20, abs=0.01)
