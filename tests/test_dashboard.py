"""What a run shows of itself, and that showing it changes nothing."""

import csv
import json

import pytest
import soundfile
import torch
from PIL import Image

from conftest import tiny_config
from im2wav.train import train

SHOW = ["callbacks.dashboard.every_n_steps=2", "callbacks.dashboard.items=1"]


def rows(folder) -> list[dict[str, str]]:
    with (folder / "csv/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder) -> list[str]:
    return [row["train/loss"] for row in rows(folder) if row["train/loss"]]


@pytest.mark.parametrize("model", ["vqvae", "low_prior", "up_prior"])
def test_the_dashboard_shows_sounds_and_changes_no_loss(pairs, trained, tmp_path, model):
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    quiet = ["callbacks.dashboard=null", "callbacks.facts=null"]
    train(tiny_config(model, pairs, tmp_path / "quiet", codec, "trainer.max_steps=4", *quiet))
    train(tiny_config(model, pairs, tmp_path / "shown", codec, "trainer.max_steps=4", *SHOW))
    assert losses(tmp_path / "shown") == losses(tmp_path / "quiet")
    assert len(losses(tmp_path / "quiet")) == 4
    folder = tmp_path / "shown/media/step_00000002"
    names = {path.stem for path in folder.glob("*.wav")}
    if model == "vqvae":
        assert {name.split("_", 2)[2] for name in names} == {"real", "up", "low"}
    else:
        level = model.split("_")[0]
        scales = (1, 3, 5) if model == "low_prior" else (1,)
        assert all(any(name.endswith(f"guidance_{scale}_{level}") for name in names) for scale in scales)
        assert len({(folder / f"{n}.wav").read_bytes() for n in names if n.endswith(f"_{level}")}) == len(scales)
    for name in names:
        samples, rate = soundfile.read(folder / f"{name}.wav")
        assert (len(samples), rate) == (4096, 16000)
        with Image.open(folder / f"{name}.png") as image:
            assert image.size[1] == 64
    page = (folder / "index.html").read_text()
    assert page.count("<audio") == len(names)
    assert page.count(".jpg") >= 1
    logged = {key for row in rows(tmp_path / "shown") for key, value in row.items() if value}
    wanted = {"run/gradient_norm", "run/gradient_norm_clipped", "run/skipped_steps", "run/ema_distance", "run/mfu"}
    wanted |= {"run/windows_per_second", "run/data_wait_share", "run/memory_gb"}
    wanted |= {"codebook/perplexity/up", "codebook/dead/low", "train/codes_restarted/low"} if model == "vqvae" else {
        "samples/accuracy", "samples/bits_by_position/7_of_8", "run/codes_per_second"}  # fmt: skip
    if model == "low_prior":
        wanted |= {"samples/gap", "samples/bits_null"}
    assert wanted <= logged


def test_wandb_gets_a_table_with_everything_in_it(pairs, trained, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    train(tiny_config("low_prior", pairs, tmp_path, codec, "trainer.max_steps=2", "logger=wandb", *SHOW))
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "item", "picture", "guidance", "seed", "step", "real", "real mel", "low", "low mel"]  # fmt: skip
    assert [row[2] for row in table["data"]] == [1.0, 3.0, 5.0]
    assert table["data"][0][1:] == ["Image", 1.0, 0, 2, "Audio", "Image", "Audio", "Image"]
    settings = "".join(file.read_text(errors="replace") for file in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert all(word in settings for word in ("data_sha256", "git", "transformer", "num_samples"))


def test_tensorboard_gets_sounds_images_and_histograms(pairs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config("vqvae", pairs, tmp_path, "trainer.max_steps=2", "logger=tensorboard", *SHOW))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert sum("real" in tag for tag in tags["audio"]) == 1
    assert any(tag.endswith("up mel") for tag in tags["images"])
    assert set(tags["histograms"]) == {"codebook/usage/up", "codebook/usage/low"}
    assert "codebook/perplexity/up" in tags["scalars"]


def test_operations_are_counted_as_by_hand():
    from torch import nn

    from im2wav.prior import Conditions, Prior
    from im2wav.training.flops import forward_flops, prior_flops

    net = nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.ConvTranspose1d(3, 4, 4, 2, 1))
    assert forward_flops(net, lambda: net(torch.zeros(1, 2, 10))) == 2 * (2 * 3 * 5) * 10 + 2 * (3 * 4 * 4) * 10
    prior = Prior(32, 64, {"width": 32, "depth": 3, "heads": 2, "blocks": 8}, {"clip_dim": 4, "map_width": 8})
    codes, conditions = torch.zeros(1, 64, dtype=torch.long), Conditions(torch.ones(1, 1, 4))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        prior.eval()(codes, conditions)
    counted = forward_flops(prior, lambda: prior(codes, conditions)) + prior_flops(prior)
    attention = prior_flops(prior) - 2 * 64 * 32 * 32
    rows = 4 * 64 * 8 * (4.5 + 4.5 + 8)  # row and column see half of 8 on average, previous_row all of 8
    assert attention == rows
    assert counted - attention == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_summary_and_an_estimate_stand_at_the_start(pairs, tmp_path, capfd):
    from conftest import TINY, TINY_NET, command

    arguments = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], f"paths.runs={tmp_path}"]
    assert command("train", *arguments, f"hydra.run.dir={tmp_path}", "trainer.max_steps=26", "debug=limit") == 0
    printed = capfd.readouterr().out
    assert "encoders 0.0" in printed
    assert "1 steps in an epoch, of 5 windows each on 1 device(s); 26 steps in all, 0 made" in printed
    assert "s a step: the remaining 1 steps take about 0 seconds" in printed
