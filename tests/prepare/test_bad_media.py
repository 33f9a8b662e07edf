"""Whatever lies in people's folders: each file costs itself at most, and the reason is written down."""

import csv
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from conftest import ASSETS, command, tone, write_mp4, write_wav
from helpers import TINY_ENCODER
from im2wav.data.pairs import PairsFolder
from im2wav.media import reading as media
from im2wav.media.video import read_frames

PICTURE = ASSETS / "images" / "owl_03.jpg"


def faststart(path: Path) -> Path:
    """The same mp4 with its index before the data, as for streaming: cut, it still opens."""
    import av

    out = path.with_name(f"faststart {path.name}")
    with av.open(str(path)) as source, av.open(str(out), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


def write_frames(path: Path, times: list[int], moving: bool = True) -> Path:
    """A video without sound whose frame k, of brightness 20 + 10 k, is shown from times[k] ms on."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for k, milliseconds in enumerate(times):
            pixels = np.full((48, 64, 3), 20 + 10 * k * moving, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def beside(picture: Path, samples, rate: int = 16000, **how) -> None:
    shutil.copy(PICTURE, picture)
    soundfile.write(picture.with_suffix(".wav"), samples, rate, **how)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Everything bad in one folder, embedded: (pairs by id, reasons by id)."""
    folder, out = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("out") / "pairs"
    whole = write_mp4(folder / "whole.mp4")
    for percent in (1, 30, 60, 90, 99):
        for path in (whole, faststart(whole)):
            content = path.read_bytes()
            name = f"cut{percent}{'f' if path != whole else ''}.mp4"
            (folder / name).write_bytes(content[: len(content) * percent // 100])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("<html>not found</html>")
    write_mp4(folder / "mute.mp4", audio=False)
    for name, seconds in (("longer", 5.0), ("shorter", 1.0)):
        write_mp4(folder / f"{name}.mp4", audio=False)
        write_wav(folder / f"{name}.wav", tone(seconds))
    write_mp4(folder / "one frame.mp4", seconds=0.1)
    write_wav(folder / "one frame.wav", tone(0.4))
    write_mp4(folder / "odd rate.mp4", fps=Fraction(2500, 83))
    write_frames(folder / "still.mp4", [0, 500, 1000], moving=False)
    write_wav(folder / "still.wav", tone(1.0))
    beside(folder / "8 bit.jpg", tone(), subtype="PCM_U8")
    beside(folder / "float.jpg", 3 * tone(), subtype="FLOAT")
    beside(folder / "nan.jpg", np.array([0.5, np.nan] * 8000), subtype="FLOAT")
    beside(folder / "infinite.jpg", np.array([0.5, np.inf] * 8000), subtype="FLOAT")
    beside(folder / "tiny.jpg", tone(0.05))
    beside(folder / "tenth.jpg", tone(0.1))
    beside(folder / "44100.jpg", tone(1.0, 44100), 44100)
    beside(folder / "no samples.jpg", np.zeros(0))
    beside(folder / 'v1.2 naïve 音, "x".jpg', tone())
    assert command("embed", *TINY_ENCODER, f"input={folder}", f"out={out}", "fps=10", "min_seconds=0.1") == 1
    skipped = {row["id"]: row for row in csv.DictReader((out / "skipped.csv").open(encoding="utf-8"))}
    opened = PairsFolder(out)
    for pair in opened.pairs:
        assert len(opened.read_wav(pair)) == pair.samples
        assert opened.read_clip(pair).shape == (pair.frames, 16)
    return {pair.id: pair for pair in opened.pairs}, skipped


def test_each_bad_file_says_why(result):
    pairs, skipped = result
    reasons = {name: row["reason"] for name, row in skipped.items()}
    for percent in (1, 30, 60, 90, 99):
        assert reasons.pop(f"cut{percent}") == "unreadable video"
        assert reasons.pop(f"cut{percent}f") in (
            "unreadable video",
            "no video track",
            "cut video",
            "cut audio",
            "no audio track",
        )
    assert reasons == {
        "zero": "empty file",
        "text": "unreadable video",
        "mute": "no audio track",
        "still": "still frame",
        "nan": "broken audio",
        "infinite": "broken audio",
        "tiny": "too short",
        "no samples": "empty audio",
    }
    assert not pairs.keys() & skipped.keys()
    assert not any("[bt]" in row["detail"] or row["detail"].count(":") > 6 for row in skipped.values())  # no traces


def test_odd_files_that_can_be_used_are_used(result):
    pairs, _ = result
    frames = {name: (pair.frames, pair.samples) for name, pair in pairs.items()}
    assert frames["longer"] == (20, 32000)  # cut to the video
    assert pairs["longer"].note == "sound cut: 5.00 s to the video's 2.00 s"
    assert frames["shorter"] == (20, 16000)
    assert pairs["shorter"].note == "sound short: 1.00 s of the video's 2.00 s"
    assert frames["one frame"] == (1, 6400)
    assert frames["odd rate"][0] == 19  # 60 frames of 83 / 2500 s last 1.992 s
    assert frames["tenth"] == (1, 1600)
    assert frames["44100"] == (1, 16000)
    assert pairs["44100"].note == "resampled: from 44100 Hz"
    assert 'v1.2 naïve 音, "x"' in pairs


def test_values_of_8_bit_and_float_files(result, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype="PCM_U8")
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.wav", 16000), tone(), atol=1 / 128)
    soundfile.write(tmp_path / "b.wav", 3 * tone(), 16000, subtype="FLOAT")
    np.testing.assert_allclose(media.read_audio(tmp_path / "b.wav", 16000), 3 * tone(), atol=1e-6)


def test_frames_of_variable_rate_are_taken_by_the_time_they_are_shown(tmp_path):
    times = [0, 100, 150, 700, 1000, 1033]
    path = write_frames(tmp_path / "a.mp4", times)
    shown = [np.asarray(image).mean() for chunk in read_frames(path, 10) for image in chunk]
    expected = [20 + 10 * sum(t <= 100 * k + 1e-6 for t in times) - 10 for k in range(len(shown))]
    assert len(shown) >= 10
    np.testing.assert_allclose(shown, expected, atol=4)


def test_two_inputs_with_one_id_are_rejected(tmp_path, capfd):
    shutil.copy(PICTURE, tmp_path / "a.jpg")
    (tmp_path / "manifest.csv").write_text("id,image\na,a.jpg\na,a.jpg\n")
    assert command("embed", *TINY_ENCODER, f"input={tmp_path}", f"out={tmp_path / 'out'}") == 2
    assert "several sources have the id 'a'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_hangs_and_one_that_dies_cost_their_files_alone(tmp_path):
    for name in ("a", "c", "e"):
        shutil.copy(PICTURE, tmp_path / f"{name}.jpg")
    Image.new("RGB", (13, 20)).save(tmp_path / "b.png")
    Image.new("RGB", (17, 20)).save(tmp_path / "d.png")
    arguments = [f"input={tmp_path}", f"out={tmp_path / 'out'}", "timeout=4", "encoder._target_=helpers.FragileEncoder"]
    assert command("embed", *TINY_ENCODER, *arguments) == 1
    skipped = {row["id"]: row["reason"] for row in csv.DictReader((tmp_path / "out" / "skipped.csv").open())}
    assert skipped == {"b": "decoder hung", "d": "decoder died"}
    assert [pair.id for pair in PairsFolder(tmp_path / "out").pairs] == ["a", "c", "e"]


@contextmanager
def mounted(folder: Path, options: str):
    """A small disk."""
    folder.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(call, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, capfd):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(12):
        shutil.copy(PICTURE, source / f"{i:02}.jpg")
        write_wav(source / f"{i:02}.wav", tone(2.0, hertz=300 + i))
    with mounted(tmp_path / "disk", "size=400k") as disk:
        call = [*TINY_ENCODER, f"input={source}", f"out={disk / 'out'}"]
        assert command("embed", *call) == 2
        assert "No space left on device" in capfd.readouterr().err.strip().splitlines()[-1]
        wavs = list((disk / "out" / "wav").glob("*"))
        assert 0 < len(wavs) < 12
        assert {soundfile.info(path).frames for path in wavs} == {32000}
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert command("embed", *call) == 0
        assert len(PairsFolder(disk / "out").pairs) == 12


def test_a_target_that_cannot_be_written_is_named(tmp_path, capfd):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(PICTURE, source / "a.jpg")
    with mounted(tmp_path / "disk", "size=400k,ro") as disk:
        assert command("embed", *TINY_ENCODER, f"input={source}", f"out={disk / 'out'}") == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: cannot write to {disk / 'out'}: Read-only file system")


MEASURE = """
import resource, sys
from functools import partial
import numpy as np
import torch
from im2wav.media.encoder import resized_square
from im2wav.prepare.clip_reader import ClipReader
from im2wav.prepare.sources import Source

torch.set_num_threads(1)
frames = 0
for message in ClipReader(partial(resized_square, size=32), 32, 30.0)(Source("a", video=sys.argv[1])):
    frames += len(message) if isinstance(message, np.ndarray) else 0
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """320 x 180 in full would be 0.17 MB a frame."""
    import av

    found = []
    for seconds in (4, 40):
        path = tmp_path / f"{seconds}.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
            for i in range(seconds * 30):
                frame = np.full((180, 320, 3), i % 200, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video.encode())
        write_wav(path.with_suffix(".wav"), tone(seconds))
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                MEASURE.replace("video=sys.argv[1]", "video=sys.argv[1], audio=sys.argv[2]"),
                path,
                path.with_suffix(".wav"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        frames, megabytes = run.stdout.split()
        assert int(frames) == seconds * 30
        found.append(float(megabytes))
    assert found[1] - found[0] < 40  # 1,080 frames more: 187 MB in full
