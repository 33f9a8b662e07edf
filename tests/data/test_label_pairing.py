"""Training images by label: any image of a label with any of its recordings, labels equally often."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch

from helpers import make_pairs
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.label_pairing import Augmentation, TrainingImages, balanced_order
from im2wav.data.loader import KeyStream

LABELS = ["cat"] * 5 + ["dog"] * 2 + ["owl"]


@pytest.fixture
def root(tmp_path):
    """Eight training pairs of three labels, whose embeddings differ; one more image, of a cat, without audio."""
    folder = make_pairs(tmp_path / "pairs", [0.3] * 9, None, ["train"] * 9)
    path = folder / "manifest.csv"
    rows = list(csv.DictReader(path.open()))
    for number, (row, label) in enumerate(zip(rows, [*LABELS, "cat"], strict=True)):
        row |= {"label": label, "split": "train"}
        if number == 8:
            row |= {"wav": "", "samples": "0"}
        embedding = np.zeros((1, 16), np.float16)
        embedding[:, number] = 1
        np.save(folder / row["clip"], embedding)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def drawn(root, count=240, **options):
    """Number of the image of each of the first training windows, by the label of its recording."""
    module = PairsDataModule(str(root), 1600, 4, windows_per_epoch=count, **options)
    loader = module.loader("train", shuffle=True)
    windows, keys = module.windows["train"], loader.dataset.keys
    found = [windows[keys[i]] for i in range(count)]
    labels = {pair.id: pair.label for pair in windows.pairs}
    return [(labels[item.id], item.clip) for item in found]


def test_labels_occur_equally_often_with_all_of_their_images(root):
    items = drawn(root, pairing="label")
    assert Counter(label for label, _ in items) == {"cat": 80, "dog": 80, "owl": 80}
    images = {
        label: {int(clip[0].argmax()) for name, clip in items if name == label} for label in ("cat", "dog", "owl")
    }
    assert images == {"cat": {0, 1, 2, 3, 4, 8}, "dog": {5, 6}, "owl": {7}}


def test_without_pairing_each_recording_has_its_own_image(root):
    module = PairsDataModule(str(root), 1600, 4)
    loader = module.loader("train", shuffle=True)
    windows = module.windows["train"]
    for number in range(16):
        key = loader.dataset.keys[number]
        assert int(windows[key].clip[0].argmax()) == key.row


def test_images_depend_on_the_seed_and_the_number_of_the_window_only(root):
    one, again = (drawn(root, 24, pairing="label", seed=1) for _ in range(2))
    other = drawn(root, 24, pairing="label", seed=2)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_rows_and_positions_do_not_depend_on_the_images():
    """A run with augmentation hears the same windows as one without."""
    plain, images = (KeyStream(5, 12, seed=3, images=on) for on in (False, True))
    assert [plain[i][:3] for i in range(24)] == [images[i][:3] for i in range(24)]
    assert len({images[i].image for i in range(24)}) == 24


def test_rows_of_a_label_take_turns():
    order = balanced_order(LABELS, 30, torch.Generator().manual_seed(0)).tolist()
    assert {row: order.count(row) for row in range(5)} == dict.fromkeys(range(5), 2)
    assert [order.count(row) for row in (5, 6, 7)] == [5, 5, 10]


@pytest.mark.parametrize("name", ["mixup", "residual", "noise"])
def test_each_augmentation_changes_embeddings_as_it_says(root, name):
    """Mixing stays within the label; residuals are differences of images of one label; all have unit norm."""
    items = drawn(root, 60, pairing="label", augmentation={name: 1.0 if name == "mixup" else 0.4})
    for label, clip in items:
        assert clip.norm(dim=-1).allclose(torch.ones(len(clip)))
        own = {"cat": {0, 1, 2, 3, 4, 8}, "dog": {5, 6}, "owl": {7}}[label]
        used = {int(i) for i in clip[0].nonzero()}
        if name == "mixup":
            assert used <= own
            assert clip[0].amax() >= 0.5
        elif name == "residual":
            assert int(clip[0].argmax()) in own
            assert len(used) <= 3
        else:
            assert 0.8 < clip[0, sorted(own)].norm() < 0.99999
    assert any(len(clip[0].nonzero()) > 1 for _, clip in items)


def test_validation_has_the_images_of_its_pairs(root):
    module = PairsDataModule(str(root), 1600, 4, pairing="label", augmentation={"noise": 0.5})
    keys = module.loader("train").dataset.keys  # unshuffled, as for validation
    for number in range(8):
        assert int(module.windows["train"][keys[number]].clip[0].argmax()) == number


def test_wrong_options_are_named(root):
    module = PairsDataModule(str(root), 1600, 4)
    with pytest.raises(ValueError, match="pairing='class': expected one of"):
        PairsDataModule(str(root), 1600, 4, pairing="class")
    with pytest.raises(ValueError, match="expected mixup of 0 to 1"):
        Augmentation(mixup=2)
    with pytest.raises(ValueError, match=r"pairing=label with data.crop=official"):
        PairsDataModule(str(root), 1600, 4, pairing="label", crop="official", short="drop")
    path = root / "manifest.csv"
    path.write_text(path.read_text().replace("owl", ""))
    with pytest.raises(ValueError, match=r"1 training pairs have no label, which data\.pairing=label"):
        PairsDataModule(str(root), 1600, 4, pairing="label")
    assert TrainingImages(module.folder, module.folder.pairs, "file", Augmentation(noise=0.1)).rows == {}
