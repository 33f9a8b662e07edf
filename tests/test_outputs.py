"""What lies in the folder of sounds: names, tables, videos, and what a second run makes of it."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from conftest import ASSETS, command, config, tone, write_mp4, write_wav
from im2wav.inference.runner import Unit, pack
from im2wav.sample import sample

PICTURES = ("owl_03", "cat_03", "bell_01")


def arguments(trained, out, *overrides):
    return ["encoder=efficientnet_lite2", f"paths.runs={trained}", f"out={out}", *map(str, overrides)]


def run(trained, out, *overrides):
    return sample(config("sample", *arguments(trained, out, *overrides)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three photos."""
    made = tmp_path / "in"
    made.mkdir()
    for name in PICTURES:
        shutil.copy(ASSETS / "images" / f"{name}.jpg", made)
    return made


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.wav"))}


def test_a_second_run_makes_only_what_is_missing(trained, folder, tmp_path, capfd):
    out = tmp_path / "out"
    run(trained, out, f"input={folder}")
    before, stamps = contents(out), {p: p.stat().st_mtime_ns for p in out.rglob("*_0*")}
    (out / "low" / "cat_03_00.json").unlink()  # what says that a sound is finished
    (out / "up" / "owl_03_00.wav").unlink()
    capfd.readouterr()
    assert command("sample", *arguments(trained, out, f"input={folder}")) == 0
    assert "3 inputs: 2 sounds to make, 0.5 s in all; 1 are there already" in capfd.readouterr().out
    assert contents(out) == before
    assert {p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp} == {
        f"bell_01_00.{suffix}" for suffix in ("wav", "json")
    }
    run(trained, out, f"input={folder}", "num_samples=2")  # more of them: the first ones stay
    assert {k: v for k, v in contents(out).items() if k in before} == before
    assert len(contents(out)) == 2 * len(before)


