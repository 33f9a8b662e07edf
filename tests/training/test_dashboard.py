"""What a run shows of itself, and that showing it changes nothing."""

import csv
import json
import re
import time

import pytest
import soundfile
import torch
from PIL import Image

from conftest import TINY, config, tiny_config
from im2wav.train import train
from im2wav.training.dashboard import Dashboard

SHOW = ["callbacks.dashboard.every_n_steps=2", "callbacks.dashboard.items=1"]


def rows(folder) -> list[dict[str, str]]:
    with (folder / "csv/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder) -> list[str]:
    return [row["train/loss"] for row in rows(folder) if row["train/loss"]]


# columns of the table besides the real sound, by the model in training and its partner
COLUMNS = {
    ("vqvae", None): {"up", "low"},
    ("low_prior", None): {"low"},
    ("low_prior", "up_prior"): {"low", "up"},
    ("up_prior", None): {"up", "low_(real_codes)"},
    ("up_prior", "low_prior"): {"low", "up", "up_(real_codes)", "low_(real_codes)"},
}


@pytest.mark.parametrize(("model", "partner"), COLUMNS)
def test_the_dashboard_shows_audio_and_changes_no_loss(pairs, trained, tmp_path, model, partner):
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    quiet = ["callbacks.dashboard=null", "callbacks.monitor=null"]
    shown = [*SHOW, f"callbacks.dashboard.partner={trained / 'base' if partner else 'null'}"]
    train(tiny_config(model, pairs, tmp_path / "quiet", codec, "trainer.max_steps=4", *quiet))
    train(tiny_config(model, pairs, tmp_path / "shown", codec, "trainer.max_steps=4", *shown))
    assert losses(tmp_path / "shown") == losses(tmp_path / "quiet")
    assert len(losses(tmp_path / "quiet")) == 4
    folder = tmp_path / "shown/media/step_00000002"
    names = {path.stem for path in folder.glob("*.wav")}
    scales = ["_guidance_1", "_guidance_3", "_guidance_5"] if "low_prior" in (model, partner) else ["_guidance_1"]
    (item,) = {name.split("_guidance")[0].split("_real")[0].split("_up")[0].split("_low")[0] for name in names}
    rows_of = {name.removeprefix(item) for name in names}
    if model == "vqvae":
        assert rows_of == {f"_{column}" for column in {"real"} | COLUMNS[model, partner]}
    else:
        fixed = {c for c in COLUMNS[model, partner] if "real" in c}  # of codes that guidance does not change
        drawn = {"real"} | COLUMNS[model, partner] - fixed
        wanted = {f"{scale}_{column}" for scale in scales for column in drawn}
        assert rows_of == wanted | {f"_guidance_1_{column}" for column in fixed}
        level = "low" if len(scales) > 1 else "up"
        assert len({(folder / f"{item}{scale}_{level}.wav").read_bytes() for scale in scales}) == len(scales)
    for name in names:
        samples, rate = soundfile.read(folder / f"{name}.wav")
        assert (len(samples), rate) == (4096, 16000)
        with Image.open(folder / f"{name}.png") as image:
            assert image.size[1] == 64
    page = (folder / "index.html").read_text()
    assert page.count("<audio") == len(names)
    assert page.count(".jpg") >= 1
    assert ("callbacks.dashboard.partner=FOLDER" in page) == (model != "vqvae" and partner is None)
    assert (f"Partner: {trained / 'base'}" in page) == (partner is not None)
    logged = {key for row in rows(tmp_path / "shown") for key, value in row.items() if value}
    wanted = {"run/gradient_norm", "run/gradient_norm_clipped", "run/skipped_steps", "run/ema_distance", "run/mfu"}
    wanted |= {"run/windows_per_second", "run/data_wait_share", "run/memory_gb"}
    wanted |= {"codebook/perplexity/up", "codebook/dead/low", "train/codes_restarted/low"} if model == "vqvae" else {
        "samples/accuracy", "samples/bits_by_position/7_of_8", "run/codes_per_second"}  # fmt: skip
    if model == "low_prior":
        wanted |= {"samples/gap", "samples/bits_null"}
    assert wanted <= logged


@pytest.mark.parametrize("model", ["low_prior", "up_prior"])
def test_fine_tuning_is_shown_beside_its_base(pairs, trained, tmp_path, model):
    given = [*SHOW, f"init_from={trained / 'base'}", "adapter=lora", f"callbacks.dashboard.partner={trained / 'base'}"]
    for name, rate in (("same", "1e-12"), ("changed", "0.2")):
        options = [f"model={model}", f"data.root={pairs}", *TINY, *given, "trainer.max_steps=4"]
        options += [f"model.optimizer.lr={rate}", "model.scheduler.steps=1"]
        train(config("train", *options, output=tmp_path / name))

    def audio(run: str, step: int) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (tmp_path / run / f"media/step_{step:08d}").glob("*.wav")}

    first, last = audio("changed", 2), audio("changed", 4)
    of_base = {name for name in first if "(base)" in name}
    columns = {name.split("_guidance_")[1].partition("_")[2] for name in of_base}
    assert columns == ({"low_(base)", "up_(base)"} if model == "low_prior" else {"up_(base)", "up_(real_codes)_(base)"})
    for name in of_base:
        assert first[name] == last[name] == audio("same", 4)[name]
        assert audio("same", 4)[name.replace("_(base)", "")] == first[name]  # an adapter that changes nothing
    assert any(last[name] != last[name.replace("_(base)", "")] for name in of_base)
    bits = [float(row["samples/bits_base"]) for row in rows(tmp_path / "changed") if row.get("samples/bits_base")]
    assert len(set(bits)) == 1
    assert bits[0] == pytest.approx(
        [float(row["samples/bits"]) for row in rows(tmp_path / "same") if row.get("samples/bits")][-1], abs=1e-3
    )


