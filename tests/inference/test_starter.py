"""The starter model, which is part of the package: what a new user runs first."""

import time

import pytest
import soundfile
import torch

from conftest import ASSETS, command
from im2wav import Im2Wav
from im2wav.checkpoint import KINDS, STARTER
from im2wav.decoding.sampler import item_seed
from im2wav.evaluation.imagehear import class_groups, class_names
from im2wav.evaluation.metrics import best_groups
from im2wav.evaluation.taggers import Yamnet

PHOTOS = {"bird_02": "Bird", "car_passing_01": "Car", "cow_04": "Cow", "drum_01": "Drums", "shotgun_01": "Gun"}


@pytest.fixture(scope="module")
def model():
    return Im2Wav.from_pretrained(device="cpu")


def test_a_photo_becomes_audio_without_any_option(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert command("sample", f"input={ASSETS / 'images/kitten_01.jpg'}") == 0
    assert time.monotonic() - start < 60  # 15 s on idle cores
    wav, rate = soundfile.read("samples/up/kitten_01_00.wav")
    assert (rate, len(wav)) == (16000, 32640)
    assert abs(wav).max() > 0.01
    assert "2.04 s of audio in samples/up/kitten_01_00.wav (seed " in capfd.readouterr().out


def test_the_weights_fit_into_the_package_and_their_authors_are_named():
    files = [STARTER / f"{kind}.safetensors" for kind in KINDS.values()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    card, credits = ((STARTER / name).read_text(encoding="utf-8") for name in ("README.md", "CREDITS.md"))
    assert "CREDITS.md" in card
    assert all(licence in credits for licence in ("CC BY 3.0", "CC BY-SA 3.0", "Free Art License", "InspectorJ"))


def test_the_same_seed_gives_the_same_audio_and_other_seeds_others(model):
    photo = ASSETS / "images" / "bird_01.jpg"
    one, again, other = (model.generate(photo, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.wav, again.wav)
    assert not torch.equal(one.codes["low"], other.codes["low"])


def test_sounds_of_photos_are_recognised_also_beyond_a_window(model):
    """Of the 30 classes of ImageHear, the right one is often the most likely; chance is 0.03 to 0.1.

    The priors know beginnings of recordings only: windows that continue one are right in less than 0.1.
    """
    tagger, right = Yamnet(), []
    groups = class_groups(tagger.labels)
    names = class_names()
    for photo, name in PHOTOS.items():
        for number in range(3):
            seed = item_seed(0, photo, number)
            whole = model.generate(ASSETS / "images" / f"{photo}.jpg", seconds=2 * model.window, seed=seed).wav
            for wav in whole.chunk(2):
                scores = tagger.analyse(wav * 0.1 / wav.square().mean().sqrt()).scores.reshape(1, -1)
                right.append(float(best_groups(scores, groups)[0, names.index(name)]))
    for one in (right[::2], right[1::2]):
        assert sum(one) / len(one) >= 0.4, right
