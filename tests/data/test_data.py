import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from conftest import tone, write_mp4, write_wav
from helpers import RATE, make_pairs
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.pairs import PairsFolder
from im2wav.files import write_atomic
from im2wav.media import reading as media
from im2wav.media.video import read_frames


def test_frames_belong_to_the_window_by_time(tmp_path):
    data = PairsDataModule(str(make_pairs(tmp_path)), num_samples=8000, batch_size=1)
    windows = data.windows["train"]
    for place in (0.0, 0.3, 0.77, 0.999):
        item = windows[(0, place)]
        start = item.timing["offset"].item()
        np.testing.assert_allclose(item.wav[0, :3] * 65536, start + np.arange(3), atol=2)
        first = int(start / RATE * 10)
        assert item.clip[:, 0].tolist() == list(range(first, first + 6))  # 0.5 s at 10 fps, both ends included
        assert item.timing["total"] == 48000
    assert item.wav.shape == (1, 8000)


@pytest.mark.parametrize("short", ["loop", "pad", "drop"])
def test_short_audio(tmp_path, short):
    data = PairsDataModule(str(make_pairs(tmp_path)), num_samples=16384, batch_size=1, short=short)
    windows = data.windows["train"]
    assert len(windows) == (1 if short == "drop" else 2)
    if short == "drop":
        return
    item = windows[(1, 0.6)]
    tail = item.wav[0, 8000:]
    assert (tail[:8000] == item.wav[0, :8000]).all() if short == "loop" else (tail == 0).all()
    assert item.timing == {"total": 16384, "offset": 0, "duration": 16384}
    expected = [0, 1, 2, 3, 4] * 3 if short == "loop" else [0, 1, 2, 3, 4] + [4] * 10
    assert item.clip[:, 0].tolist() == expected[:11]


def test_batches_follow_the_manifest_s_split_and_carry_codes_once_a_tokenizer_is_set(tmp_path):
    root = make_pairs(tmp_path, (1.0, 1.0, 1.0), splits=("train", "valid", "train"))
    data = PairsDataModule(str(root), num_samples=8192, batch_size=2)
    assert next(iter(data.loader("train"))).id == ["0", "2"]
    assert next(iter(data.val_dataloader())).id == ["1"]
    batch = next(iter(data.train_dataloader()))
    assert batch.codes is None
    assert batch.wav.shape == (2, 1, 8192)
    assert batch.clip.shape == (2, 6, 2)

    class Halver(torch.nn.Module):
        def encode(self, wav, levels=("low", "up")):
            return {"low": (wav[:, 0, ::2] > 0).long()}

    data.tokenizer = Halver()
    assert data.on_after_batch_transfer(batch, 0).codes["low"].shape == (2, 4096)


def test_stereo_at_44_1_khz_becomes_mono_at_16_khz(tmp_path):
    left, right = tone(1.0, 44100, 440), tone(1.0, 44100, 440)
    path = write_wav(tmp_path / "a.wav", np.stack([left, 0 * right], 1), 44100)
    wav = media.read_audio(path, RATE)
    assert wav.shape == (16000,)
    np.testing.assert_allclose(wav[1000:-1000], tone(1.0, RATE, 440)[1000:-1000] / 2, atol=2e-3)


def test_the_track_of_a_video_is_mixed_and_resampled(tmp_path):
    wav = media.read_track(write_mp4(tmp_path / "a.mp4"), RATE)[0]
    assert abs(len(wav) - 2 * RATE) < 2500  # AAC pads to whole frames
    spectrum = torch.fft.rfft(wav[8000:24000]).abs()
    assert spectrum.argmax().item() == 440  # bins of 1 Hz
    assert wav[8000:24000].abs().max().item() == pytest.approx(
        0.25, abs=0.01
    )  # half of 0.5: the right channel is silent


