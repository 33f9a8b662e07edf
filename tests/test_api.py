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


def test_it_reads_well_and_wants_neither_lightning_nor_hydra(trained, tmp_path):
    code = f"""
import sys
from im2wav import Im2Wav
model = Im2Wav.from_pretrained({str(trained / "base")!r})
sound = model.generate({str(OWL)!r}, seed=1)
sound.save({str(tmp_path / "owl.wav")!r})
print(sorted({{"lightning", "hydra", "omegaconf", "pytorch_lightning"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert soundfile.info(tmp_path / "owl.wav").frames == 4096
    about = json.loads((tmp_path / "owl.json").read_text())
    assert about["identity"]["seed"] == 1
    assert len(about["identity"]["models"]["up"]) == 64


def test_asking_for_help_does_not_wait_for_torch():
    code = "import sys, im2wav, im2wav.cli; print('torch' in sys.modules); im2wav.Sing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert "has no attribute 'Sing'" in done.stderr


def test_what_is_saved_comes_back_also_on_the_command_line(model, trained, tmp_path):
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


def test_a_model_goes_to_the_hub_and_comes_from_it(model, monkeypatch, tmp_path):
    """Through the mixin of huggingface_hub; its network is replaced by a folder."""
    import huggingface_hub.hub_mixin as hub

    import im2wav.hub

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            import shutil

            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(hub, "HfApi", Api)
    model.push_to_hub("someone/dogs")

    def fetch(repo_id, allow_patterns, revision=None):
        assert revision == "v1"
        assert "low_prior.safetensors" in allow_patterns
        return str(tmp_path / repo_id)

    monkeypatch.setattr(im2wav.hub, "snapshot_download", fetch)
    assert Im2Wav.from_pretrained("someone/dogs", revision="v1").sha256 == model.sha256


def test_models_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"holds no vqvae: expected vqvae\.safetensors"):
        Im2Wav.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no folder, and could not be fetched from the Hub"):
        Im2Wav.from_pretrained("someone/nothing")
    with pytest.raises(ValueError, match="is no folder"):
        Im2Wav.from_pretrained(tmp_path / "none")


def test_what_is_streamed_is_what_is_generated(model):
    what = {"seed": 2, "seconds": 0.9, "temperature": 0.9}
    whole = model.generate(Image.open(OWL), **what)
    assert len(whole.wav) == 14400
    assert (torch.cat(list(model.stream(OWL, **what))) == whole.wav).all()


def test_a_timeline_and_drafts(model):
    sound = model.generate(timeline=[f"{OWL}@0", f"{CAT}@0.2"], num_drafts=3)
    assert len(sound.wav) == round((0.2 + model.window) * 16000)
    assert sound.about["gap"] > -10
    later = model.generate(timeline=[f"{OWL}@0", f"{CAT}@0.2"], seed=sound.about["identity"]["seed"])
    assert (later.wav == sound.wav).all()


def test_a_video_gets_a_sound_of_its_length_and_takes_it_in(model, tmp_path):
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
    with pytest.raises(ValueError, match="the input was no video"):
        model.generate(OWL).save(tmp_path / "owl.mp4")
    with pytest.raises(ValueError, match=r"ends with one of \.wav, \.flac"):
        sound.save(tmp_path / "heard.ogg")


def test_a_sound_goes_on_and_is_mended(model, tmp_path):
    prefix = write_wav(tmp_path / "prefix.wav", tone(0.15))
    sound = model.generate(OWL, prefix=prefix, seconds=0.3)
    codes = model.encode(torch.from_numpy(tone(0.15)).float(), whole=False)
    assert len(sound.wav) == 4800
    for level in ("low", "up"):
        assert (sound.codes[level][: len(codes[level])] == codes[level]).all()
    mended = model.generate(OWL, seed=5, edit=sound, replace=(0.2, 0.25))
    assert len(mended.wav) == len(sound.wav)
    first, end = 3200 // 32, -(-4000 // 32)
    assert (mended.codes["low"][:first] == sound.codes["low"][:first]).all()
    assert (mended.codes["low"][end:] == sound.codes["low"][end:]).all()
    assert (mended.codes["low"] != sound.codes["low"]).any()
    sound.save(tmp_path / "sound.flac")
    assert len(model.generate(OWL, edit=tmp_path / "sound.flac", replace=(0, 0.1)).wav) == len(sound.wav)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "give one of image, video, timeline and text"),
        ({"image": "none.jpg"}, "expected a photo"),
        ({"text": "an owl"}, "encoder=efficientnet_lite2 encodes images only"),
        ({"image": OWL, "seconds": 0}, "seconds=0: expected more than 0"),
        ({"image": OWL, "num_drafts": 0}, "num_drafts=0"),
        ({"image": OWL, "overlap": 1}, "overlap=1"),
        ({"image": OWL, "prefix": torch.zeros(10)}, "a sound of 10 samples is too short"),
        ({"image": OWL, "prefix": torch.zeros(9000)}, "ask for more seconds"),
        ({"image": OWL, "prefix": "none.wav"}, "missing file"),
        ({"image": OWL, "edit": "a.wav"}, "go together"),
        ({"image": OWL, "replace": (0, 1)}, "go together"),
        ({"image": OWL, "prefix": torch.zeros(900), "replace": (0, 1)}, "not both"),
        ({"image": OWL, "edit": "WAV", "replace": (0.2, 0.1)}, "two rising seconds within the sound's 0.150 s"),
        ({"image": OWL, "edit": "WAV", "replace": (0.1, 0.2)}, "two rising seconds within"),
        ({"image": OWL, "temperature": 0}, "temperature=0"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_work_is_refused(model, what, message, tmp_path):
    if what.get("edit") == "WAV":
        what = {**what, "edit": write_wav(tmp_path / "a.wav", tone(0.15))}
    with pytest.raises(ValueError, match=message):
        model.generate(**what)


def test_a_frugal_model_gives_the_same_sound_and_cannot_be_saved(model, trained, tmp_path):
    frugal = Im2Wav.from_pretrained(trained / "base", device="cpu", consume=True)
    what = {"seconds": 0.1, "num_drafts": 2, "negative": CAT, "negative_scale": 0.5}
    assert (frugal.generate(OWL, **what).wav == model.generate(OWL, **what).wav).all()
    assert frugal.sha256 == model.sha256
    assert frugal.loaded["low"].net.transformer.layers[0].qkv.weight.is_meta
    with pytest.raises(ValueError, match="load it again without"):
        frugal.save_pretrained(tmp_path / "frugal")
    with pytest.raises(ValueError, match="precision=fp8"):
        Im2Wav.from_pretrained(trained / "base", device="cpu", precision="fp8")


def test_a_text_is_heard_where_the_encoder_knows_texts(trained, monkeypatch):
    """Experimental: what a text tower says stands in a picture's place."""
    model = Im2Wav.from_pretrained(trained / "base", device="cpu")
    (embedding,) = model.encoder.encode([Image.open(OWL)])
    monkeypatch.setattr(model.encoder, "encode_text", lambda texts: embedding.repeat(len(texts), 1))
    sound = model.generate(text="an owl", seconds=0.1)
    assert (sound.wav == model.generate(OWL, seconds=0.1).wav).all()
    away = model.generate(OWL, seconds=0.1, negative_text="an owl", negative_scale=300.0)
    assert (away.codes["low"] != sound.codes["low"]).any()


def test_a_prior_without_guidance_takes_no_negative(model, monkeypatch):
    monkeypatch.setattr(type(model.models.low), "can_be_guided", False)
    with pytest.raises(ValueError, match="a negative needs guidance"):
        model.generate(OWL, negative=CAT)


def test_an_unknown_setting_is_refused(model):
    with pytest.raises(TypeError, match="loudness"):
        model.generate(OWL, loudness=3)


def test_a_video_whose_pictures_mp4_cannot_hold_still_gets_its_sound(trained, tmp_path, caplog, monkeypatch):
    import im2wav.inference.outputs
    from im2wav.media.reading import MediaError

    def cannot(*_):
        raise MediaError("cannot mux", "clip.mp4: no")

    monkeypatch.setattr(im2wav.inference.outputs, "mux", cannot)
    arguments = ["encoder=efficientnet_lite2", f"paths.runs={trained}", f"out={tmp_path}", "seconds=0.1"]
    (result,) = sample(config("sample", *arguments, f"input={write_mp4(tmp_path / 'clip.mp4', audio=False)}"))
    assert "cannot mux" in caplog.text
    assert soundfile.info(result["up"]).frames == 1600
