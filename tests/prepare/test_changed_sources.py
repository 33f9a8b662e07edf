"""Pairs follow their source files: replaced ones are embedded again, deleted ones are listed or removed."""

import os
import shutil

import numpy as np
import pytest

from conftest import ASSETS, command, tone, write_wav
from helpers import TINY_ENCODER
from im2wav.data.pairs import PairsFolder
from im2wav.tables import read_table

PHOTOS = sorted((ASSETS / "images").glob("*.jpg"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate("abc"):
        shutil.copy(PHOTOS[number], folder / f"{name}.jpg")
        write_wav(folder / f"{name}.wav", tone(0.5, hertz=300 + 100 * number))
    return folder


def embed(source, out, *more):
    assert command("embed", *TINY_ENCODER, f"input={source}", f"out={out}", *more) == 0
    rows = {row["id"]: row for row in read_table(out / "manifest.csv", {"id"})}
    return rows, {path.name: path.read_bytes() for kind in ("wav", "clip") for path in (out / kind).glob("*")}


def test_a_replaced_file_is_embedded_again_and_nothing_else_is(source, tmp_path):
    out = tmp_path / "pairs"
    _, before = embed(source, out)
    times = {path: path.stat().st_mtime_ns for path in (out / "wav").iterdir()}
    write_wav(source / "a.wav", tone(0.5, hertz=900))
    shutil.copy(PHOTOS[5], source / "b.jpg")
    _, after = embed(source, out)
    assert {name for name in before if before[name] != after[name]} == {"a.wav", "b.npy"}
    assert (out / "wav" / "c.wav").stat().st_mtime_ns == times[out / "wav" / "c.wav"]


def test_a_new_time_alone_matters_by_time_and_not_by_hash(source, tmp_path):
    by_hash = tmp_path / "by_hash"
    rows, _ = embed(source, by_hash, "compare=hash")
    os.utime(source / "a.jpg", (1, 1))
    assert embed(source, by_hash, "compare=hash")[0] == rows
    write_wav(source / "a.wav", -tone(0.5, hertz=300))  # the same size
    os.utime(source / "a.wav", (1, 1))
    assert embed(source, by_hash, "compare=hash")[0] != rows


def test_a_replacement_that_cannot_be_used_leaves_nothing_of_the_old_file(source, tmp_path):
    out = tmp_path / "pairs"
    embed(source, out)
    write_wav(source / "a.wav", np.zeros(8000))
    rows, files = embed(source, out, "max_failed=1")
    assert set(rows) == {"b", "c"}
    assert set(files) == {"b.wav", "b.npy", "c.wav", "c.npy"}
    assert read_table(out / "skipped.csv", {"id"})[0]["reason"] == "silent audio"


def test_deleted_files_are_listed_and_removed_on_request(source, tmp_path, capfd):
    out = tmp_path / "pairs"
    embed(source, out)
    (source / "a.jpg").unlink()
    (source / "a.wav").unlink()
    rows, _ = embed(source, out)
    assert set(rows) == {"a", "b", "c"}
    assert "1 pairs whose source files are gone: a, kept (prune=true removes them)" in capfd.readouterr().out
    rows, files = embed(source, out, "prune=true")
    assert set(rows) == {"b", "c"}
    assert not {"a.wav", "a.npy"} & set(files)
    assert [pair.id for pair in PairsFolder(out).pairs] == ["b", "c"]


def onset(wav):
    level = np.abs(wav[: len(wav) // 160 * 160]).reshape(-1, 160).max(1)
    return float(np.argmax(level > level.max() / 2)) / 100


def test_flash_and_beep_stay_together_in_a_pairs_folder(shared, tmp_path):
    rows, _ = embed(shared / "cases" / "start_times", tmp_path, "fps=25", "silence=0")
    assert len(rows) == 4
    folder = PairsFolder(tmp_path)
    for pair in folder.pairs:
        change = np.abs(np.diff(folder.read_clip(pair).float().numpy(), axis=0)).sum(1)
        wav = folder.read_wav(pair, 0, pair.samples).numpy()
        assert onset(wav) == pytest.approx((np.argmax(change) + 1) / 25, abs=0.05)
    notes = {name: row["note"] for name, row in rows.items()}
    assert "sound late: 1.2" in notes["sound_starts_1.27_s_late"]
    assert "sound early: its first 1.2" in notes["picture_starts_1.2_s_late"]


def test_a_phone_folder_is_read_or_listed(shared, tmp_path, capfd):
    rows, files = embed(shared / "cases" / "phone", tmp_path)
    assert set(rows) == {
        "camcorder",
        "heic_called",
        "messenger",
        "old_phone",
        "photo_avif",
        "photo_heic",
        "photo_jfif",
    } | {"voice_memo"}
    assert {"voice_memo.wav", "messenger.wav"} <= set(files)
    assert "ignored 1: alone.wav (no photo or video has the same name)" in capfd.readouterr().out


def test_one_stem_of_several_files_does_not_reject_the_folder(shared, tmp_path, capfd):
    rows, _ = embed(shared / "cases" / "one_stem", tmp_path)
    assert {name: row["source"].rpartition("/")[2] for name, row in rows.items()} == {
        "Clip [dQw4w9WgXcQ]": "Clip [dQw4w9WgXcQ].mp4",
        "IMG_0001": "IMG_0001.MOV",
        "other": "other.jpg",
    }
    said = capfd.readouterr().out
    assert "ignored 2: Clip [dQw4w9WgXcQ].webp, IMG_0001.JPG (a video has the same name)" in said
    assert ".info.json (no media file)" in said


def test_joined_names_are_told_apart(shared, tmp_path):
    assert set(embed(shared / "cases" / "joined_names", tmp_path)[0]) == {"a__b", "a_b"}