@pytest.mark.parametrize("fps", [10, 4, 30])
def test_frames_are_taken_by_time(tmp_path, fps):
    path = write_mp4(tmp_path / "a.mp4", seconds=2.0, fps=10, audio=False)
    frames = [np.asarray(f).mean() for chunk in read_frames(path, fps, chunk=7) for f in chunk]
    assert len(frames) == 2 * fps
    shown = [int(k / fps * 10 + 1e-6) for k in range(2 * fps)]
    np.testing.assert_allclose(frames, [20 + 200 * i // 19 for i in shown], atol=4)


def test_loudness_is_set_without_clipping():
    wav = torch.from_numpy(tone()).float()
    assert media.set_loudness(wav, -20).square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-3)
    assert media.set_loudness(wav, 0).abs().max().item() == pytest.approx(0.99, rel=1e-3)


def test_an_image_is_turned_upright(tmp_path):
    from PIL import Image

    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert media.read_image(tmp_path / "a.jpg").size == (20, 40)


def bad_files(folder):
    text = folder / "text.jpg"
    text.write_text("this is no picture")
    nan = write_wav(folder / "nan.wav", np.array([0.0, np.nan], np.float32))
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan], np.float32), RATE, subtype="FLOAT")
    empty = write_wav(folder / "empty.wav", np.zeros(0))
    whole = write_mp4(folder / "whole.mp4")
    cut = folder / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    mute = write_mp4(folder / "mute.mp4", audio=False)
    silent = torch.zeros(100)
    return {
        "unreadable image": lambda: media.read_image(text),
        "missing file": lambda: media.read_image(folder / "none.jpg"),
        "unreadable audio": lambda: media.read_audio(text, RATE),
        "broken audio": lambda: media.read_audio(nan, RATE),
        "empty audio": lambda: media.read_audio(empty, RATE),
        "silent audio": lambda: media.check_loudness(silent, 0.001, "a.wav"),
        "unreadable video": lambda: list(read_frames(cut, 10)),
        "no audio track": lambda: media.read_track(mute, RATE),
    }


def test_what_cannot_be_used_says_why(tmp_path):
    for reason, call in bad_files(tmp_path).items():
        with pytest.raises(media.MediaError) as caught:
            call()
        assert caught.value.reason == reason
    with pytest.raises(media.MediaError, match="missing file"):
        media.read_audio(tmp_path / "none.wav", RATE)
    with pytest.raises(media.MediaError, match="missing file"):
        media.read_track(tmp_path / "none.mp4", RATE)


def test_a_pairs_folder_that_is_not_one_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"im2wav\.embed"):
        PairsFolder(tmp_path)
    root = make_pairs(tmp_path)
    info = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        PairsFolder(root)
    (root / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"data\.short='shrink'"):
        PairsDataModule(str(root), short="shrink")
    with pytest.raises(ValueError, match=r"data\.crop='end'"):
        PairsDataModule(str(root), crop="end")
    with pytest.raises(ValueError, match="none of 2 pairs is usable for training"):
        PairsDataModule(str(root), num_samples=10**6, short="drop")
    (root / "wav/0.wav").unlink()
    with pytest.raises(ValueError, match=r"wav/0\.wav, named in"):
        PairsDataModule(str(root), num_samples=8000).windows["train"][(0, 0.5)]
    (root / "clip/1.npy").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"clip/1\.npy, named in"):
        PairsDataModule(str(root), num_samples=8000).windows["train"][(1, 0.5)]
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["id"])
    with pytest.raises(ValueError, match="lacks the columns"):
        PairsFolder(root)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_atomic(tmp_path / "a", b"before")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="No space left"):
        write_atomic(tmp_path / "a", b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"
    with pytest.raises(ValueError, match="cannot write to"):
        write_atomic(tmp_path / "a" / "b", b"")


def test_official_crops(tmp_path):
    root = make_pairs(tmp_path, (3.0, 2.0, 0.1), splits=("train",) * 3)
    with pytest.raises(ValueError, match=r"data\.crop=official"):
        PairsDataModule(str(root), num_samples=8192, crop="official")
    data = PairsDataModule(str(root), num_samples=8192, crop="official", short="drop", batch_size=4)
    windows = data.windows["train"]
    assert len(windows) == 80_000 // 8192
    assert [windows.locate(0, 0.5), windows.locate(0, 0.0)] == [(windows.pairs[0], 0)] * 2
    for row in range(len(windows)):
        for place in (0.0, 0.3, 0.7, 0.999):
            pair, offset = windows.locate(row, place)
            assert 0 <= offset <= pair.samples - 8192
            assert windows[(row, place)].timing["offset"] == offset