def test_wandb_gets_a_table_with_everything_in_it(pairs, trained, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    shown = [*SHOW, f"callbacks.dashboard.partner={trained / 'base'}"]
    train(tiny_config("low_prior", pairs, tmp_path, codec, "trainer.max_steps=2", "logger=wandb", *shown))
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "item", "image", "guidance", "seed", "step", "real", "real mel", "low", "low mel", "up", "up mel",
    ]  # fmt: skip
    assert [row[2] for row in table["data"]] == [1.0, 3.0, 5.0]
    assert table["data"][0][1:] == ["Image", 1.0, 0, 2, *["Audio", "Image"] * 3]
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end, missing = time.monotonic() + 30, True
    while missing and time.monotonic() < end:  # wandb writes it in a process of its own, and does not wait for that
        time.sleep(0.1)
        settings = path.read_text(errors="replace")
        missing = [word for word in ("data_sha256", "git", "transformer", "num_samples") if word not in settings]
    assert not missing


def test_partners_draw_what_sampling_draws(pairs, trained, tmp_path):
    """Of the low prior in training and of the up prior in training: the sound that `generate` makes."""
    import numpy as np

    from im2wav.checkpoint import load_net
    from im2wav.data.pairs import PairsFolder
    from im2wav.decoding import SamplingOptions
    from im2wav.decoding.decoder import Networks
    from im2wav.inference.generate import generate
    from im2wav.inference.inputs import Input
    from im2wav.inference.request import CodeBuffer, Request

    strong = "+model.net.transformer.init_scale=50"  # fresh weights so large that every condition is heard
    files = {"vqvae": trained / "base/vqvae/last.ckpt"}
    always = [f"codec={files['vqvae']}", "trainer.max_steps=2", "data.crop=start", strong]
    for model in ("low_prior", "up_prior"):
        train(tiny_config(model, pairs, tmp_path / model, *always, "callbacks.dashboard=null"))
        files[model] = tmp_path / model / "last.ckpt"
    folder, drawn = PairsFolder(pairs), {}
    for model, partner in (("low_prior", "up_prior"), ("up_prior", "low_prior")):
        out = tmp_path / f"shown_{model}"
        where = f"callbacks.dashboard.partner={files[partner]}"
        train(tiny_config(model, pairs, out, *always, *SHOW, where, "callbacks.dashboard.guidance=[3]"))
        media = out / "media/step_00000002"
        now = files | {model: out / "last.ckpt"}
        networks = Networks(*(load_net(now[kind], kind) for kind in ("vqvae", "low_prior", "up_prior")))
        (pair,) = (p for p in folder.pairs if (media / f"{p.id}_guidance_3_up.wav").is_file())
        options = SamplingOptions(guidance_scale=3.0)
        item = Input(pair.id, "pair", embeddings=folder.read_clip(pair))
        request = Request(item, seed=0, sampling=options, recording=pair.samples)
        ((audio,),) = generate([[CodeBuffer(networks, request)]])
        for level in ("low", "up"):
            heard, _ = soundfile.read(media / f"{pair.id}_guidance_3_{level}.wav", dtype="float32")
            np.testing.assert_allclose(heard, audio.waveforms[level].clamp(-1, 1).numpy().ravel(), atol=1e-4)
        drawn[model] = (media / f"{pair.id}_guidance_3_up.wav").read_bytes()
    assert drawn["up_prior"] != (media / f"{pair.id}_guidance_3_up_(real_codes).wav").read_bytes()


def test_processes_share_the_audio_of_both_levels(pairs, trained, tmp_path):
    """Two processes draw half each, to the last bit what one draws."""
    from types import SimpleNamespace

    always = [f"codec={trained}/base/vqvae/last.ckpt", "trainer.max_steps=2", "callbacks.dashboard.items=1"]
    where = f"callbacks.dashboard.partner={trained / 'base'}"
    given = train(tiny_config("up_prior", pairs, tmp_path, *always, where))
    (dashboard,) = (c for c in given["trainer"].callbacks if isinstance(c, Dashboard))
    module = given["module"].eval()

    def samples(rank: int, world_size: int) -> dict:
        trainer = SimpleNamespace(
            datamodule=given["datamodule"], global_rank=rank, world_size=world_size, global_step=2
        )
        with torch.inference_mode():
            rows, _, _ = dashboard._prior(trainer, module, *dashboard._batch(trainer, module.device))
        return {(row.name, column): wav for row in rows for column, wav in row.audio.items()}

    one, first, second = samples(0, 1), samples(0, 2), samples(1, 2)
    assert first.keys() | second.keys() == one.keys()
    assert not first.keys() & second.keys()
    assert all(torch.equal(wav, one[key]) for key, wav in (first | second).items())


