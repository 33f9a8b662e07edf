"""Signals: worker processes ignore them, commands end by them, say what is finished, and resume."""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest

from conftest import ASSETS, command
from im2wav import system
from im2wav.system import SIGNALS, Interrupted, hold_signals, leave_signals_to_parent, stop_on_signals


def work(ready, go_on, done):
    leave_signals_to_parent()
    ready.set()
    go_on.wait(60)
    done.set()
    time.sleep(100)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS does not say who sent a signal")
def test_a_worker_ignores_all_signals_but_sigterm_of_its_parent(method):
    context = multiprocessing.get_context(method)
    ready, go_on, done = (context.Event() for _ in range(3))
    with hold_signals():
        worker = context.Process(target=work, args=(ready, go_on, done))
        worker.start()
    assert ready.wait(60)
    with context.Pool(1) as other:  # another process sends them
        for number in SIGNALS:
            other.apply(os.kill, (worker.pid, number))
    go_on.set()
    assert done.wait(60)
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@stop_on_signals()
def receive_two():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGINT)  # ignored during the cleanup


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_counts_and_handlers_of_others_stay(handlers):
    with pytest.raises(Interrupted) as stopped:
        receive_two()
    assert (stopped.value.code, stopped.value.number) == (143, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # until the process ends
    signal.signal(signal.SIGUSR2, print)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGUSR2) is print  # of a launcher


def wait_in_native_code(ready):
    """Lock a mutex twice: this waits for ever in C, where no Python handler runs."""
    mutex = ctypes.create_string_buffer(64)
    with stop_on_signals():
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ready.set()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a mutex of glibc")
def test_a_process_that_waits_in_native_code_ends_too(monkeypatch):
    monkeypatch.setattr(system, "LONGEST_DELAY", 0.2)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=wait_in_native_code, args=(ready,))
    process.start()
    assert ready.wait(60)
    time.sleep(0.1)
    process.terminate()
    process.join(30)
    assert process.exitcode == 143


def images(folder):
    folder.mkdir()
    for name in ("owl_03", "cat_03", "bell_01"):
        shutil.copy(ASSETS / "images" / f"{name}.jpg", folder)
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sample_says_what_is_finished_and_generates_the_rest(trained, tmp_path, monkeypatch, capfd, number, code):
    from im2wav.inference.command import Outputs

    write, arguments = Outputs.write, ["run_name=base", f"paths.runs={trained}", "seconds=0.02"]
    arguments += [f"input={images(tmp_path / 'in')}", f"out={tmp_path / 'out'}", "batch_size=1"]

    def interrupted(self, audio):
        write(self, audio)
        signal.raise_signal(number)

    monkeypatch.setattr(Outputs, "write", interrupted)
    assert command("sample", *arguments) == code
    text = f"interrupted by {number.name}: 1 of 3 audio files are finished in {tmp_path}/out/up; the same command"
    assert text in capfd.readouterr().out
    monkeypatch.setattr(Outputs, "write", write)
    assert command("sample", *arguments) == 0
    assert "2 audio files to generate" in capfd.readouterr().out


def test_tokenize_and_shard_say_what_is_finished(trained, pairs, tmp_path, monkeypatch, capfd):
    from im2wav.data.windows import CodesFolder
    from im2wav.prepare import shard_writer

    shutil.copytree(pairs, tmp_path / "pairs")
    codec, root = f"codec={trained}/base/vqvae/last.ckpt", f"data.root={tmp_path}/pairs"
    write, write_chunk = CodesFolder.write, shard_writer._write_chunk

    def interrupt(original):
        def write(*arguments):
            original(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)

        return write

    monkeypatch.setattr(CodesFolder, "write", interrupt(write))
    assert command("tokenize", root, codec, "data.num_samples=4096", "data.num_workers=1") == 143
    assert "interrupted by SIGTERM: 1 of 6 clips are encoded in " in capfd.readouterr().out
    monkeypatch.setattr(shard_writer, "_write_chunk", interrupt(write_chunk))
    assert command("shard", root, f"out={tmp_path}/shards", "chunk_mb=0.1", "num_workers=1") == 143
    output = capfd.readouterr().out
    assert "interrupted by SIGTERM: " in output
    assert f"chunks are finished in {tmp_path}/shards; the same command writes the rest" in output
