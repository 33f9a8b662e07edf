import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import ASSETS, REPO, command, tone, write_mp4, write_wav
from helpers import TINY_ENCODER
from im2wav.data.pairs import PairsFolder
from im2wav.prepare.journal import FOLDER, Journal, State
from im2wav.prepare.sources import Source


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Videos of several lengths, pictures, pictures with sounds, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write_mp4(folder / f"video {i}.mp4", seconds=1 + i / 2, fps=10 + i)
    pictures = sorted((ASSETS / "images").glob("*.jpg"))
    for i in range(30):
        shutil.copy(pictures[i], folder / f"picture{i}.jpg")
        if i % 3 == 0:
            write_wav(folder / f"picture{i}.wav", tone(0.5, hertz=300 + i))
    (folder / "broken.mp4").write_bytes((folder / "video 1.mp4").read_bytes()[:2000])
    return folder


def arguments(source, out, *more):
    return [*TINY_ENCODER, f"input={source}", f"out={out}", "fps=12", "max_failed=0.5", "batch_size=4", *more]


def start(source, out, *more):
    environment = {**os.environ, "PYTHONPATH": f"{REPO / 'src'}:{REPO / 'tests'}"}
    call = [sys.executable, "-m", "im2wav.embed", *arguments(source, out, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(call, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def unbroken(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "pairs"
    assert command("embed", *arguments(source, out)) == 0
    assert len(PairsFolder(out).pairs) == 34
    return out


@pytest.mark.parametrize("wanted", [[8], pytest.param([1, 20], marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_byte_for_byte_as_if_it_had_not_been(source, unbroken, tmp_path, wanted):
    """By SIGKILL as soon as it has embedded so many clips, once or twice."""
    out = tmp_path / "pairs"
    interrupted = 0
    for count in wanted:
        run = start(source, out, "num_workers=2")
        while run.poll() is None and len(list(out.glob("clip/*.npy"))) < count:
            time.sleep(0.002)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            interrupted += 1
        run.communicate()
        done = len(list(out.glob("clip/*.npy")))
        assert done >= count
        for path in out.glob("clip/*.npy"):
            np.load(path)  # whole
    assert interrupted
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("clip/*.npy")}
    known = State.read(out).rows
    assert command("embed", *arguments(source, out)) == 0
    again = [path.stem for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp and path.stem in known]
    assert not again  # only what was missing
    assert hashes(out) == hashes(unbroken)


@pytest.mark.parametrize(
    ("number", "code", "devices"),
    [(signal.SIGTERM, 143, 1), pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow)],
)
def test_a_signal_ends_it_within_seconds_and_the_next_run_does_the_rest(
    source, unbroken, tmp_path, number, code, devices
):
    """SIGTERM to all its processes, and SIGINT to the first one, which ends the others."""
    out = tmp_path / "pairs"
    run = start(source, out, "num_workers=1", f"trainer.devices={devices}")
    while run.poll() is None and not list(out.glob("clip/*.npy")):
        time.sleep(0.002)
    (os.killpg if devices == 1 else os.kill)(run.pid, number)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == code, errors
    assert f"of 35 inputs are finished in {out}; the same command does the rest" in output
    assert "Traceback" not in errors
    assert not State.read(out).skipped.keys() - {"broken"}
    assert len(State.read(out).rows) < 34
    assert command("embed", *arguments(source, out)) == 0
    assert hashes(out) == hashes(unbroken)


@pytest.mark.slow  # `make test` starts two devices above, and interrupts them
def test_two_devices_and_two_workers_give_the_same_bytes(source, unbroken, tmp_path):
    out = tmp_path / "pairs"
    run = start(source, out, "num_workers=2", "trainer.devices=2")
    output, errors = run.communicate(timeout=250)
    assert run.returncode == 0, errors
    assert output.strip().splitlines()[-1].startswith("34 of 35 embedded")
    assert hashes(out) == hashes(unbroken)


def test_shards_of_array_jobs_add_up_to_the_same_bytes(source, unbroken, tmp_path):
    out = tmp_path / "pairs"
    jobs = arguments(source, out, "shard=0/3,1/3,2/3", f"paths.runs={tmp_path}")
    assert command("embed", "-m", *jobs) == 0
    assert hashes(out) == hashes(unbroken)
    assert command("embed", *arguments(source, out, "shard=3/3")) == 2


def test_a_second_run_loads_no_encoder_and_writes_the_same(source, unbroken, tmp_path, monkeypatch):
    import helpers

    before = hashes(unbroken)
    monkeypatch.setattr(helpers, "TinyEncoder", None)
    assert command("embed", *arguments(source, unbroken)) == 0
    assert hashes(unbroken) == before


def test_a_dry_run_measures_and_writes_nothing(source, tmp_path, capfd):
    out = tmp_path / "pairs"
    assert command("embed", *arguments(source, out, "dry_run=true", "dry_run_inputs=3")) == 0
    text = capfd.readouterr().out
    assert "35 of 35 inputs remain" in text
    assert "measured on 3 inputs" in text
    assert not out.exists()


def test_a_line_cut_by_a_kill_is_not_read_and_its_clip_done_again(tmp_path):
    journal = Journal(tmp_path)
    journal.add({"id": "a", "reason": "cut audio", "detail": "1 s, of 2"})
    with (journal.part / "rows.jsonl").open("a") as file:
        file.write('{"id": "b", "rea')
    journal.release()
    assert State.read(tmp_path).skipped == {"a": ("cut audio", "1 s, of 2")}
    Journal(tmp_path).fold({})
    assert State.read(tmp_path).skipped == {"a": ("cut audio", "1 s, of 2")}
    assert not (tmp_path / FOLDER).exists()


def test_a_part_of_a_process_that_lives_is_read_but_stays(tmp_path):
    ours, theirs = Journal(tmp_path), Journal(tmp_path)
    theirs.add({"id": "a", "reason": "too short", "detail": ""})
    assert list(ours.fold({}).skipped) == ["a"]
    assert theirs.part.is_dir()
    theirs.add({"id": "b", "reason": "too short", "detail": ""})
    theirs.fold({})
    assert list(State.read(tmp_path).skipped) == ["a", "b"]


def test_the_same_audio_in_two_splits_stays_in_the_one_held_out(tmp_path):
    rows = [("a", "train", 300), ("b", "test", 300), ("c", "train", 400), ("d", "train", 400)]
    picture = ASSETS / "images" / "owl_03.jpg"
    for name, _, hertz in rows:
        write_wav(tmp_path / f"{name}.wav", tone(0.5, hertz=hertz))
    lines = [f"{name},{picture},{name}.wav,{split}" for name, split, _ in rows]
    (tmp_path / "manifest.csv").write_text("\n".join(["id,image,audio,split", *lines]))
    out = tmp_path / "out"
    assert command("embed", *TINY_ENCODER, f"input={tmp_path}", f"out={out}") == 1
    assert [pair.id for pair in PairsFolder(out).pairs] == ["b", "c", "d"]  # twice in one split harms nobody
    (skipped,) = csv.DictReader((out / "skipped.csv").open())
    assert (skipped["id"], skipped["reason"]) == ("a", "duplicate audio")
    assert not (out / "wav" / "a.wav").exists()
    assert not (out / "clip" / "a.npy").exists()
    before = hashes(out)
    assert command("embed", *TINY_ENCODER, f"input={tmp_path}", f"out={out}") == 1
    assert hashes(out) == before


def test_what_was_skipped_is_tried_again_once_it_has_changed(tmp_path, capfd):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.mp4").write_bytes(b"")
    call = [*TINY_ENCODER, f"input={source}", f"out={out}", "fps=5"]
    assert command("embed", *call) == 1
    time.sleep(0.02)
    assert State.read(out).skipped["a"][0] == "empty file"
    assert command("embed", *call) == 1
    write_mp4(source / "a.mp4", seconds=1)
    assert command("embed", *call) == 0
    assert [pair.id for pair in PairsFolder(out).pairs] == ["a"]
    assert Source("x", video="y").path == "y"
