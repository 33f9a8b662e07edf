"""The family of residual codecs does what the first one does: training, generation, evaluation, cached codes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ASSETS, TINY, command, config, logged_values
from helpers import run_on_two
from im2wav import Im2Wav
from im2wav.checkpoint import load, load_net, save
from im2wav.cli import instantiate
from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import extend_wav
from im2wav.decoding import SamplingOptions, make_decoder
from im2wav.hub import save_folder
from im2wav.prior import Conditions, Timing
from im2wav.train import train

OWL, CAT = (ASSETS / "images" / f"{name}.jpg" for name in ("owl_03", "cat_03"))
FAMILY = ["family=residual", "size=tiny", *TINY, "data.num_samples=6400", "data.batch_size=2"]


def residual_config(model: str, root: Path, output: Path, *overrides: str):
    codec = f"codec={output.parent / 'vqvae' / 'last.ckpt'}"
    arguments = [f"model={model}", f"data.root={root}", codec, *FAMILY, "trainer.max_steps=3", *overrides]
    return config("train", *arguments, output=output)


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("residual")
    for model in ("vqvae", "low_prior", "up_prior"):
        train(residual_config(model, pairs, folder / "base" / model, "callbacks.dashboard.every_n_steps=3"))
    return folder / "base"


@pytest.fixture(scope="module")
def model(run):
    return Im2Wav.from_pretrained(run, device="cpu")


@pytest.mark.parametrize("kind", ["vqvae", "low_prior", "up_prior"])
def test_a_stopped_run_resumes_to_the_same_weights(kind, pairs, run, tmp_path):
    codec = f"codec={run / 'vqvae' / 'last.ckpt'}"
    output = tmp_path / kind
    train(residual_config(kind, pairs, output, codec, "trainer.max_steps=1"))
    train(residual_config(kind, pairs, output, codec, "resume=auto"))
    states = [torch.load(x / "last.ckpt", weights_only=True)["state_dict"] for x in (output, run / kind)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    if kind == "vqvae":
        assert any(name.startswith("discriminator.") for name in states[0])


def test_the_dashboard_shows_audio_of_all_models(run):
    for kind in ("vqvae", "low_prior", "up_prior"):
        assert (run / kind / "media" / "step_00000003" / "index.html").is_file()


def test_streamed_audio_equals_generated_audio_longer_than_a_window(model):
    options = {"seed": 3, "seconds": 1.0, "guidance_scale": 2.0}
    whole = model.generate(OWL, **options)
    assert len(whole.wav) == 16000
    assert whole.wav.abs().max() > 0
    assert torch.equal(torch.cat(list(model.stream(OWL, **options))), whole.wav)
    assert torch.equal(whole.codes["up"][..., :2], whole.codes["low"])


def test_codes_of_a_seed_do_not_depend_on_the_batch(model, tmp_path, run):
    common = [
        f"input={OWL}",
        "encoder=efficientnet_lite2",
        f"paths.runs={run.parent}",
        "run_name=base",
        "num_samples=3",
    ]
    for size in (1, 3):
        assert command("sample", *common, f"out={tmp_path / str(size)}", f"batch_size={size}") == 0
    for number in range(3):
        waves = [(tmp_path / str(size) / "up" / f"owl_03_{number:02}.wav").read_bytes() for size in (1, 3)]
        assert waves[0] == waves[1]
    drafts = model.generate(OWL, seed=1, num_drafts=3)
    assert drafts.rank == 0
    assert drafts.gap is not None


def test_continuation_keeps_the_codes_of_the_prompt(model):
    prompt = 0.3 * torch.sin(torch.arange(3200) / 10)
    audio = model.generate(OWL, continue_from=prompt, seconds=0.6)
    known = model.networks.encode(prompt, pad=False)
    assert torch.equal(audio.codes["up"][:10], known["up"])
    assert torch.equal(audio.codes["low"][:10], known["low"])


def test_inpainting_keeps_the_rest_and_hears_both_sides(model):
    wav = model.generate(OWL, seed=5)
    options = {"seed": 6, "inpaint": wav, "inpaint_interval": [0.1, 0.2]}
    audio = model.generate(CAT, **options)
    first, end = 5, 10  # frames of 20 ms
    for level in ("low", "up"):
        assert torch.equal(audio.codes[level][:first], wav.codes[level][:first])
        assert torch.equal(audio.codes[level][end:], wav.codes[level][end:])
    assert not torch.equal(audio.codes["up"][first:end], wav.codes["up"][first:end])
    buffer_of = {}
    original = type(model.networks.decoders["up"]).start

    def spy(self, *arguments, **named):
        buffer_of["following"] = arguments[5] if len(arguments) > 5 else named.get("following")
        return original(self, *arguments, **named)

    type(model.networks.decoders["up"]).start = spy
    try:
        model.generate(CAT, **options)
    finally:
        type(model.networks.decoders["up"]).start = original
    assert torch.equal(buffer_of["following"][0].cpu(), wav.codes["up"][end:])


def test_a_saved_model_loads_again(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = Im2Wav.from_pretrained(tmp_path / "model", device="cpu")
    assert again.sha256 == model.sha256
    assert torch.equal(again.generate(OWL, seed=2).wav, model.generate(OWL, seed=2).wav)


def test_cached_codes_are_those_of_whole_clips_and_priors_train_on_them(run, pairs, tmp_path):
    codec = run / "vqvae" / "last.ckpt"
    options = ["data.num_samples=6400", "data.num_workers=0", "device=cpu"]
    assert command("tokenize", f"codec={codec}", f"data.root={pairs}", *options) == 0
    net, folder = load_net(codec), PairsFolder(pairs)
    (cache,) = (pairs / "codes").glob("*/up")
    for pair in folder.pairs:
        wav = extend_wav(folder.read_wav(pair), 6400, "loop")
        whole = net.encode(wav[None, None, : len(wav) // 320 * 320])["up"][0]
        assert np.array_equal(np.load(cache / Path(pair.clip).name), whole.numpy())
    found = train(residual_config("up_prior", pairs, tmp_path / "up_prior", f"codec={codec}", "data.codes=cache"))
    assert 0 < found["train/loss"] < 12


def test_evaluate_measures_codec_and_priors(run, pairs, tmp_path):
    codec = f"codec={run / 'vqvae' / 'last.ckpt'}"
    assert command("evaluate", codec, f"data={pairs}", "split=train", f"out={tmp_path / 'codec'}") == 0
    common = [f"model={run}", f"data={pairs}", f"out={tmp_path / 'model'}", "split=train", "batch_size=4"]
    assert command("evaluate", *common) == 0
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert 0 < report["priors"]["up"]["condition"]["value"] < 12, report["priors"]["up"]
    with (tmp_path / "model" / "items.csv").open() as file:
        assert len(list(csv.DictReader(file)))


def test_presets_have_the_sizes_that_they_say(tmp_path):
    totals = {}
    for size in ("tiny", "starter"):
        counts = []
        for kind in ("vqvae", "low_prior", "up_prior"):
            cfg = config("train", f"model={kind}", "family=residual", f"size={size}", output=tmp_path)
            counts.append(sum(p.numel() for p in instantiate(cfg.model.net).parameters()))
        totals[size] = sum(counts) / 1e6
    assert totals["tiny"] < 0.6
    assert 9 < totals["starter"] < 14


@pytest.mark.slow
@pytest.mark.timeout(900)  # six trainings, three of them of two processes
def test_two_processes_train_as_one_does(pairs, run, tmp_path):
    runs = []
    for kind in ("vqvae", "low_prior", "up_prior"):
        common = [f"codec={run / 'vqvae' / 'last.ckpt'}", "data.global_batch_size=4", "data.batch_size=5"]
        common += ["data.windows_per_epoch=20", "trainer.max_steps=5", "trainer.precision=32-true"]
        common += ["callbacks.progress=null"]
        common += [] if kind == "vqvae" else ["model.net.conditioning.map_dropout=0"]  # drawn for each device
        train(residual_config(kind, pairs, tmp_path / "one" / kind, *common))
        out = tmp_path / "two" / kind
        two = ["trainer.devices=2", "trainer.strategy=ddp", f"paths.runs={out}", f"paths.output={out}"]
        runs.append([f"model={kind}", f"data.root={pairs}", *FAMILY, *common, *two])
    run_on_two(runs)
    for kind in ("vqvae", "low_prior", "up_prior"):
        one, two = (torch.tensor(logged_values(tmp_path / name / kind)) for name in ("one", "two"))
        assert len(one) == 5
        torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


def test_a_run_that_begins_with_weights_keeps_them(run, pairs, tmp_path):
    path = save(load(run / "vqvae" / "last.ckpt"), tmp_path / "vqvae.safetensors")
    still = ["trainer.max_steps=1", "model.optimizer.lr=0", "model.net.codebook.decay=1.0", "callbacks.ema=null"]
    still += ["model.net.codebook.restart_threshold=0", f"ckpt_path={path}"]
    train(residual_config("vqvae", pairs, tmp_path / "vqvae", *still))
    weights = [load_net(file).state_dict() for file in (path, tmp_path / "vqvae" / "last.ckpt")]
    for name in ("encoder.linear.weight", "decoder.linear.weight"):
        assert torch.equal(weights[0][name], weights[1][name])


@pytest.mark.parametrize("level", ["low", "up"])
def test_steps_and_the_uncached_network_give_the_same_logits(run, level):
    """`Prior.forward` and `MaskedPrior.forward` are the specification; guidance adds the unconditional logits."""
    prior = load_net(run / f"{level}_prior" / "last.ckpt", f"{level}_prior")
    codes = torch.randint(0, prior.codebook_size, (2, prior.context_length, *prior.code_shape))
    timing = Timing(torch.full((2,), 16000.0), torch.zeros(2), torch.full((2,), 6400.0))
    conditions = Conditions(torch.randn(2, 1, 1280), timing, codes[..., :2] if level == "up" else None)
    logits = make_decoder(prior).step_logits(conditions, codes, SamplingOptions(guidance_scale=2.0))
    assert len(logits) == (4 if prior.can_be_guided else 2)
    with torch.no_grad():
        assert torch.allclose(logits[:2], prior(codes, conditions), atol=1e-4)
        if prior.can_be_guided:
            assert torch.allclose(logits[2:], prior(codes, conditions.null_like()), atol=1e-4)


def test_the_quality_of_lower_precisions_is_measured(run, pairs, tmp_path):
    out = tmp_path / "quality.json"
    assert command("bench", "measure=quality", f"measure.run={run}", f"measure.pairs={pairs}", f"out={out}") == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    for level in ("low", "up"):
        exact = rows[f"{level}, fp32"]["value"]
        assert 0 < exact < 20
        for precision in ("bf16", "int8"):
            assert rows[f"{level}, {precision}"]["value"] == pytest.approx(exact, abs=0.1)
            assert rows[f"{level}, {precision}: greedy codes"]["value"] > 50


def test_a_model_says_how_its_codes_are_drawn(pairs, run, tmp_path):
    """What was configured in training holds where nothing is given: API, command, saved model; given values win."""
    assert Im2Wav.from_pretrained(run, device="cpu").sampling({}) == SamplingOptions(guidance_scale=2.0)  # the family's
    output = tmp_path / "other" / "low_prior"
    other = [
        "model.early_positions=8",
        "model.code_errors=0.1",
        "model.sampling.guidance_scale=1.5",
        "+model.sampling.temperature=0.7",
        "model.sampling.passes=1",
    ]
    train(residual_config("low_prior", pairs, output, f"codec={run / 'vqvae' / 'last.ckpt'}", *other))
    for name in ("vqvae", "up_prior"):
        (tmp_path / "other" / name).symlink_to(run / name)
    model = Im2Wav.from_pretrained(tmp_path / "other", device="cpu")
    assert model.sampling({"temperature": 0.9}) == SamplingOptions(1.5, temperature=0.9, passes=1)
    model.save_pretrained(tmp_path / "saved")
    assert Im2Wav.from_pretrained(tmp_path / "saved", device="cpu").sampling({}) == SamplingOptions(
        1.5, temperature=0.7, passes=1
    )
    out = tmp_path / "out"
    where = [f"input={OWL}", f"pretrained={tmp_path / 'saved'}", "encoder=efficientnet_lite2", f"out={out}"]
    assert command("sample", *where, "device=cpu", "sampler.passes=3") == 0
    settings = json.loads((out / "up" / "owl_03_00.json").read_text())["identity"]["settings"]
    assert (settings["guidance_scale"], settings["temperature"], settings["passes"]) == (1.5, 0.7, 3)


def test_unknown_recommendations_are_rejected(pairs, run, tmp_path):
    with pytest.raises(Exception, match="sampling options colour: expected some of guidance_scale"):
        train(residual_config("up_prior", pairs, run / "x", "+model.sampling.colour=1"))


def test_files_in_half_precision_are_half_as_large_and_make_a_model(run, model, tmp_path):
    assert command("convert", f"run={run}", f"out={tmp_path / 'small'}", "dtype=fp16") == 0
    assert command("convert", f"run={run}", f"out={tmp_path / 'full'}") == 0
    for kind in ("vqvae", "low_prior", "up_prior"):
        small, full = (load(tmp_path / name / f"{kind}.safetensors") for name in ("small", "full"))
        sizes = [(tmp_path / name / f"{kind}.safetensors").stat().st_size for name in ("small", "full")]
        assert sizes[0] < 0.55 * sizes[1]
        for name, value in full.net.state_dict().items():
            if name.endswith("code_usage"):  # left out with code_sum: every code counts as one latent a step
                assert torch.equal(small.net.state_dict()[name], torch.ones_like(value))
            elif name.endswith("code_sum"):
                assert torch.equal(
                    small.net.state_dict()[name], small.net.state_dict()[name.replace("code_sum", "codebook")]
                )
            else:
                torch.testing.assert_close(small.net.state_dict()[name], value, rtol=2e-3, atol=1e-5)
    again = Im2Wav.from_pretrained(tmp_path / "small", device="cpu")  # checks that codec and priors belong together
    assert again.generate(OWL, seed=3).wav.shape == model.generate(OWL, seed=3).wav.shape
    assert again.sampling({}) == model.sampling({})
    with pytest.raises(ValueError, match="dtype=fp8: expected fp32 or fp16"):
        save(load(run / "vqvae" / "last.ckpt"), tmp_path / "a.safetensors", "fp8")


def test_a_model_is_either_official_or_a_run(run, tmp_path, capfd):
    assert command("convert", f"run={run}", f"official={run}", f"out={tmp_path}") == 2
    assert "official and run both write models to out: set one of the two" in capfd.readouterr().err


@pytest.mark.parametrize("keeps", [True, False])
def test_priors_go_with_a_codec_whose_decoder_alone_was_trained_on(pairs, run, tmp_path, keeps):
    save(load(run / "vqvae" / "last.ckpt"), tmp_path / "codec.safetensors")
    frozen = "[encoder,quantizer]" if keeps else "[encoder]"
    options = [f"ckpt_path={tmp_path / 'codec.safetensors'}", f"model.freeze={frozen}"]
    train(residual_config("vqvae", pairs, tmp_path / "vqvae", *options))
    files = {"codec": tmp_path / "vqvae", "low": run / "low_prior", "up": run / "up_prior"}
    loaded = {name: load(folder / "last.ckpt") for name, folder in files.items()}
    if not keeps:
        with pytest.raises(ValueError, match="was trained on the codes of another VQ-VAE"):
            Im2Wav(**loaded, device="cpu")
        return
    save_folder(loaded, tmp_path / "model", "fp16")
    assert Im2Wav.from_pretrained(tmp_path / "model", device="cpu").window == 0.4
