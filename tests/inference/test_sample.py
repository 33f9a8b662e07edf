import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hydra.errors import InstantiationException

from conftest import ASSETS, command, config, needs_compiler, write_mp4
from im2wav.checkpoint import check_same_origin, load
from im2wav.decoding import compiled
from im2wav.decoding.linear import pick_device
from im2wav.sample import sample

IMAGES = ("owl_03", "cat_03")


def run(trained, tmp_path, *overrides):
    arguments = ["run_name=base", f"paths.runs={trained}", f"out={tmp_path / 'out'}", *overrides]
    return sample(config("sample", *arguments))


def test_a_photo_through_the_command_line(trained, tmp_path, capfd):
    picture = ASSETS / "images" / "owl_03.jpg"
    arguments = ["run_name=base", f"paths.runs={trained}", f"out={tmp_path}", f"input={picture}"]
    assert command("sample", *arguments, "num_samples=2", "sampler.top_k=8", "sampler.temperature=0.9") == 0
    for level in ("up", "low"):
        names = sorted(p.name for p in (tmp_path / level).glob("*.wav"))
        assert names == ["owl_03_00.wav", "owl_03_01.wav"]
        samples, rate = soundfile.read(tmp_path / level / names[0])
        assert (rate, samples.shape) == (16000, (4096,))
        assert np.abs(samples).max() > 0
    assert "2 audio files to generate, 0.5 s in total" in capfd.readouterr().out


@pytest.mark.slow
@needs_compiler
def test_compile_is_recorded_in_the_json(trained, tmp_path, capfd):
    compiled._compile.cache_clear()  # another test may have compiled for such rows
    picture = ASSETS / "images" / "owl_03.jpg"
    arguments = ["run_name=base", f"paths.runs={trained}", f"out={tmp_path}", f"input={picture}"]
    assert command("sample", *arguments, "compile=true", "device=cpu") == 0
    said = capfd.readouterr().out
    assert "batch_size=2 on cpu" in said
    assert "compiling for 2 rows" in said
    assert json.loads((tmp_path / "up" / "owl_03_00.json").read_text())["identity"]["settings"]["compile"] is True
    assert command("sample", *arguments) == 2
    assert "generated with settings.compile=True" in capfd.readouterr().err


def test_an_unknown_device_is_rejected():
    with pytest.raises(ValueError, match="device=gpu: expected auto, cpu, cuda or mps"):
        pick_device("gpu")
    for name in ("cpu:x", "cuda:99", 99, None):
        with pytest.raises(ValueError, match=f"device={name}: "):
            pick_device(name)
    assert pick_device(torch.device("cpu")) == "cpu"
    assert pick_device("auto") in ("cuda", "mps", "cpu")


def test_the_same_seed_gives_the_same_audio_in_every_batch(trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in IMAGES:
        shutil.copy(ASSETS / "images" / f"{name}.jpg", folder)
    together = run(trained, tmp_path / "a", f"input={folder}", "num_samples=2", "batch_size=4")
    alone = run(trained, tmp_path / "b", f"input={folder / 'owl_03.jpg'}", "num_samples=2", "batch_size=1")
    other = run(trained, tmp_path / "c", f"input={folder / 'owl_03.jpg'}", "seed=1")
    paths = {(r["input"].split("/")[-1], r["number"]): r["up"] for r in together}
    for result in alone:
        same = paths["owl_03.jpg", result["number"]]
        assert Path(result["up"]).read_bytes() == Path(same).read_bytes()
    assert Path(other[0]["up"]).read_bytes() != Path(alone[0]["up"]).read_bytes()


def test_a_folder_with_photos_a_video_and_a_broken_file(trained, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(ASSETS / "images" / "owl_03.jpg", folder)
    write_mp4(folder / "clip.mp4", audio=False)  # a silent video is what needs a sound most
    (folder / "broken.png").write_text("not an image")
    results = run(trained, tmp_path, f"input={folder}", "max_failed=0.5")
    assert sorted(r["input"].split("/")[-1] for r in results) == ["clip.mp4", "owl_03.jpg"]
    assert "broken.png" in caplog.text
    with pytest.raises(ValueError, match=r"2 of 3 inputs could be read, see above \(max_failed=0.0\)"):
        run(trained, tmp_path, f"input={folder}")


def test_a_real_video(trained, tmp_path, shared):
    clip = next((shared / "data/vggsound_examples/video").glob("20qZ*.mp4"))
    (result,) = run(trained, tmp_path, f"input={clip}", "seconds=0.3")
    assert soundfile.info(result["up"]).frames == 4800


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input=none.jpg"], "expected a photo, a video"),
        (["input=EMPTY"], "expected a photo, a video"),
        (["input=IMAGE", "encoder=clip_vit_b32"], "made with encoder=efficientnet_lite2"),
        (["input=IMAGE", "low=RUNS/base/up_prior/last.ckpt"], "holds a up_prior, expected a low_prior"),
        (["input=IMAGE", "pretrained=starter"], "pretrained=starter and run_name=base: set one of the two"),
        (["input=IMAGE", "codec=none.ckpt"], "none.ckpt does not exist"),
        (["input=IMAGE", "run_name=other"], "other holds no vqvae: expected vqvae.safetensors"),
        (["input=IMAGE", "sampler.temperature=0"], "temperature=0"),
        (["input=BROKEN"], "none of 1 inputs could be read"),
    ],
)
def test_bad_options_are_rejected(trained, tmp_path, overrides, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_text("not an image")
    names = {"EMPTY": tmp_path / "empty", "IMAGE": ASSETS / "images/owl_03.jpg", "RUNS": trained}
    names["BROKEN"] = tmp_path / "broken.jpg"
    for name, value in names.items():
        overrides = [o.replace(name, str(value)) for o in overrides]
    with pytest.raises((ValueError, InstantiationException), match=message):  # Hydra wraps what a constructor raises
        run(trained, tmp_path, *overrides)


def test_an_output_that_cannot_be_written(trained, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to"):
        run(trained, tmp_path, f"input={ASSETS / 'images/owl_03.jpg'}")


def test_networks_of_different_origin_are_rejected(trained):
    parts = {"codec": "vqvae", "low": "low_prior", "up": "up_prior"}
    loaded = {k: load(trained / "base" / v / "last.ckpt") for k, v in parts.items()}
    check_same_origin(**loaded)
    with torch.no_grad():
        loaded["codec"].net.codebooks["up"].codebook[0, 0] += 1
    with pytest.raises(ValueError, match="another VQ-VAE"):
        check_same_origin(**loaded)


def test_a_checkpoint_never_runs_code(tmp_path):
    import pickle

    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    with (tmp_path / "bad.ckpt").open("wb") as file:
        pickle.dump({"kind": "vqvae", "config": Malicious()}, file)
    with pytest.raises(ValueError, match="is not a vqvae checkpoint"):
        load(tmp_path / "bad.ckpt", "vqvae")
    assert not (tmp_path / "trace").exists()
