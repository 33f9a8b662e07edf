import json
import subprocess
import sys

import pytest
import soundfile
import torch
from PIL import Image

from conftest import ASSETS, command, config, tone, write_mp4, write_wav
from im2wav import Im2Wav
from im2wav.sample import sample

OWL, CAT = (ASSETS / "images" / f"{name}.jpg" for name in ("owl_03", "cat_03"))


@pytest.fixture(scope="module")
def model(trained):
    return Im2Wav.from_pretrained(trained / "base", device="cpu")


def test_the_api_imports_neither_lightning_nor_hydra(trained, tmp_path):
    code = f"""
import sys
from im2wav import Im2Wav
model = Im2Wav.from_pretrained({str(trained / "base")!r})
audio = model.generate({str(OWL)!r}, seed=1)
audio.save({str(tmp_path / "owl.wav")!r})
print(sorted({{"lightning", "hydra", "omegaconf", "pytorch_lightning"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert soundfile.info(tmp_path / "owl.wav").frames == 4096
    about = json.loads((tmp_path / "owl.json").read_text())
    assert about["identity"]["seed"] == 1
    assert len(about["identity"]["models"]["up"]) == 64


def test_help_does_not_import_torch():
    code = "import sys, im2wav, im2wav.cli; print('torch' in sys.modules); im2wav.Sing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert "has no attribute 'Sing'" in done.stderr


def test_a_saved_model_loads_in_python_and_on_the_command_line(model, trained, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = Im2Wav.from_pretrained(tmp_path / "model", device="cpu")
    assert again.sha256 == model.sha256
    assert again.info == model.info
    sound = again.generate(OWL, seed=3)
    assert (sound.wav == model.generate(OWL, seed=3).wav).all()
    assert {p.name for p in (tmp_path / "model").iterdir()} >= {
        "config.json", "README.md", "vqvae.safetensors", "low_prior.safetensors", "up_prior.safetensors"
    }  # fmt: skip
    assert json.loads((tmp_path / "model" / "config.json").read_text())["image_encoder"]["name"] == "efficientnet_lite2"
    common = ["encoder=efficientnet_lite2", f"out={tmp_path / 'out'}", f"input={OWL}"]
    assert command("sample", f"pretrained={tmp_path / 'model'}", *common) == 0
    about = json.loads((tmp_path / "out/up/owl_03_00.json").read_text())
    sound = again.generate(OWL, seed=about["seed"])  # the seed in the .json makes the sound again
    sound.save(tmp_path / "again.wav")
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "out/up/owl_03_00.wav").read_bytes()


def test_models_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"holds no vqvae: expected vqvae\.safetensors"):
        Im2Wav.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no folder, and it is not in the cache of the Hub"):
        Im2Wav.from_pretrained("someone/nothing")
    with pytest.raises(ValueError, match="is no folder"):
        Im2Wav.from_pretrained(tmp_path / "none")


def test_streamed_audio_equals_generated_audio(model):
    what = {"seed": 2, "seconds": 0.9, "temperature": 0.9}
    whole = model.generate(Image.open(OWL), **what)
    assert len(whole.wav) == 14400
    assert (torch.cat(list(model.stream(OWL, **what))) == whole.wav).all()


def test_the_temperature_of_the_up_prior_changes_the_fine_codes_only(model):
    plain, cold = (model.generate(OWL, seed=2, **options) for options in ({}, {"up_temperature": 0.05}))
    assert torch.equal(plain.codes["low"], cold.codes["low"])
    assert not torch.equal(plain.codes["up"], cold.codes["up"])


def test_a_timeline_and_drafts(model):
    sound = model.generate(timeline=[f"{OWL}@0", f"{CAT}@0.2"], num_drafts=3)
    assert len(sound.wav) == round((0.2 + model.window) * 16000)
    assert sound.about["gap"] > -10
    later = model.generate(timeline=[f"{OWL}@0", f"{CAT}@0.2"], seed=sound.about["identity"]["seed"])
    assert (later.wav == sound.wav).all()


def test_audio_for_a_video_has_its_length_and_is_muxed_into_it(model, tmp_path):
    import av

    video = write_mp4(tmp_path / "clip.mp4", seconds=1.0)
    sound = model.generate(video=video)
    assert len(sound.wav) == pytest.approx(16000, abs=800)
    sound.save(tmp_path / "heard.mp4")
    with av.open(str(video)) as before, av.open(str(tmp_path / "heard.mp4")) as after:
        pictures = [[bytes(p) for p in c.demux(c.streams.video[0]) if p.size] for c in (before, after)]
        assert pictures[0] == pictures[1]  # copied, not coded again
    with av.open(str(tmp_path / "heard.mp4")) as after:
        frames = [frame.to_ndarray() for frame in after.decode(after.streams.audio[0])]
    heard = torch.cat([torch.from_numpy(f).mean(0) for f in frames])[: len(sound.wav)]
    assert torch.corrcoef(torch.stack([heard, sound.wav[: len(heard)]]))[0, 1] > 0.9
    assert model.generate(OWL).save(tmp_path / "owl.mp4").is_file()  # shows the photo
    with pytest.raises(ValueError, match=r"the suffix must be one of \.wav, \.flac"):
        sound.save(tmp_path / "heard.aiff")


def test_audio_continuation_and_inpainting(model, tmp_path):
    prompt = write_wav(tmp_path / "prompt.wav", tone(0.15))
    sound = model.generate(OWL, continue_from=prompt, seconds=0.3)
    codes = model.networks.encode(torch.from_numpy(tone(0.15)).float(), pad=False)
    assert len(sound.wav) == 4800
    for level in ("low", "up"):
        assert (sound.codes[level][: len(codes[level])] == codes[level]).all()
    inpainted = model.generate(OWL, seed=5, inpaint=sound, inpaint_interval=(0.2, 0.25))
    assert len(inpainted.wav) == len(sound.wav)
    first, end = 3200 // 32, -(-4000 // 32)
    assert (inpainted.codes["low"][:first] == sound.codes["low"][:first]).all()
    assert (inpainted.codes["low"][end:] == sound.codes["low"][end:]).all()
    assert (inpainted.codes["low"] != sound.codes["low"]).any()
    sound.save(tmp_path / "sound.flac")
    assert len(model.generate(OWL, inpaint=tmp_path / "sound.flac", inpaint_interval=(0, 0.1)).wav) == len(sound.wav)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "set exactly one of image, video, timeline and text"),
        ({"image": "none.jpg"}, "expected a photo"),
        ({"text": "an owl"}, "encoder=efficientnet_lite2 encodes images only"),
        ({"image": OWL, "seconds": 0}, "seconds=0: expected more than 0"),
        ({"image": OWL, "num_drafts": 0}, "num_drafts=0"),
        ({"image": OWL, "overlap": 1}, "overlap=1"),
        ({"image": OWL, "continue_from": torch.zeros(10)}, "audio of 10 samples is too short"),
        ({"image": OWL, "continue_from": torch.zeros(9000)}, "increase seconds"),
        ({"image": OWL, "continue_from": "none.wav"}, "missing file"),
        ({"image": OWL, "inpaint": "a.wav"}, "inpaint=AUDIO together with inpaint_interval"),
        ({"image": OWL, "inpaint_interval": (0, 1)}, "inpaint=AUDIO together with"),
        ({"image": OWL, "continue_from": torch.zeros(900), "inpaint_interval": (0, 1)}, "cannot be combined"),
        ({"image": OWL, "inpaint": "WAV", "inpaint_interval": (0.2, 0.1)}, "increasing seconds within the 0.150 s"),
        ({"image": OWL, "inpaint": "WAV", "inpaint_interval": (0.1, 0.2)}, "increasing seconds within"),
        ({"image": OWL, "temperature": 0}, "temperature=0"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_options_are_rejected(model, what, message, tmp_path):
    if what.get("inpaint") == "WAV":
        what = {**what, "inpaint": write_wav(tmp_path / "a.wav", tone(0.15))}
    with pytest.raises(ValueError, match=message):
        model.generate(**what)


def test_a_consumed_model_generates_the_same_audio_and_cannot_be_saved(model, trained, tmp_path):
    consumed = Im2Wav.from_pretrained(trained / "base", device="cpu", consume=True)
    what = {"seconds": 0.1, "num_drafts": 2, "negative": CAT, "negative_scale": 0.5}
    assert (consumed.generate(OWL, **what).wav == model.generate(OWL, **what).wav).all()
    assert consumed.sha256 == model.sha256
    assert consumed.loaded["low"].net.transformer.layers[0].qkv.weight.is_meta
    with pytest.raises(ValueError, match="load it again without"):
        consumed.save_pretrained(tmp_path / "consumed")
    with pytest.raises(ValueError, match="precision=fp8"):
        Im2Wav.from_pretrained(trained / "base", device="cpu", precision="fp8")


def test_audio_for_a_text(trained, monkeypatch):
    """Experimental: the embedding of a text replaces the image embedding."""
    model = Im2Wav.from_pretrained(trained / "base", device="cpu")
    (embedding,) = model.encoder.encode([Image.open(OWL)])
    monkeypatch.setattr(model.encoder, "encode_text", lambda texts: embedding.repeat(len(texts), 1))
    sound = model.generate(text="an owl", seconds=0.1)
    assert (sound.wav == model.generate(OWL, seconds=0.1).wav).all()
    away = model.generate(OWL, seconds=0.1, negative_text="an owl", negative_scale=300.0)
    assert (away.codes["low"] != sound.codes["low"]).any()


def test_a_negative_input_without_guidance_is_rejected(model, monkeypatch):
    monkeypatch.setattr(type(model.networks.low), "can_be_guided", False)
    with pytest.raises(ValueError, match="a negative input needs guidance"):
        model.generate(OWL, negative=CAT)


def test_an_unknown_option_is_rejected(model):
    with pytest.raises(TypeError, match="loudness"):
        model.generate(OWL, loudness=3)


def test_audio_is_written_for_a_video_that_mp4_cannot_contain(trained, tmp_path, caplog, monkeypatch):
    import im2wav.inference.generate
    from im2wav.media.reading import MediaError

    def cannot(*_):
        raise MediaError("cannot mux", "clip.mp4: no")

    monkeypatch.setattr(im2wav.inference.generate, "mux", cannot)
    arguments = ["run_name=base", f"paths.runs={trained}", f"out={tmp_path}", "seconds=0.1"]
    (result,) = sample(config("sample", *arguments, f"input={write_mp4(tmp_path / 'clip.mp4', audio=False)}"))
    assert "cannot mux" in caplog.text
    assert soundfile.info(result["up"]).frames == 1600
