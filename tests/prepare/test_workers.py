"""Processes that decode. They import this file, so it imports little: neither PyTorch Lightning nor Hydra."""

import os
import signal
import time

import numpy as np
import pytest

from im2wav.prepare.clip_reader import Failed, Workers


def behave(job):
    """What a decoder may do to the process that it runs in."""
    yield "begun"
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        time.sleep(1000)
    if job == "raise":
        raise KeyError("nobody expected this")
    if job == "large":
        yield np.zeros(10_000_000, np.uint8)
    yield job


def test_a_job_that_dies_hangs_or_raises_costs_itself_alone():
    jobs = ["a", "die", "b", "hang", "raise", "large", *"cdefg", "die", "h"]
    messages: dict[int, list] = {}
    for key, message in Workers(behave, 2, timeout=3).run(enumerate(jobs)):
        messages.setdefault(key, []).append(message)
    assert sorted(messages) == list(range(len(jobs)))
    for key, job in enumerate(jobs):
        assert messages[key][0] == "begun"
        last = messages[key][-1]
        if job == "die":
            assert last == Failed("decoder died", "its process ended with exit code -9")
        elif job == "hang":
            assert last == Failed("decoder hung", "no message for 3 s (timeout)")
        elif job == "raise":
            assert last.reason == "decoder error"
            assert "nobody expected this" in last.detail
        else:
            assert last == job
    assert messages[5][1].shape == (10_000_000,)


def test_a_worker_waits_while_nobody_listens_and_is_not_taken_to_hang():
    stream = Workers(behave, 1, timeout=1).run(enumerate(["large", "a"]))
    assert next(stream) == (0, "begun")
    time.sleep(2)
    assert [type(message) for _, message in stream] == [np.ndarray, str, str, str]


class Aborting:
    """A task that ends the process that unpickles it."""

    def __call__(self, job):
        yield job

    def __reduce__(self):
        return os.abort, ()


def test_processes_that_cannot_start_are_an_error():
    with pytest.raises(ValueError, match="before its first file"):
        list(Workers(Aborting(), 1, timeout=5).run([(0, "a")]))
    with pytest.raises(ValueError, match="at least 1"):
        Workers(behave, 0, timeout=1)
