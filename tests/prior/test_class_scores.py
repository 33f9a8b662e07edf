"""Scores of labels as a condition of a prior: read by fixed directions, the same in training and in generation."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from conftest import TINY, TINY_NET, command, config
from helpers import conditions
from im2wav.checkpoint import load, load_net, save
from im2wav.data.pairs import CLASSES_FILE
from im2wav.prior import Prior
from im2wav.prior.class_scores import ClassScores
from im2wav.train import train

SIZES = {"width": 16, "depth": 2, "heads": 2, "blocks": 8, "init_scale": 2.0}


def test_the_largest_direction_of_a_label_counts():
    net = ClassScores(3, 4, 6)
    net.set_directions(torch.eye(6)[:4], torch.full((6,), 0.1), torch.tensor([0, 0, 1, 2]))
    clip = torch.nn.functional.normalize(0.1 + 0.4 * torch.eye(6)[:4], dim=1)
    found = net(clip)
    assert found.argmax(1).tolist() == [0, 0, 1, 2]
    assert torch.allclose(found.sum(1), torch.ones(4))
    assert found.amax(1).min() > 0.9
    assert net(torch.full((1, 6), 0.1)).amax() < 0.5  # the mean shows nothing


def test_other_numbers_are_rejected():
    with pytest.raises(ValueError, match=r"set model.net.conditioning.classes=3 model.net.conditioning.class_rows=4"):
        ClassScores(2, 4, 6).set_directions(torch.eye(6)[:4], torch.zeros(6), torch.tensor([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="class_rows=2: expected at least one"):
        ClassScores(3, 2, 6)
    with pytest.raises(ValueError, match=r"embedding=false needs conditioning\.classes"):
        Prior(16, 64, SIZES, {"clip_dim": 6, "embedding": False})


@torch.no_grad()
@pytest.mark.parametrize("embedding", [True, False])
def test_a_prior_sees_the_scores(embedding):
    """Without the embedding, two images with the same scores are the same to it."""
    options = {"clip_dim": 6, "map_width": 8, "frames": True, "guidance": True}
    options |= {"embedding": embedding, "classes": 3, "class_rows": 4}
    prior = Prior(16, 64, SIZES, options).eval()
    prior.conditioner.class_scores.set_directions(torch.eye(6)[:4], torch.zeros(6), torch.tensor([0, 0, 1, 2]))
    codes, given = torch.randint(16, (3, 64)), conditions(3)
    clip = torch.zeros(3, 1, 6)
    clip[0, 0, 0] = clip[1, 0, 1] = clip[2, 0, 2] = 1  # the first two show label 0
    logits = prior(codes[:1].repeat(3, 1), replace(given, clip=clip))
    assert torch.allclose(logits[0], logits[1], atol=1e-6) != embedding
    assert (logits[0] - logits[2]).abs().max() > 1e-4


def test_training_takes_the_directions_of_the_data_and_checkpoints_keep_them(pairs, trained, tmp_path, capfd):
    """EMA weights and generation have them too; data without them, or with other classes, are one line."""
    given = [f"codec={trained / 'base' / 'vqvae' / 'last.ckpt'}", f"data.root={pairs}", *TINY, "trainer.max_steps=2"]
    given += ["model.net.conditioning.classes=2", "model.net.conditioning.class_rows=3"]
    given += ["model.net.conditioning.embedding=false"]
    arguments = ["model=low_prior", *TINY_NET["low_prior"], *given]
    assert command("train", *arguments, f"paths.runs={tmp_path / 'a'}") == 2
    assert f"{CLASSES_FILE} is missing" in capfd.readouterr().err
    directions = torch.nn.functional.normalize(torch.randn(3, 1280), dim=1)
    tensors = {"directions": directions, "mean": torch.zeros(1280), "label_of_row": torch.tensor([0, 1, 1])}
    file = pairs / CLASSES_FILE
    save_file(tensors, file)
    try:
        train(config("train", *arguments, output=tmp_path / "low_prior"))
        net = load_net(tmp_path / "low_prior" / "last.ckpt", "low_prior")
        assert torch.equal(net.conditioner.class_scores.directions, directions)
        assert net.conditioner.start_map is None
        weights = save(load(tmp_path / "low_prior" / "last.ckpt"), tmp_path / "low.safetensors")
        again = [*arguments, f"ckpt_path={weights}"]
        assert command("train", *again, f"paths.runs={tmp_path / 'same'}") == 0
        assert "differ from those of" not in capfd.readouterr().out
        save_file({**tensors, "label_of_row": torch.tensor([0, 0, 1])}, file)
        assert command("train", *again, f"paths.runs={tmp_path / 'other'}") == 0
        assert f"differ from those of {file}" in capfd.readouterr().out
        (found,) = (tmp_path / "other").rglob("last.ckpt")
        net = load_net(found, "low_prior")
        assert net.conditioner.class_scores.label_of_row.tolist() == [0, 1, 1]
        save_file({**tensors, "label_of_row": torch.tensor([0, 1, 2])}, file)
        assert command("train", *arguments, f"paths.runs={tmp_path / 'b'}") == 2
        assert "the data have 3 classes with 3 directions" in capfd.readouterr().err
    finally:
        file.unlink()
