"""`sample` on files as users have them."""

import csv
import json

import pytest

from conftest import command
from im2wav.media.reading import read_track
from im2wav.media.video import Video


@pytest.fixture(scope="module")
def generated(shared, trained, tmp_path_factory):
    """Audio for the videos of ../shared/cases."""
    out, inputs = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("in")
    cases = shared / "cases"
    for path in (
        *cases.glob("*.mp4"),
        *cases.glob("*.webm"),
        *(cases / "avi").iterdir(),
        *(cases / "start_times").iterdir(),
    ):
        (inputs / path.name).symlink_to(path)
    options = ["run_name=base", f"paths.runs={trained}", "device=cpu", "seconds=0.1"]
    assert command("sample", f"input={inputs}", f"out={out}", *options) == 0
    return inputs, out


def test_every_video_gets_audio(generated):
    inputs, out = generated
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(inputs.iterdir())) == 11
    names = {path.name.partition(".")[0] for path in (out / "up").glob("*.wav")}
    assert {"av1_mp4_00", "av1_webm_00", "h264_00", "mpeg4_b_frames_00", "browser_recording_00"} <= names


def test_videos_are_muxed_where_mp4_can_hold_their_codec(generated):
    inputs, out = generated
    for path in inputs.iterdir():
        name = f"{path.stem}_{path.suffix[1:]}" if path.stem == "av1" else path.stem
        muxed = out / "up" / f"{name}_00.mp4"
        assert muxed.is_file() == (path.stem != "browser_recording")
        if muxed.is_file():
            video = Video(muxed)
            assert video.seconds == pytest.approx(Video(path).seconds, abs=0.05)
            assert read_track(muxed, 16000, video.origin)[2] == pytest.approx(0, abs=0.02)


def test_hevc_keeps_the_tag_that_apple_plays(generated):
    import av

    with av.open(str(generated[1] / "up" / "hevc_hvc1_00.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"
    assert json.loads((generated[1] / "up" / "hevc_hvc1_00.json").read_text())
