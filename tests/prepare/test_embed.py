import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import ASSETS, command, tone, write_mp4, write_wav
from im2wav.data.pairs import PairsFolder
from im2wav.prepare.sources import find_sources

OFFLINE = "encoder=efficientnet_lite2"
PICTURE = ASSETS / "images" / "owl_03.jpg"


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pairs_have_unit_embeddings_in_fp16_and_pcm16_audio(pairs):
    folder = PairsFolder(pairs)
    assert [p.id for p in folder.pairs] == ["bird_02", "bird_03", "cat_03", "cow_04", "owl_03", "scream_01"]
    assert {p.split for p in folder.pairs} == {"train", "valid"}
    for pair in folder.pairs:
        stored = np.load(pairs / pair.clip)
        assert stored.dtype == np.float16
        assert stored.shape == (1, 1280)
        assert np.linalg.norm(stored.astype(float)) == pytest.approx(1, abs=1e-3)
        info = soundfile.info(pairs / pair.wav)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", pair.samples)
    info = json.loads((pairs / "dataset.json").read_text())
    assert (info["encoder"], info["dim"], info["fps"], info["sample_rate"]) == ("efficientnet_lite2", 1280, None, 16000)
    assert len(info["weights_sha256"]) == 64
    assert read(pairs / "skipped.csv") == []