def test_a_partner_that_does_not_fit_is_rejected_before_anything_is_written(pairs, trained, tmp_path, capfd):
    from conftest import TINY, TINY_NET, command

    other = tmp_path / "other/base"
    train(tiny_config("vqvae", pairs, other / "vqvae", "trainer.max_steps=1", "seed=1"))
    codec = f"codec={other}/vqvae/last.ckpt"
    train(tiny_config("up_prior", pairs, other / "up_prior", "trainer.max_steps=1", codec))
    base = trained / "base"
    for model, partner, said in (
        ("low_prior", base / "low_prior", "holds a low_prior, expected a up_prior checkpoint"),
        ("low_prior", base / "vqvae/last.ckpt", "holds a vqvae, expected a up_prior checkpoint"),
        ("low_prior", other, "was trained on the codes of another VQ-VAE"),
        ("up_prior", other, "holds no low_prior: expected low_prior.safetensors"),
        ("vqvae", base, "a vqvae has no partner"),
        ("low_prior", tmp_path / "nothing", "does not exist"),
    ):
        out = tmp_path / "run"
        words = [f"model={model}", f"data.root={pairs}", *TINY, *TINY_NET[model], f"hydra.run.dir={out}"]
        words += [f"codec={base}/vqvae/last.ckpt", f"callbacks.dashboard.partner={partner}"]
        assert command("train", *words) == 2
        # the characters that clear a progress bar may stand before it
        (line,) = (x[x.index("error: ") :] for x in capfd.readouterr().err.splitlines() if "error: " in x)
        assert line.startswith(f"error: callbacks.dashboard.partner={partner}: ")
        assert said in line
        assert {path.name for path in out.glob("*")} <= {".lock"}


def test_tensorboard_gets_audio_images_and_histograms(pairs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config("vqvae", pairs, tmp_path, "trainer.max_steps=2", "logger=tensorboard", *SHOW))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert sum("real" in tag for tag in tags["audio"]) == 1
    assert any(tag.endswith("up mel") for tag in tags["images"])
    assert set(tags["histograms"]) == {"codebook/usage/up", "codebook/usage/low"}
    assert "codebook/perplexity/up" in tags["scalars"]


def test_operations_are_counted_as_by_hand(pairs, tmp_path):
    """Of the training step of each model, for one window of a batch; attention is not counted on a CPU."""
    from im2wav.cli import instantiate
    from im2wav.training.module import training_flops

    net = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 5, padding=2), torch.nn.ConvTranspose1d(3, 4, 4, 2, 1)).train()
    forward = 2 * (2 * 3 * 5) * 10 + 2 * (3 * 4 * 4) * 10
    assert training_flops(net, lambda: net(torch.zeros(1, 2, 10))) == 3 * forward
    assert net.training
    modules = [instantiate(tiny_config(model, pairs, tmp_path).model) for model in ("vqvae", "low_prior")]
    batch = next(iter(instantiate(tiny_config("vqvae", pairs, tmp_path).data).train_dataloader()))
    codec, prior = modules[0].net, modules[1].net

    def both_ways():
        codes = codec.encode(batch.wav[:1])
        return [codec.decode(codes, level) for level in codes]

    search = 2 * sum(4096 // hop for hop in codec.hop_lengths.values()) * codec.codebook_size * codec.code_dim
    assert modules[0].item_flops(batch) == training_flops(codec, both_ways) - 2 * search
    codes = {level: torch.zeros(5, 4096 // hop, dtype=torch.int64) for level, hop in codec.hop_lengths.items()}
    batch = batch._replace(codes=codes)
    conditions = modules[1].conditions(batch).take(torch.arange(1))
    maps = training_flops(prior, lambda: prior.conditioner(conditions, prior.context_length))
    weights = sum(p.numel() for p in prior.transformer.layers.parameters() if p.ndim == 2)
    output = 32 * prior.codebook_size
    assert modules[1].item_flops(batch) == 3 * 2 * prior.context_length * (weights + output) + maps


def test_a_summary_and_an_estimate_stand_at_the_start(pairs, tmp_path, capfd):
    from conftest import TINY, TINY_NET, command

    arguments = ["model=vqvae", f"data.root={pairs}", *TINY, *TINY_NET["vqvae"], f"paths.runs={tmp_path}"]
    assert command("train", *arguments, f"hydra.run.dir={tmp_path}", "trainer.max_steps=26", "debug=limit") == 0
    printed = capfd.readouterr().out
    assert "encoders 0.0" in printed
    assert "1 steps per epoch, each of 5 windows on 1 device(s); 26 steps in total, 0 completed" in printed
    assert re.search(r"[\d.]+ s per step: the remaining 1 steps take about \d+ second", printed)
