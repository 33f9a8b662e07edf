"""The folder of generated audio: names, tables, videos, resuming."""

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

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from conftest import ASSETS, command, config, tone, write_mp4, write_wav
from im2wav.inference.api import make_batches
from im2wav.inference.generate import write_audio
from im2wav.media.reading import read_audio
from im2wav.media.video import Video
from im2wav.sample import sample

IMAGES = ("owl_03", "cat_03", "bell_01")


def arguments(trained, out, *overrides):
    return ["encoder=efficientnet_lite2", "run_name=base", f"paths.runs={trained}", f"out={out}", *map(str, overrides)]


def run(trained, out, *overrides):
    return sample(config("sample", *arguments(trained, out, *overrides)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three photos."""
    made = tmp_path / "in"
    made.mkdir()
    for name in IMAGES:
        shutil.copy(ASSETS / "images" / f"{name}.jpg", made)
    return made


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.wav"))}


def test_a_second_run_generates_only_missing_files(trained, folder, tmp_path, capfd):
    out = tmp_path / "out"
    run(trained, out, f"input={folder}")
    before, stamps = contents(out), {p: p.stat().st_mtime_ns for p in out.rglob("*_0*")}
    (out / "low" / "cat_03_00.json").unlink()  # what says that a sound is finished
    (out / "up" / "owl_03_00.wav").unlink()
    capfd.readouterr()
    assert command("sample", *arguments(trained, out, f"input={folder}")) == 0
    assert "3 inputs: 2 audio files to generate, 0.5 s in total; 1 exist already" in capfd.readouterr().out
    assert contents(out) == before
    assert {p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp} == {
        f"bell_01_00.{suffix}" for suffix in ("wav", "json")
    }
    run(trained, out, f"input={folder}", "num_samples=2")  # more of them: the first ones stay
    assert {k: v for k, v in contents(out).items() if k in before} == before
    assert len(contents(out)) == 2 * len(before)


def test_a_killed_run_resumes_to_the_same_files(trained, folder, tmp_path):
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
        ("seed=1", "generated with seed="),
        ("sampler.temperature=0.5", "generated with settings.temperature=1.0; now settings.temperature=0.5"),
        ("seconds=0.5", "generated with samples=4096; now samples=8000"),
        ("input=OTHER", "generated with input_sha256="),
    ],
)
def test_files_of_other_settings_are_an_error(trained, tmp_path, change, message):
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


def test_a_video_is_written_with_its_audio(trained, tmp_path):
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
    assert [(r["name"], r["number"]) for r in results] == [(n, k) for n in sorted(IMAGES) for k in range(3)]
    for name in IMAGES:
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
    with pytest.raises(ValueError, match="generated with keep=2; now keep=1"):
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
    prompt = write_wav(tmp_path / "prompt.wav", tone(0.05))
    assert (
        command("sample", *arguments(trained, tmp_path / "d", f"input={owl}", f"continue_from={prompt}", *common)) == 0
    )
    whole = tmp_path / "d/up/owl_03_00.wav"
    inpainted = arguments(trained, tmp_path / "e", f"input={owl}", f"inpaint={whole}", "inpaint_interval=[0.02,0.05]")
    assert command("sample", *inpainted) == 0
    assert soundfile.info(tmp_path / "e/up/owl_03_00.wav").frames == 1600


def test_a_dry_run_writes_nothing(trained, folder, tmp_path, capfd):
    write_mp4(folder / "clip.mp4", seconds=1.0)
    assert command("sample", *arguments(trained, tmp_path / "out", f"input={folder}", "dry_run=true")) == 0
    out = capfd.readouterr().out
    assert "4 inputs: 4 audio files to generate, 1.8 s in total; 0 exist already" in out
    assert f"clip: 1 x 1.000 s from {folder}/clip.mp4" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"set input=PATH \(a photo"),
        (["input.text=owl", "input.timeline=[a.jpg@0]"], "not timeline and text together"),
        (["input.text=owl"], "encodes images only"),
        (["input.timeline=[IMAGE@1]"], "first at 0"),
        (["input=IMAGE", "format=aiff"], "format=aiff: must be one of wav, flac"),
        (["input=IMAGE", "mux=maybe"], "mux=maybe"),
        (["input=IMAGE", "num_samples=0"], "num_samples=0"),
        (["input=IMAGE", "num_drafts=0"], "num_drafts=0"),
        (["input=IMAGE", "num_drafts=2", "keep=3"], "keep=3"),
        (["input=IMAGE", "num_drafts=2", "num_samples=2"], "and num_samples=1"),
        (["input=IMAGE", "negative.text=owl"], "encodes images only"),
        (["input=IMAGE", "negative.image=none.jpg"], "none.jpg"),
        (
            ["input=IMAGE", "run_name=null", "pretrained=none"],
            "none is no folder, and ",
        ),
        (["input=IMAGE", "seconds=-1"], "seconds=-1"),
        (["input=IMAGE", "precision=fp8"], "precision=fp8"),
        (["input=-"], "stdin lists no photo"),
        (["input=-", "trainer.devices=2"], "set a folder, or trainer.devices=1"),
        (["input=IMAGE", "overlap=1"], "overlap=1"),
        (["input=IMAGE", "continue_from=none.wav"], "missing file: none.wav"),
        (["input=IMAGE", "inpaint_interval=[1,2]"], "set inpaint=AUDIO together"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_options_are_errors_of_one_line(trained, tmp_path, capfd, monkeypatch, overrides, message):
    overrides = [o.replace("IMAGE", str(ASSETS / "images/owl_03.jpg")) for o in overrides]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert command("sample", *arguments(trained, tmp_path / "out", *overrides)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not list(tmp_path.rglob("*.wav"))


def test_two_devices_write_the_files_of_one(trained, folder, tmp_path):
    write_mp4(folder / "clip.mp4", seconds=0.5)
    (folder / "broken.jpg").write_text("not an image")
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
    assert shared.stdout.count("5 inputs: 5 audio files to generate") == shared.stdout.count("4 audio files in") == 1


def test_batches_are_filled():
    groups = [[None] * n for n in (2, 2, 1, 5, 1)]
    assert [[len(group) for group in batch] for batch in make_batches(groups, 4)] == [[2, 2], [1], [5], [1]]


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "opus", "m4a"])
def test_every_format_holds_the_audio(tmp_path, suffix):
    path, given = tmp_path / f"a.{suffix}", torch.from_numpy(tone(2.0)).float()
    write_audio(path, given, 16000)
    wav = read_audio(path, 16000)
    assert abs(len(wav) - 32000) <= 2048  # AAC and MP3 fill their last frame
    spectrum = torch.fft.rfft(wav[4000:20000]).abs()
    assert spectrum.argmax() == 440
    assert float(wav[4000:20000].std()) == pytest.approx(float(given.std()), rel=0.1)


def test_compressed_audio_is_found_again(trained, tmp_path, capfd):
    given = arguments(trained, tmp_path / "out", f"input={ASSETS / 'images/owl_03.jpg'}", "format=mp3")
    for _ in range(2):
        assert command("sample", *given) == 0
    assert (tmp_path / "out" / "up" / "owl_03_00.mp3").is_file()
    assert "0 audio files to generate" in capfd.readouterr().out


@pytest.mark.parametrize("options", [["format=mp4"], ["mux=true"]])
def test_a_photo_becomes_a_video_that_shows_it(trained, tmp_path, options):
    photo = ASSETS / "images/owl_03.jpg"
    (made,) = run(trained, tmp_path / "out", f"input={photo}", "seconds=1", *options)
    video = Video(Path(made["video"]))
    assert video.seconds == pytest.approx(1, abs=0.11)
    assert len(read_audio(made["video"], 16000)) == pytest.approx(16000, abs=2048)
    frame = Image.fromarray(video_frame(made["video"]))
    small = [np.asarray(x.convert("L").resize((16, 16)), float).ravel() for x in (frame, Image.open(photo))]
    assert np.corrcoef(*small)[0, 1] > 0.98
    assert Path(made["up"]).suffix == ".wav"


def video_frame(path: str) -> np.ndarray:
    """The first frame of a video."""
    with av.open(path) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")
