"""The number of CPU threads of decoding steps: chosen by time, without an effect on the codes."""

import time

import pytest
import torch

from helpers import CASES
from im2wav.decoding import state
from im2wav.decoding.decoder import Decoder, sample_codes
from im2wav.decoding.sampler import SamplingOptions
from im2wav.decoding.state import ThreadTuner


@pytest.fixture
def threads():
    """Set torch's number of threads; the tests of the same process get theirs back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(state, "num_cores", lambda: 4)


@pytest.fixture
def simulated(monkeypatch, threads, cores):
    """A function: seconds of a step by number of threads -> the numbers with which `count` steps are run."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    threads(4)
    tuner = ThreadTuner()

    def run(seconds: dict[int, float], count: int) -> list[int]:
        used = []

        def step():
            used.append(torch.get_num_threads())
            clock[0] += seconds[used[-1]]

        tuner.check(lambda: torch.ones(1))
        for _ in range(count):
            tuner.run(step)
        return used

    return run


def test_a_small_network_is_drawn_with_one_thread_and_more_are_not_tried(simulated):
    used = simulated({1: 0.001, 2: 0.030, 4: 9.0}, 1000)
    assert used.count(2) == ThreadTuner.TIMED_STEPS + 1
    assert used.count(4) == 0
    assert used[-900:] == [1] * 900


def test_a_large_network_is_drawn_with_all_threads_until_others_use_the_cores(simulated):
    assert simulated({1: 0.04, 2: 0.02, 4: 0.01}, 500)[-400:] == [4] * 400
    later = simulated({1: 0.04, 2: 0.4, 4: 0.5}, 500)  # measured again after 10 s
    assert 4 not in later[30:]
    assert later.count(1) > 400


def test_fewer_threads_are_preferred_where_more_gain_nothing(simulated):
    assert simulated({1: 0.0102, 2: 0.0101, 4: 0.01}, 100)[-1] == 1


def test_numbers_of_threads_that_round_differently_are_left_out(threads, cores):
    threads(4)
    tuner = ThreadTuner()
    tuner.check(lambda: torch.tensor([float(torch.get_num_threads() != 2)]))
    assert tuner.counts == [1, 4]
    threads(1)
    tuner.check(lambda: torch.ones(1))
    assert tuner.counts == [1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(("make", "given"), CASES, ids=["low", "up"])
def test_codes_are_the_same_while_the_number_of_threads_changes(make, given, precision, threads, cores, monkeypatch):
    monkeypatch.setattr(ThreadTuner, "INTERVAL", 0.0)  # measure all the time
    monkeypatch.setattr(ThreadTuner, "TIMED_STEPS", 1)
    uniform = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    threads(1)
    decoder = Decoder(make(), precision)
    expected = sample_codes(decoder, given, uniform, SamplingOptions())
    threads(2)  # the test suite runs on two cores
    used = set()
    codes = sample_codes(
        decoder, given, uniform, SamplingOptions(), on_step=lambda _: used.add(torch.get_num_threads())
    )
    assert torch.equal(codes, expected)
    assert used == {1, 2}
    assert torch.get_num_threads() == 2