def test_a_killed_run_goes_on_to_the_same_sounds(trained, folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(trained, whole, f"input={folder}", "batch_size=1", "num_samples=2")
    call = [sys.executable, "-m", "im2wav.sample", *arguments(trained, out, f"input={folder}", "num_samples=2")]
    process = subprocess.Popen([*call, "batch_size=1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(out.glob("low/*.json")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    made = len(list(out.glob("low/*.json")))
    assert 0 < made < 6
    assert not (out / "manifest.csv").exists()
    run(trained, out, f"input={folder}", "num_samples=2")
    assert contents(out) == contents(whole)
    assert (out / "manifest.csv").read_bytes() == (whole / "manifest.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=1", "made with seed="),
        ("sampler.temperature=0.5", "made with settings.temperature=1.0; now settings.temperature=0.5"),
        ("seconds=0.5", "made with samples=4096; now samples=8000"),
        ("input=OTHER", "made with input_sha256="),
    ],
)
def test_sounds_made_otherwise_are_never_taken_for_these(trained, tmp_path, change, message):
    picture, other = ASSETS / "images" / "owl_03.jpg", tmp_path / "owl_03.jpg"
    shutil.copy(ASSETS / "images" / "cat_03.jpg", other)
    out, change = tmp_path / "out", change.replace("OTHER", str(other))
    run(trained, out, f"input={picture}", "seconds=0.1" if "seconds" not in change else "seconds=null")
    now = [f"input={picture}", *([] if "seconds" in change else ["seconds=0.1"]), change]
    with pytest.raises(ValueError, match=message + r".*overwrite=true"):
        run(trained, out, *now)
    before = contents(out)
    (result,) = run(trained, out, *now, "overwrite=true")
    assert contents(out) != before
    assert json.loads(Path(result["up"]).with_suffix(".json").read_text())["name"] == "owl_03"


def test_a_video_comes_back_with_its_sound(trained, tmp_path):
    import av

    video = write_mp4(tmp_path / "clip.mp4", seconds=1.0)
    (result,) = run(trained, tmp_path / "out", f"input={video}")
    assert Path(result["video"]) == tmp_path / "out" / "up" / "clip_00.mp4"
    assert soundfile.info(result["up"]).frames == pytest.approx(16000, abs=800)
    with av.open(result["video"]) as made:
        assert {s.type for s in made.streams} == {"video", "audio"}
    (result,) = run(trained, tmp_path / "other", f"input={video}", "mux=false", "format=flac", "seconds=0.1")
    assert "video" not in result
    assert soundfile.info(result["up"]).format == "FLAC"
    assert {p.name for p in (tmp_path / "other" / "up").iterdir()} == {"clip_00.flac", "clip_00.json"}


def test_drafts_are_ranked_and_the_best_refined(trained, folder, tmp_path):
    out = tmp_path / "out"
    results = run(trained, out, f"input={folder}", "num_drafts=3", "keep=2", "seconds=0.2")
    assert [(r["name"], r["number"]) for r in results] == [(n, k) for n in sorted(PICTURES) for k in range(3)]
    for name in PICTURES:
        about = [json.loads((out / "low" / f"{name}_{k:02d}.json").read_text()) for k in range(3)]
        assert sorted(a["rank"] for a in about) == [0, 1, 2]
        assert [a["gap"] for a in sorted(about, key=lambda a: a["rank"])] == sorted(a["gap"] for a in about)[::-1]
        refined = {a["number"] for a in about if a["rank"] < 2}
        assert {int(p.stem[-2:]) for p in (out / "up").glob(f"{name}_*.wav")} == refined
        assert all((Path(a["files"]["low"]).name == f"{name}_{a['number']:02d}.wav") for a in about)
    (plain,) = run(trained, tmp_path / "b", f"input={folder / 'owl_03.jpg'}", "seconds=0.2")
    first = (out / "low" / "owl_03_00.wav").read_bytes()
    assert first == Path(plain["low"]).read_bytes()  # draft 0 is what sample 0 would be
    assert len(run(trained, out, f"input={folder}", "num_drafts=3", "keep=2", "seconds=0.2")) == 9
    with pytest.raises(ValueError, match="made with keep=2; now keep=1"):
        run(trained, out, f"input={folder}", "num_drafts=3", "keep=1", "seconds=0.2")


def test_inputs_of_every_kind_through_the_command_line(trained, pairs, folder, tmp_path, monkeypatch, capfd):
    common = ["seconds=0.1", "mux=false"]
    owl, cat = (folder / f"{name}.jpg" for name in ("owl_03", "cat_03"))
    assert command("sample", *arguments(trained, tmp_path / "a", f"input.timeline=[{owl}@0,{cat}@0.05]", *common)) == 0
    assert (tmp_path / "a/up/owl_03_cat_03_00.wav").is_file()
    assert command("sample", "seconds=0.1", *arguments(trained, tmp_path / "b", f"input={pairs}")[1:]) == 0
    stored = [p.stem.removesuffix("_00") for p in (tmp_path / "b/up").glob("*.wav")]
    assert "owl_03" in stored  # with the stored embeddings: no encoder was named
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{cat}\n{owl}\n"))
    assert command("sample", *arguments(trained, tmp_path / "c", "input=-", *common)) == 0
    with (tmp_path / "c" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["name"], r["input"], r["up"]) for r in rows] == [
        ("cat_03", str(cat), "up/cat_03_00.wav"),
        ("owl_03", str(owl), "up/owl_03_00.wav"),
    ]
    prefix = write_wav(tmp_path / "prefix.wav", tone(0.05))
    assert command("sample", *arguments(trained, tmp_path / "d", f"input={owl}", f"prefix={prefix}", *common)) == 0
    edit = tmp_path / "d/up/owl_03_00.wav"
    mended = arguments(trained, tmp_path / "e", f"input={owl}", f"edit={edit}", "replace=[0.02,0.05]")
    assert command("sample", *mended) == 0
    assert soundfile.info(tmp_path / "e/up/owl_03_00.wav").frames == 1600


def test_a_dry_run_says_what_would_be_done_and_does_nothing(trained, folder, tmp_path, capfd):
    write_mp4(folder / "clip.mp4", seconds=1.0)
    assert command("sample", *arguments(trained, tmp_path / "out", f"input={folder}", "dry_run=true")) == 0
    out = capfd.readouterr().out
    assert "4 inputs: 4 sounds to make, 1.8 s in all; 0 are there already" in out
    assert f"clip: 1 of 1.000 s from {folder}/clip.mp4" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"give input=PATH \(a photo"),
        (["input.text=owl", "input.timeline=[a.jpg@0]"], "not timeline and text at once"),
        (["input.text=owl"], "encodes images only"),
        (["input.timeline=[PICTURE@1]"], "first at 0"),
        (["input=PICTURE", "format=mp3"], "format=mp3: expected one of wav, flac"),
        (["input=PICTURE", "mux=maybe"], "mux=maybe"),
        (["input=PICTURE", "num_drafts=0"], "num_drafts=0"),
        (["input=PICTURE", "num_drafts=2", "keep=3"], "keep=3"),
        (["input=PICTURE", "num_drafts=2", "num_samples=2"], "num_samples left at 1"),
        (["input=PICTURE", "negative.text=owl"], "encodes images only"),
        (["input=PICTURE", "negative.image=none.jpg"], "none.jpg"),
        (["input=PICTURE", "pretrained=none"], "none is no folder, and could not be fetched from the Hub"),
        (["input=PICTURE", "seconds=-1"], "seconds=-1"),
        (["input=PICTURE", "precision=fp8"], "precision=fp8"),
        (["input=-"], "stdin names no photo"),
        (["input=-", "trainer.devices=2"], "give a folder, or trainer.devices=1"),
        (["input=PICTURE", "overlap=1"], "overlap=1"),
        (["input=PICTURE", "prefix=none.wav"], "missing file: none.wav"),
        (["input=PICTURE", "replace=[1,2]"], "go together"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_work_is_said_in_one_line(trained, tmp_path, capfd, monkeypatch, overrides, message):
    overrides = [o.replace("PICTURE", str(ASSETS / "images/owl_03.jpg")) for o in overrides]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert command("sample", *arguments(trained, tmp_path / "out", *overrides)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not list(tmp_path.rglob("*.wav"))


def test_two_devices_make_what_one_makes(trained, folder, tmp_path):
    write_mp4(folder / "clip.mp4", seconds=0.5)
    (folder / "broken.jpg").write_text("no picture")
    one, two = tmp_path / "one", tmp_path / "two"
    common = [f"input={folder}", "batch_size=2", "max_failed=0.5", "mux=false", "seconds=0.1"]
    run(trained, one, *common)
    call = [sys.executable, "-m", "im2wav.sample", *arguments(trained, two, *common)]
    shared = subprocess.run(
        [*call, "trainer.devices=2", "trainer.accelerator=cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert shared.returncode == 0, shared.stderr
    assert len(contents(two)) == 8
    assert contents(one) == contents(two)
    assert (one / "manifest.csv").read_bytes() == (two / "manifest.csv").read_bytes()
    assert shared.stdout.count("5 inputs: 5 sounds to make") == shared.stdout.count("4 sounds in") == 1


def test_batches_are_filled():
    units = [Unit(None, list(range(n)), 1.0) for n in (2, 2, 1, 5, 1)]  # type: ignore[arg-type]
    assert [[len(u.numbers) for u in batch] for batch in pack(units, 4)] == [[2, 2], [1], [5], [1]]
