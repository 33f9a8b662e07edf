import json
import shutil

import pytest

from conftest import ASSETS, command, config
from im2wav.demo import PHOTOS, stage_commands


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven commands, a process each
def test_the_demo_from_end_to_end_in_a_few_steps(tmp_path, capfd):
    """The real demo with two training steps: tests the pipeline, not the quality."""
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(ASSETS / "images" / "owl_03.jpg", own / "my owl.jpg")
    short = (
        "trainer.max_steps=2",
        "data.batch_size=2",
        "data.num_samples=6400",
        "model.scheduler.steps=1",
        "trainer.log_every_n_steps=1",
    )
    overrides = f"demo.overrides={list(short)}"
    options = [f"paths.runs={tmp_path / 'runs'}", f"demo.images={own}", overrides]
    assert command("demo", *options) == 0
    out = tmp_path / "runs" / "demo"
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["sounds"] == 42
    assert figures["unseen_sounds"] == 4
    assert 0 <= figures["unseen_same_label"] <= 4
    for name in ("retrieval_train", "retrieval_shuffled", "retrieval_reconstruction", "retrieval_draft"):
        assert 0 <= figures[name] <= 1
    for split in ("train", "valid"):
        for stage in ("low_prior", "up_prior"):
            assert all(0 < bits < 20 for bits in figures["bits_per_code"][split][stage].values())
    page = (out / "index.html").read_text()
    assert page.count("<audio") == 3 * (42 + 4) + 2 * (len(PHOTOS) + 1)
    assert page.index("my owl") < page.index(PHOTOS[0]) < page.index("Trained here") < page.index("Model card")
    assert page.count("data:image/jpeg") == 42 + 4 + len(PHOTOS) + 1
    for split, count in (("train", 42), ("valid", 6)):
        report = json.loads((out / "evaluation" / split / "report.json").read_text())
        assert report["sets"]["generated"]["n"] == count
        assert report["recordings"] == 42
    assert "open the page" in capfd.readouterr().out


@pytest.mark.parametrize(("family", "folder"), [("residual", "demo_residual"), ("im2wav", "demo")])
def test_a_family_selects_its_experiments(tmp_path, family, folder):
    """`tests/test_layout.py` composes all experiments."""
    commands = stage_commands(config("demo", f"demo.family={family}"), tmp_path)
    trained = [words[1] for words in commands.values() if words[0] == "train"]
    assert trained == [f"experiment={folder}/{stage}" for stage in ("vqvae", "low_prior", "up_prior")]
