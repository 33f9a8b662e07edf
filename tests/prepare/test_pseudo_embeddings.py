"""Audio with a label and no image: embeddings that the image encoder itself reads as that label."""

import csv
import shutil

import numpy as np
import pytest
import torch

from conftest import ASSETS, command, tone, write_wav
from im2wav.data.pairs import PairsFolder
from im2wav.evaluation.evaluation_inputs import from_pairs
from im2wav.media.encoder import ImageEncoder, build_encoder

CLASSES = {"cat": [281, 282, 283, 284, 285], "train/steam": [820], "frog": [30, 31, 32]}
OFFLINE = "encoder=efficientnet_lite2"


@pytest.fixture
def folder(tmp_path):
    """Four recordings of each of three labels, and a photo of an owl."""
    for label in CLASSES:
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for number in range(4):
            write_wav(
                tmp_path / "sounds" / label / f"{label.replace('/', '_')}_{number}.wav",
                tone(0.3, hertz=300 + 10 * number),
            )
    (tmp_path / "sounds" / "owl").mkdir()
    shutil.copy(ASSETS / "images" / "owl_03.jpg", tmp_path / "sounds" / "owl")
    lines = [f'"{label}": {keys}' for label, keys in CLASSES.items()]
    (tmp_path / "classes.yaml").write_text("\n".join(lines))
    return tmp_path


def embed(folder, *options):
    where = [f"input={folder / 'sounds'}", f"out={folder / 'pairs'}", OFFLINE, "num_workers=1"]
    return command("embed", *where, f"encoder.pseudo_embeddings={folder / 'classes.yaml'}", *options)


def test_the_classifier_reads_the_label_of_each(folder, capfd):
    assert embed(folder) == 0
    assert "13 of 13 embedded" in capfd.readouterr().out
    pairs = PairsFolder(folder / "pairs")
    weight = build_encoder("efficientnet_lite2").net._fc.weight
    keys, found = [key for some in CLASSES.values() for key in some], {}
    for pair in pairs.pairs:
        clip = pairs.read_clip(pair)
        assert clip.shape == (1, 1280)
        assert clip.norm() == pytest.approx(1, abs=2e-3)
        found.setdefault(pair.label, []).append(keys[int((clip @ weight[keys].t()).argmax())])
        assert bool(pair.samples) == (pair.label != "owl")
    for label, mine in CLASSES.items():
        assert set(found[label]) <= set(mine)
    assert len({pairs.read_clip(pair).numpy().tobytes() for pair in pairs.pairs}) == 13


def test_nothing_is_made_again_and_the_same_is_made_elsewhere(folder):
    embed(folder)
    first = {path.name: path.read_bytes() for path in (folder / "pairs" / "clip").iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "pairs" / "clip").iterdir()}
    embed(folder)
    assert times == {path.name: path.stat().st_mtime_ns for path in (folder / "pairs" / "clip").iterdir()}
    shutil.rmtree(folder / "pairs")
    embed(folder, "batch_size=3")
    again = {path.name: path.read_bytes() for path in (folder / "pairs" / "clip").iterdir()}
    assert {name for name in first if first[name] != again[name]} <= {"owl_03.npy"}


def test_a_manifest_may_name_audio_alone(folder, capfd):
    rows = [{"id": "one", "audio": "sounds/cat/cat_0.wav", "label": "cat", "group": "g", "split": "valid"}]
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert embed(folder, f"input={path}") == 0
    (pair,) = PairsFolder(folder / "pairs").pairs
    assert (pair.id, pair.label, pair.split, pair.group, pair.frames) == ("one", "cat", "valid", "g", 1)
    capfd.readouterr()
    assert command("embed", f"input={path}", f"out={folder / 'other'}", OFFLINE) == 2
    assert "audio alone needs encoder.pseudo_embeddings=FILE" in capfd.readouterr().err


def test_without_classes_audio_alone_is_listed_as_ignored(folder, capfd):
    assert command("embed", f"input={folder / 'sounds'}", f"out={folder / 'pairs'}", OFFLINE, "num_workers=1") == 0
    printed = capfd.readouterr().out
    assert "ignored 12: " in printed
    assert "1 of 1 embedded" in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat: [281]", "2 labels of audio without images are not in encoder.pseudo_embeddings="),
        ("- cat", "expected lines such as `cat: [281, 282]`"),
        ("cat: {a: 1}", "cat: [{'a': 1}]; expected lines such as"),
        ("cat: [", "cannot be read"),
        ("{cat: [1000], 'train/steam': 820, frog: 30}", "has no class 1000: expected ImageNet classes, 0 to 999"),
        ("{cat: [tabby], 'train/steam': 820, frog: 30}", "has no class 'tabby': expected ImageNet classes"),
    ],
)
def test_wrong_files_of_classes_are_one_line(folder, text, said, capfd):
    (folder / "classes.yaml").write_text(text)
    assert embed(folder) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert not list((folder / "pairs").glob("clip/*"))


def test_encoders_of_texts_take_texts():
    class Texts(ImageEncoder):
        name = "texts"

        def encode_text(self, texts):
            return torch.tensor([[1.0, 0.0], [0.0, 1.0]])[: len(texts)]

    found = Texts().class_directions(["a dog", "a cat"])
    assert torch.allclose(found, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5)
    with pytest.raises(ValueError, match="encoder=texts has no class 281: expected texts"):
        Texts().class_directions([281])


def test_directions_differ_from_each_other():
    directions = build_encoder("efficientnet_lite2").class_directions([281, 30, 820])
    assert np.abs((directions @ directions.t()).numpy() - np.eye(3)).max() < 0.5


def test_evaluation_of_a_model_says_that_there_are_no_photos(folder):
    embed(folder)
    with pytest.raises(ValueError, match="12 of 12 pairs are audio alone and have no photo"):
        from_pairs(PairsFolder(folder / "pairs"), "train")
    assert not from_pairs(PairsFolder(folder / "pairs"), "train", needs_images=False).images
