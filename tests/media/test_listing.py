"""Which files of a folder are inputs, how they are named, and what is ignored and why."""

import os
import shutil
import unicodedata

import pytest
from PIL import Image

from conftest import ASSETS
from im2wav.files import item_names, list_files, walk_files
from im2wav.media.reading import MediaFolder, media_kind

PHOTO = ASSETS / "images" / "owl_03.jpg"


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(PHOTO, path)
    return path


def test_messy_folders_are_listed_with_reasons(tmp_path):
    good = [put(tmp_path / "a.jpg"), put(tmp_path / "holiday.mp4" / "b.jpg")]
    for name in ("@eaDir/a.jpg", ".hidden/a.jpg", ".a.jpg", "__MACOSX/a.jpg"):
        put(tmp_path / name)
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    shutil.copy(PHOTO, os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    files, others = walk_files(tmp_path)
    assert files == good
    assert {(os.fsencode(path.name), reason) for path, reason in others} == {
        (b"lost.jpg", "a link to nothing"),
        (b"pipe.jpg", "no regular file"),
        (b"caf\xe9.jpg", "the name is not UTF-8; rename it"),
    }
    assert any("caf\\xe9.jpg" in line for line in MediaFolder(tmp_path).describe_ignored())


def test_links_to_folders_are_followed(tmp_path):
    put(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "link").symlink_to(tmp_path / "elsewhere")
    assert list_files(tmp_path / "input", {".jpg"}) == [tmp_path / "input" / "link" / "a.jpg"]


def test_of_a_photo_and_a_video_of_one_name_the_video_is_taken(tmp_path):
    for name in ("IMG_1.JPG", "IMG_1.MOV", "IMG_1.m4a", "other.jpg", "other.wav", "alone.wav", "notes.txt"):
        put(tmp_path / name)
    found = MediaFolder(tmp_path)
    assert [(path.name, kind, audio and audio.name) for path, kind, audio in found.items] == [
        ("IMG_1.MOV", "video", "IMG_1.m4a"),
        ("other.jpg", "image", "other.wav"),
    ]
    assert {(path.name, reason) for path, reason in found.ignored} == {
        ("IMG_1.JPG", "a video has the same name"),
        ("alone.wav", "no photo or video has the same name"),
        ("notes.txt", "no media file"),
    }
    assert "ignored 1: IMG_1.JPG (a video has the same name)" in found.describe_ignored()


def test_names_in_decomposed_letters_match_composed_ones(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    photo = put(tmp_path / f"{decomposed}.jpg")
    put(tmp_path / f"{composed}.wav")
    ((path, _, audio),) = MediaFolder(tmp_path).items
    assert (path, audio.name) == (photo, f"{composed}.wav")
    assert item_names([photo], tmp_path) == [composed]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b.jpg", "c.jpg"], ["a_b", "c"]),
        (["a/b.jpg", "a_b.jpg"], ["a__b", "a_b"]),
        (["clip.mp4", "clip.webm"], ["clip_mp4", "clip_webm"]),
        (["a/b.jpg", "a_b.png", "c.jpg"], ["a_b_jpg", "a_b_png", "c"]),
        (["x.y.jpg", "x.jpg"], ["x.y", "x"]),
    ],
)
def test_every_file_has_its_own_name(paths, names, tmp_path):
    assert item_names([tmp_path / path for path in paths], tmp_path) == names


def test_names_that_stay_the_same_are_an_error(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "a.png", "a_jpg.gif")]
    with pytest.raises(ValueError, match=r"several files of .* would have the name 'a'"):
        item_names(paths, tmp_path)


def test_an_animated_image_is_a_video(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 200)]
    for suffix in ("gif", "webp"):
        frames[0].save(tmp_path / f"still.{suffix}")
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=100)
        assert media_kind(tmp_path / f"still.{suffix}") == "image"
        assert media_kind(tmp_path / f"moving.{suffix}") == "video"