def test_real_videos_through_the_real_command_line(shared, tmp_path):
    folder = shared / "data" / "vggsound_examples"
    arguments = [f"input={folder / 'video'}", f"out={tmp_path / 'pairs'}", OFFLINE, "fps=2"]
    run = subprocess.run(
        [sys.executable, "-m", "im2wav.embed", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("nothing skipped")
    opened = PairsFolder(tmp_path / "pairs")
    assert opened.info.fps == 2
    for pair in opened.pairs:
        assert pair.frames == 20
        assert abs(pair.samples - 160_000) < 2_000
        ours = opened.read_wav(pair).numpy()
        theirs = soundfile.read(folder / "wav" / f"{pair.id}.wav")[0].mean(1)  # the official wav of the same clip
        likeness = [np.corrcoef(ours[lag : lag + 150_000], theirs[:150_000])[0, 1] for lag in range(400, 500)]
        assert max(likeness) > 0.98  # it was cut about 28 ms later
        if pair.id.startswith("0nYl"):  # stereo; the other one's official wav was made quieter
            assert ours.std() == pytest.approx(theirs.std(), rel=0.02)


def test_the_good_ones_are_finished_and_the_bad_ones_listed(tmp_path, capfd):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(PICTURE, source / "good.jpg")
    write_wav(source / "good.wav", tone())
    write_mp4(source / "clip.mp4")
    (source / "text.jpg").write_text("no picture")
    shutil.copy(PICTURE, source / "silent.jpg")
    write_wav(source / "silent.wav", np.zeros(16000))
    (source / "cut.mp4").write_bytes((source / "clip.mp4").read_bytes()[:2000])
    write_mp4(source / "mute.mp4", audio=False)
    assert command("embed", OFFLINE, f"input={source}", f"out={out}", "fps=5") == 1
    reasons = {row["id"]: row["reason"] for row in read(out / "skipped.csv")}
    assert reasons.pop("cut") in ("unreadable video", "no audio track")
    assert reasons == {"text": "unreadable image", "silent": "silent audio", "mute": "no audio track"}
    assert [row["id"] for row in read(out / "manifest.csv")] == ["clip", "good"]
    assert "2 of 6 embedded" in capfd.readouterr().out.strip().splitlines()[-1]
    assert command("embed", OFFLINE, f"input={source}", f"out={out}", "fps=5", "max_failed=0.7") == 0


def test_a_second_run_does_only_what_is_missing(pairs, tmp_path):
    out = tmp_path / "pairs"
    shutil.copytree(pairs, out)
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(PICTURE, source / "new.jpg")
    assert command("embed", OFFLINE, f"input={source}", f"out={out}", "loudness=-18") == 0
    stamp = (out / "clip" / "new.npy").stat().st_mtime_ns
    assert command("embed", OFFLINE, f"input={source}", f"out={out}", "loudness=-18") == 0
    assert (out / "clip" / "new.npy").stat().st_mtime_ns == stamp
    (out / "clip" / "new.npy").unlink()
    assert command("embed", OFFLINE, f"input={source}", f"out={out}", "loudness=-18") == 0
    folder = PairsFolder(out)
    assert len(folder.pairs) == 7  # what was there before stayed
    new = next(p for p in folder.pairs if p.id == "new")
    assert (new.wav, new.samples) == ("", 0)


def test_two_encoders_do_not_mix(pairs, tmp_path, capfd):
    info = json.loads((pairs / "dataset.json").read_text())
    for change, message in (
        ({"encoder": "clip_vit_b32"}, "do not mix"),
        ({"weights_sha256": "0" * 64}, "other weights"),
    ):
        out = tmp_path / message.replace(" ", "_")
        out.mkdir()
        (out / "dataset.json").write_text(json.dumps({**info, **change}))
        assert command("embed", OFFLINE, f"input={PICTURE.parent}", f"out={out}", "loudness=-18") == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: out=")
        assert message in error


def test_a_folder_without_a_manifest(tmp_path):
    for name in ("dogs/a.jpg", "dogs/a.wav", "b.mp4", "c d.png", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {s.id: (s.label, Path(s.path).name, s.audio and Path(s.audio).name) for s in find_sources(tmp_path)}
    assert found == {"dogs_a": ("dogs", "a.jpg", "a.wav"), "b": ("", "b.mp4", ""), "c d": ("", "c d.png", "")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("id,image\na,a.jpg\na,b.jpg\n", "several sources have the id 'a'"),
        ("image\na.jpg\n", "lacks the columns"),
        ("id,image\n../a,a.jpg\n", "cannot be a file name"),
        ("id,image,audio\na,,a.wav\n", "neither an image nor a video"),
        ("id,image\n", "nothing to embed"),
    ],
)
def test_bad_manifests_are_rejected(tmp_path, rows, message):
    (tmp_path / "manifest.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        find_sources(tmp_path)


def test_a_manifest_row_whose_file_is_missing_is_listed(tmp_path):
    shutil.copy(PICTURE, tmp_path / "there.jpg")
    (tmp_path / "manifest.csv").write_text("id,image,audio\na,there.jpg,\nb,gone.jpg,\nc,there.jpg,gone.wav\n")
    assert command("embed", OFFLINE, f"input={tmp_path}", f"out={tmp_path / 'out'}") == 1
    skipped = read(tmp_path / "out" / "skipped.csv")
    assert [(row["id"], row["reason"]) for row in skipped] == [("b", "missing file"), ("c", "missing file")]


def test_empty_or_missing_input_and_a_folder_that_cannot_be_written(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    assert command("embed", OFFLINE, f"input={tmp_path / 'empty'}", f"out={tmp_path / 'out'}") == 2
    assert "nothing to embed" in capfd.readouterr().err
    assert command("embed", OFFLINE, f"input={tmp_path / 'none'}", f"out={tmp_path / 'out'}") == 2
    assert "does not exist" in capfd.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert command("embed", OFFLINE, f"input={PICTURE.parent}", f"out={tmp_path / 'file' / 'out'}") == 2
    assert "cannot write to" in capfd.readouterr().err


def test_a_second_run_takes_over_what_the_manifest_now_says(tmp_path, capfd):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(PICTURE, source / "a.jpg")
    manifest = source / "manifest.csv"
    manifest.write_text("id,image,audio,split\na,a.jpg,,train\n", encoding="utf-8-sig")  # as a spreadsheet saves it
    arguments = [OFFLINE, f"input={source}", f"out={out}"]
    assert command("embed", *arguments) == 0
    write_wav(source / "a.wav", tone())
    manifest.write_text("id,image,audio,split\na,a.jpg,a.wav,valid\n")
    assert command("embed", *arguments) == 0
    (pair,) = PairsFolder(out).pairs
    assert (pair.split, pair.samples) == ("valid", 16000)
    assert command("embed", *arguments, "loudness=-18") == 2
    assert "loudness=None, now loudness=-18" in capfd.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(PICTURE, other / "a.jpg")
    assert command("embed", OFFLINE, f"input={other}", f"out={out}") == 2
    assert "already has a pair 'a'" in capfd.readouterr().err
    manifest.write_text("id,image,split\na,a.jpg,val\n")
    assert command("embed", *arguments) == 2
    assert "split='val'" in capfd.readouterr().err


def test_a_huge_image_costs_itself_alone(tmp_path):
    from PIL import Image

    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    shutil.copy(PICTURE, tmp_path / "good.jpg")
    assert command("embed", OFFLINE, f"input={tmp_path}", f"out={tmp_path / 'out'}") == 1
    assert [row["id"] for row in read(tmp_path / "out" / "manifest.csv")] == ["good"]
    assert read(tmp_path / "out" / "skipped.csv")[0]["reason"] == "unreadable image"
