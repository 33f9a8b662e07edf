import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ASSETS, write_mp4
from im2wav.inference.inputs import (
    Input,
    embed_input,
    find_inputs,
    input_of,
    list_inputs,
    name_inputs,
    one_input,
    text_input,
    timeline_input,
)
from im2wav.media.reading import MediaError
from im2wav.media.video import Video

IMAGES = ASSETS / "images"


class Brightness(torch.nn.Module):
    """An encoder whose embedding of an image is its brightness."""

    name, dim, size = "brightness", 1, None

    def encode(self, images):
        grey = [Image.fromarray(np.asarray(image)).convert("L") for image in images]
        return torch.tensor([[sum(image.resize((1, 1)).getdata()) / 255.0] for image in grey])

    def encode_text(self, texts):
        return torch.tensor([[float(len(text))] for text in texts])


def test_inputs_of_one_name_are_kept_apart(tmp_path):
    inputs = [Input("", "photo", tmp_path / p) for p in ("a.jpg", "a.mp4", "sub/b.png", "c.png")]
    assert [i.name for i in name_inputs(inputs, tmp_path)] == ["a_jpg", "a_mp4", "sub_b", "c"]
    assert [i.name for i in name_inputs(inputs[:1], tmp_path)] == ["a"]
    more = name_inputs([*inputs, Input("", "photo", tmp_path / "sub_b.png")], tmp_path)
    assert [i.name for i in more] == ["a_jpg", "a_mp4", "sub__b", "c", "sub_b"]


def test_a_list_of_paths(tmp_path):
    for name in ("x/1.jpg", "y/1.jpg"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(IMAGES / "owl_03.jpg", tmp_path / name)
    lines = io.StringIO(f"{tmp_path}/y/1.jpg\n\n{tmp_path}/x/1.jpg\n")
    assert [i.name for i in list_inputs(lines)] == ["y_1", "x_1"]  # in the order of the list
    with pytest.raises(ValueError, match="stdin lists no photo"):
        list_inputs(["\n"])
    with pytest.raises(ValueError, match=r"input=none.jpg: expected a photo, a video"):
        list_inputs(["none.jpg"])


def test_a_pairs_folder_gives_its_embeddings_under_its_ids(pairs):
    found = find_inputs(pairs)
    assert [i.name for i in found] == sorted(i.name for i in found)
    assert {i.kind for i in found} == {"pair"}
    seen = embed_input(found[0], Brightness, None, 1.0)
    assert seen.embeddings.shape == (1, 1280)
    assert seen.fps is None
    assert found[0].source.endswith(f"{found[0].name}.jpg")
    assert len({i.sha256 for i in found}) == len(found)


def test_photos_in_turn(tmp_path):
    from PIL import Image

    for name, value in (("dark", 0), ("grey", 128), ("light", 255)):
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / f"{name}.png")
    timeline = timeline_input([f"{tmp_path}/dark.png@0", f"{tmp_path}/grey.png@0.5", (tmp_path / "light.png", 1)])
    assert (timeline.name, timeline.kind) == ("dark_grey_light", "timeline")
    seen = embed_input(timeline, Brightness, None, 1.2)
    assert seen.fps == 10
    assert [round(x, 1) for x in seen.embeddings.flatten().tolist()] == [0] * 5 + [0.5] * 5 + [1] * 3
    fewer = embed_input(timeline, Brightness, 4.0, 1.2)
    assert [round(x, 1) for x in fewer.embeddings.flatten().tolist()] == [0, 0, 0.5, 0.5, 1]
    other = timeline_input([f"{tmp_path}/dark.png@0", f"{tmp_path}/grey.png@0.7", f"{tmp_path}/light.png@1"])
    assert other.sha256 != timeline.sha256


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "first at 0"),
        (["owl_03.jpg@1"], "first at 0"),
        (["owl_03.jpg@0", "cat_03.jpg@0"], "increasing seconds"),
        (["owl_03.jpg"], "is not PHOTO@SECONDS"),
        (["owl_03.jpg@soon"], "is not PHOTO@SECONDS"),
        (["none.jpg@0"], "expected a photo"),
        (["clip.mp4@0"], "is not a photo"),
    ],
)
def test_what_is_no_timeline(images, message, tmp_path):
    (tmp_path / "clip.mp4").touch()
    places = [str(tmp_path if i.startswith("clip") else IMAGES) + f"/{i}" for i in images]
    with pytest.raises(ValueError, match=message):
        timeline_input(places)


def test_a_video_is_seen_as_long_as_is_wanted(tmp_path):
    path = write_mp4(tmp_path / "clip.mp4", seconds=3.0, audio=False)
    assert Video(path).seconds == pytest.approx(3.0, abs=0.05)
    video = input_of(path)
    assert video.seconds() == pytest.approx(3.0, abs=0.05)
    seen = embed_input(video, Brightness, 5.0, 2.0)
    assert (seen.fps, seen.embeddings.shape) == (5.0, (11, 1))
    assert (seen.embeddings.flatten().diff() > 0).all()  # dark to bright
    assert len(embed_input(video, Brightness, 5.0, 60.0).embeddings) == 15
    assert embed_input(video, Brightness, None, 60.0).fps == 1.0
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MediaError, match="unreadable video"):
        input_of(path).seconds()


def test_frames_between_two_times():
    def seen(start, duration, frames=40, fps=10.0):
        embeddings = torch.arange(float(frames)).view(frames, 1)
        return Input("", "video", embeddings=embeddings, fps=fps).between(start, duration).flatten().tolist()

    assert seen(1.0, 0.5) == [10, 11, 12, 13, 14, 15]
    assert seen(3.75, 0.5) == [37, 38, 39, 39, 39, 39]
    assert len(seen(0, 4.096)) == 41
    assert seen(3.75, 0.5, frames=1) == [0]  # a photo is shown all the time
    assert len(seen(3.75, 0.5, fps=None)) == 40


def test_texts():
    text = text_input("  A dog barks, loudly! ")
    assert (text.name, text.text) == ("A_dog_barks_loudly", "A dog barks, loudly!")
    assert embed_input(text, Brightness, None, 1.0).embeddings.tolist() == [[20.0]]
    with pytest.raises(ValueError, match="empty"):
        text_input(" ")


def test_one_input_is_wanted(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ValueError, match="set exactly one of"):
        one_input(None, None, None, None)
    with pytest.raises(ValueError, match="set exactly one of"):
        one_input(IMAGES / "owl_03.jpg", None, None, "an owl")
    with pytest.raises(ValueError, match="is a video: set it as video="):
        one_input(tmp_path / "clip.mp4", None, None, None)
    with pytest.raises(ValueError, match="is a photo: set it as image="):
        one_input(None, IMAGES / "owl_03.jpg", None, None)
