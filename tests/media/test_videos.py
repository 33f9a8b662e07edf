"""Videos of many formats: duration, frames, pitch of the audio track, and what happens when."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from im2wav.media.mux import mux
from im2wav.media.reading import MediaError, read_audio, read_track
from im2wav.media.video import DecordFrames, PyAVFrames, Video
from make_media import FPS, HEIGHT, WIDTH, write_rotated, write_video

RATES = [7350, 8000, 9600, 11025, 12000, 14700, 16000, 18900, 22050, 24000, 32000, 37800, 44056, 44100, 44101, 48000]
RATES += [50000, 64000, 88200, 96000, 176400, 192000]
AAC = [7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000]
MP3 = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000]
TRACKS = [
    *(("mkv", "mpeg4", "pcm_s16le", rate) for rate in RATES),
    *(("mkv", "mpeg4", "flac", rate) for rate in (11025, 44056, 96000)),
    *(("mov", "mpeg4", "pcm_s16le", rate) for rate in RATES if rate < 65536),
    *(("avi", "mpeg4", "pcm_s16le", rate) for rate in (7350, 14700, 44100, 96000)),
    *(("mp4", "libx264", "aac", rate) for rate in AAC),
    *(("avi", "mpeg4", "libmp3lame", rate) for rate in MP3),
    *(("ts", "libx264", "aac", rate) for rate in (16000, 44100)),
    *(("mkv", "libx264", "ac3", rate) for rate in (32000, 44100, 48000)),
    *(("webm", "libvpx", "libopus", rate) for rate in (8000, 16000, 48000)),
]


def pitch(wav: torch.Tensor) -> float:
    """Frequency of the strongest partial in Hz, between bins."""
    power = torch.fft.rfft(wav * torch.hann_window(len(wav)), n=16 * len(wav)).abs()
    return float(power.argmax()) * 16000 / (16 * len(wav))


def onset(wav: torch.Tensor) -> float:
    """Time at which a beep begins, in seconds."""
    level = wav[: len(wav) // 80 * 80].view(-1, 80).square().mean(1)
    return float((level > level.max() / 4).nonzero()[0]) * 80 / 16000


def frames_of(path, fps=FPS, **options):
    return [frame for chunk in Video(path, **options).frames(fps) for frame in chunk]


@pytest.mark.parametrize(("suffix", "codec", "audio_codec", "rate"), TRACKS)
def test_a_tone_keeps_its_pitch_and_a_video_its_length(suffix, codec, audio_codec, rate, tmp_path):
    path = write_video(tmp_path / f"clip.{suffix}", codec=codec, audio_codec=audio_codec, rate=rate)
    video = Video(path)
    wav, native, _ = read_track(path, 16000, video.origin)
    assert native == (48000 if audio_codec == "libopus" else rate)
    assert pitch(wav) == pytest.approx(1000, rel=0.003)
    # an AVI holds whole frames of MP3, and its writer adds empty frames of video meanwhile
    assert len(wav) / 16000 == pytest.approx(1.0, abs=0.16 if rate < 16000 and suffix == "avi" else 0.1)
    assert video.seconds == pytest.approx(1.0, abs=0.21 if suffix == "avi" else 0.02)
    assert len(frames_of(path)) == pytest.approx(FPS, abs=2 * (suffix == "avi"))


@pytest.mark.parametrize("starts", [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (1.0, 1.3)])
@pytest.mark.parametrize(("suffix", "audio_codec"), [("mp4", "aac"), ("mkv", "pcm_s16le"), ("ts", "aac")])
def test_flash_and_beep_stay_together(suffix, audio_codec, starts, tmp_path):
    path = write_video(
        tmp_path / f"clip.{suffix}", 3.0, "libx264", audio_codec, flash=2.0, starts=starts, options={"bf": "2"}
    )
    video = Video(path)
    bright = [float(frame.mean()) for frame in frames_of(path)]
    wav, _, late = read_track(path, 16000, video.origin)
    expected = 2.0 - starts[0]
    assert np.argmax(bright) / FPS == pytest.approx(expected, abs=0.051)
    assert onset(wav) == pytest.approx(expected, abs=0.05)
    assert late == pytest.approx(starts[1] - starts[0], abs=0.05)
    out = tmp_path / "muxed.mp4"
    mux(path, wav, 16000, out)
    muxed = Video(out)
    assert (muxed.origin, muxed.seconds) == (pytest.approx(0, abs=1e-3), pytest.approx(video.seconds, abs=0.02))
    assert onset(read_track(out, 16000, muxed.origin)[0]) == pytest.approx(expected, abs=0.05)
    assert np.argmax([frame.mean() for frame in frames_of(out)]) / FPS == pytest.approx(expected, abs=0.051)


PLAIN = {
    "h264": {"codec": "libx264"},
    "b_frames": {"codec": "libx264", "options": {"bf": "3"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "ten_bit": {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "vp9": {"codec": "libvpx-vp9"},
    "variable_rate": {"codec": "libx264", "stamps": [0, 0.1, 0.15, 0.6, 0.65, 0.7, 0.9]},
    "wide_pixels": {"codec": "libx264", "aspect": Fraction(2)},
    "late": {"codec": "libx264", "starts": (1.0, 0.0)},
}


@pytest.mark.parametrize("name", PLAIN)
def test_decord_and_pyav_give_the_same_frames(name, tmp_path):
    path = write_video(tmp_path / "clip.mp4", **PLAIN[name])
    first, second = Video(path), Video(path, reader="pyav")
    assert isinstance(first._frames, DecordFrames)
    assert isinstance(second._frames, PyAVFrames)
    assert first.seconds == second.seconds
    pairs = list(zip(frames_of(path, 24), frames_of(path, 24, reader="pyav"), strict=True))
    assert len(pairs) == int(first.seconds * 24 + 1e-6)
    for one, other in pairs:
        assert one.shape == other.shape == (HEIGHT, WIDTH * (2 if name == "wide_pixels" else 1), 3)
        assert np.abs(one.astype(int) - other).max() <= 4
    small = list(zip(frames_of(path, size=16), frames_of(path, size=16, reader="pyav"), strict=True))
    assert min(small[0][0].shape[:2]) == 16
    assert max(np.abs(one.astype(int) - other).mean() for one, other in small) < 2


def test_variable_frame_rates_show_the_frame_of_each_time(tmp_path):
    stamps = [0, 0.1, 0.15, 0.6, 0.65, 0.7, 0.9]
    path = write_video(tmp_path / "clip.mp4", codec="libx264", stamps=stamps, audio_codec=None, flash=0.15)
    bright = [frame.mean() > 100 for frame in frames_of(path, 20)]
    shown = [n / 20 for n, is_bright in enumerate(bright) if is_bright]
    assert shown[-1] == pytest.approx(0.55, abs=0.01)  # until the next frame, at 0.6 s
    assert not bright[0]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_rotated_by_the_display_matrix(degrees, tmp_path):
    upright = frames_of(write_video(tmp_path / "upright.mp4", codec="libx264", audio_codec=None))[5]
    path = write_rotated(tmp_path / "clip.mp4", degrees)
    mine = frames_of(path)[5]
    assert np.array_equal(mine, np.rot90(upright, -degrees // 90))
    mux(path, torch.zeros(1600), 16000, tmp_path / "muxed.mp4")
    assert np.abs(frames_of(tmp_path / "muxed.mp4")[5].astype(int) - mine).max() <= 4


def test_av1_is_read_without_decord(tmp_path):
    path = write_video(tmp_path / "clip.mp4", codec="libsvtav1", options={"preset": "12", "svtav1-params": "avif=0"})
    assert isinstance(Video(path)._frames, PyAVFrames)
    assert len(frames_of(path)) == FPS


def test_a_single_frame_is_a_video(tmp_path):
    path = write_video(tmp_path / "clip.mp4", seconds=0.1, codec="libx264")
    assert Video(path).seconds == pytest.approx(0.1, abs=0.01)
    assert len(frames_of(path)) == 1


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = write_video(tmp_path / "clip.mp4").rename(tmp_path / "clip.avi")
    assert len(frames_of(path)) == FPS
    assert pitch(read_audio(path, 16000)) == pytest.approx(1000, rel=0.003)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animated_images_are_videos(suffix, tmp_path):
    path = tmp_path / f"clip.{suffix}"
    images = [Image.new("RGB", (32, 24), (value, 0, 0)) for value in (0, 100, 200)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 200], loop=0)
    assert Video(path).seconds == pytest.approx(0.6)
    reds = [int(frame[0, 0, 0]) for frame in frames_of(path)]
    assert reds == pytest.approx([0, 100, 100, 100, 200, 200], abs=3)


def test_a_cover_image_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(cover.encode(None))
    with pytest.raises(MediaError, match="no video track"):
        Video(path)


def test_a_truncated_video_is_cut(tmp_path):
    whole = write_video(tmp_path / "clip.mkv", 5.0, "libx264").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"cut video: .* of 5\.\d\d s could be read"):
        frames_of(tmp_path / "cut.mkv")


def test_a_codec_that_mp4_cannot_hold_is_one_message(tmp_path):
    path = write_video(tmp_path / "clip.webm", codec="libvpx", audio_codec="libopus", rate=48000)
    with pytest.raises(MediaError, match=r"cannot mux.*vp8"):
        mux(path, torch.zeros(1600), 16000, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_tags_need_not_be_utf_8(tmp_path):
    path = write_video(tmp_path / "clip.mkv", tags={"title": "Mxnchen"})
    content = path.read_bytes()
    assert b"Mxnchen" in content
    path.write_bytes(content.replace(b"Mxnchen", b"M\xfcnchen"))  # Latin-1, as old software writes it
    assert len(frames_of(path)) == FPS
    assert len(read_track(path, 16000)[0]) == pytest.approx(16000, abs=1600)
    mux(path, torch.zeros(16000), 16000, tmp_path / "muxed.mp4")
    assert len(frames_of(tmp_path / "muxed.mp4")) == FPS


def test_a_video_of_an_unknown_codec_is_not_called_audio(tmp_path):
    path = write_video(tmp_path / "clip.mp4", codec="libx264")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"avc1", b"zzz1"))
    with pytest.raises(MediaError, match=r"unreadable video: .*video \(unknown\)"):
        Video(path)
