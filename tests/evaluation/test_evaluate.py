"""The real evaluation: YAMNet on real sounds, the command line, the report, and what it refuses."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from conftest import ASSETS, IDS, command, config, write_mp4, write_wav
from im2wav.cli import run
from im2wav.data.imagehear_list import imagehear as lists
from im2wav.evaluate import evaluate
from im2wav.evaluation import audio_files, imagehear
from im2wav.evaluation.taggers import YAMNET_PATH, Yamnet, audioset_labels

FAST = ("resamples=50", "resamples_fd=3", "examples=1", "seconds=1.2")
NAMES = (*IDS, "rock_band_01", "helicopter_01")


@pytest.fixture(scope="module")
def yamnet() -> Yamnet:
    return Yamnet()


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Eight real sounds, and the same with noise as `generated`."""
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    generated.mkdir()
    reference.mkdir()
    random = np.random.default_rng(0)
    for name in NAMES:
        samples, rate = soundfile.read(ASSETS / "audio" / f"{name}.flac", dtype="float32", always_2d=True)
        wav = samples.mean(1)[: 2 * rate]
        write_wav(reference / f"{name}.wav", wav, rate)
        write_wav(generated / f"{name}_00.wav", 0.5 * wav + 0.02 * random.standard_normal(len(wav)), rate)
    for path in reference.parent.rglob("*.wav"):  # as they are stored, the sounds have several rates
        wav = audio_files.read_audio(path, 16000)
        write_wav(path, wav.numpy())
    return generated, reference


def judged(folders, tmp_path, *overrides):
    generated, reference = folders
    arguments = (f"generated={generated}", f"reference={reference}", f"out={tmp_path / 'out'}", *FAST, *overrides)
    return evaluate(config("evaluate", *arguments))


def test_yamnet_hears_the_two_vggsound_clips(yamnet, shared):
    """The tags that evaluation.md, section 4.1, measured."""
    expected = {
        "0nYltlo90Zc_147000_157000": {"Music": 0.89, "Percussion": 0.39, "Drum": 0.37, "Musical instrument": 0.31},
        "20qZLse0acs_30000_40000": {"Animal": 0.51, "Dog": 0.48, "Domestic animals, pets": 0.47, "Howl": 0.45},
    }
    for name, tags in expected.items():
        wav = audio_files.read_audio(shared / "data/vggsound_examples/wav" / f"{name}.wav", 16000)
        outputs = yamnet.analyse(wav)
        top = outputs.scores[0].topk(len(tags)).indices.tolist()
        assert [yamnet.labels[i] for i in top] == list(tags)
        for label, score in tags.items():
            assert outputs.scores[0, yamnet.labels.index(label)].item() == pytest.approx(score, abs=0.02)


def test_yamnets_last_layer_is_its_own_and_its_labels_are_audiosets(yamnet):
    wav = 0.1 * torch.randn(15600, generator=torch.Generator().manual_seed(0))
    outputs = yamnet.analyse(wav)
    output = yamnet._net.get_tensor(yamnet._net.get_output_details()[0]["index"])[0]
    assert np.abs(outputs.scores[0].numpy() - output).max() < 0.05  # the file's own scores, in steps of 1/256
    assert len(yamnet.labels) == 521
    labels = audioset_labels()
    assert len(labels) == len(set(labels)) == 527
    assert (labels[0], labels[137], labels[283], labels[526]) == ("Speech", "Music", "Wind", "Field recording")
    every = {name for entry in lists().classes for name in entry.audioset}
    assert every <= set(labels)
    assert every - set(yamnet.labels) == {"Male speech, man speaking", "Female speech, woman speaking"}
    assert set(lists().audioset_general) - set(yamnet.labels) == {"Funny music"}


def test_threads_hear_what_one_hears(folders, yamnet, monkeypatch):
    monkeypatch.setattr(audio_files, "TOGETHER", 3)
    folder = folders[0]
    reading = audio_files.Reading(16000, 1.5, -20.0)
    chosen = audio_files.AudioFileSet("generated", tuple(audio_files.find_audio_files(folder, "generated")))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = audio_files.judge(chosen, [yamnet], reading)
    finally:
        torch.set_num_threads(threads)
    alone = [yamnet.analyse(reading.level(reading.raw(sound))) for sound in chosen.files]
    outputs = found.outputs["yamnet"]
    assert torch.equal(outputs.rows, torch.cat([one.rows for one in alone]))
    assert outputs.owner.tolist() == list(range(len(alone)))
    assert torch.equal(outputs.scores, torch.cat([one.scores for one in alone]))
    assert torch.equal(outputs.logits, torch.cat([one.logits for one in alone]))
    assert torch.equal(found.levels, torch.stack([audio_files.levels(reading.raw(sound)) for sound in chosen.files]))


def test_a_damaged_network_is_rejected(tmp_path):
    content = bytearray(YAMNET_PATH.read_bytes())
    content[1000] ^= 1
    (tmp_path / "yamnet.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="expected 10c95ea3"):
        Yamnet(tmp_path / "yamnet.tflite")
    with pytest.raises(ValueError, match="ship with im2wav"):
        Yamnet(tmp_path / "none.tflite")


def test_the_command_judges_two_folders_and_repeats_itself_to_the_byte(folders, tmp_path, capfd):
    generated, reference = folders
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{n},{n.split('_')[0]}\n" for n in NAMES))
    out = tmp_path / "out"
    arguments = [f"generated={generated}", f"reference={reference}", f"out={out}", f"images={ASSETS / 'images'}"]
    arguments += [f"labels={tmp_path / 'labels.csv'}", *FAST]
    files = ("report.json", "report.html", "report.md", "items.csv")
    assert command("evaluate", *arguments) == 0
    first = {name: (out / name).read_bytes() for name in files}
    assert command("evaluate", *arguments) == 0
    assert {name: (out / name).read_bytes() for name in files} == first
    report, shown = json.loads(first["report.json"]), capfd.readouterr().out
    assert "Fréchet distance" in shown
    assert "shuffled baseline" in shown
    row, shuffled, real = (report["rows"][name] for name in ("generated", "shuffled", "real"))
    assert row["kl/yamnet"]["value"] < shuffled["kl/yamnet"]["value"]
    assert row["agree@5/yamnet"]["value"] > shuffled["agree@5/yamnet"]["value"]
    assert row["retrieval"]["value"] == 1  # the same recordings with a little noise
    assert row["retrieval"]["n_reference"] == report["recordings"] == 8
    assert shuffled["retrieval"]["value"] == 0
    assert {"fd/yamnet", "fd_half/yamnet", "kad/yamnet", "is/yamnet", "acc@1/yamnet", "loudness_db"} <= set(row)
    assert {"fd_half/yamnet", "kad/yamnet", "acc@1/yamnet"} <= set(real)
    assert "fd/yamnet" not in real  # halves have another bias
    for figure in (f for found in report["rows"].values() for f in found.values()):
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] > 0
    assert report["networks"]["yamnet"]["sha256"].startswith("10c95ea3")
    assert report["sets"]["generated"] == report["sets"]["generated"] | {"n": 8, "sample_rate": {"16000": 8}}
    assert report["protocol"]["seed"] == 0
    assert any("fewer than the 1024 dimensions" in text for text in report["warnings"])
    page = first["report.html"].decode()
    assert page.count("<audio") == 2 * 2  # the best and the worst, each beside the real one
    assert page.count("data:image/jpeg") == 2
    assert page.count("data:image/svg+xml") == 3  # bars, distributions, confusions
    assert len(first["items.csv"].splitlines()) == 9
    assert all(row["nearest"] == row["item"] for row in csv.DictReader(io.StringIO(first["items.csv"].decode())))


def test_how_loud_a_set_is_does_not_move_its_distance(folders, tmp_path):
    one = judged(folders, tmp_path)
    for path in folders[0].glob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, 0.25 * samples, rate, subtype="FLOAT")
    other = judged(folders, tmp_path)
    fd, loud = ([x["rows"]["generated"][name]["value"] for x in (one, other)] for name in ("fd/yamnet", "loudness_db"))
    assert fd[0] == pytest.approx(fd[1], rel=0.02)
    assert loud[0] - loud[1] == pytest.approx(12.04, abs=0.1)


def break_nan(generated, reference):
    for path in sorted(generated.iterdir())[:2]:
        soundfile.write(path, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")


def break_rate(generated, reference):
    for path in reference.iterdir():
        write_wav(path, soundfile.read(path)[0], 22050)


def break_names(generated, reference):
    (generated / "owl_03_00.wav").rename(generated / "eagle_00.wav")


def break_all_names(generated, reference):
    for number, path in enumerate(sorted(generated.iterdir())):
        path.rename(generated / f"x{number}.wav")


def break_file(generated, reference):
    (generated / "owl_03_00.wav").write_text("no sound")


def break_empty(generated, reference):
    for path in generated.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nan, r"2 audio files cannot be used: bird_02_00 \(broken audio\), bird_03_00"),
        (break_rate, r"generated: 8 at 16000 Hz; reference: 8 at 22050 Hz.*resample=true"),
        (break_names, r"1 generated files without a reference: eagle_00; 1 references .*: owl_03.*missing=skip"),
        (break_all_names, r"no generated file has the name of a reference: generated are x0"),
        (break_file, r"1 files cannot be used: owl_03_00.wav \("),
        (break_empty, r"generated=.* contains no audio files"),
    ],
)
def test_bad_audio_files_are_named(folders, tmp_path, damage, message):
    damage(*folders)
    with pytest.raises(ValueError, match=message):
        judged(folders, tmp_path)
    assert not (tmp_path / "out" / "report.json").exists()


def test_what_is_asked_for_is_said(folders, tmp_path):
    break_names(*folders)
    (path,) = folders[0].glob("cat_03*")
    write_wav(path, np.zeros(32000))
    report = judged(folders, tmp_path, "missing=skip")
    assert report["unmatched"] == {"generated": ["eagle_00"], "reference": ["owl_03"]}
    assert report["sets"]["generated"]["n"] == report["sets"]["reference"]["n"] == 7
    assert any("1 audio files of generated are silent" in text and "cat_03_00" in text for text in report["warnings"])
    assert any("eagle_00" in text for text in report["warnings"])
    assert report["rows"]["generated"]["silent"]["value"] == pytest.approx(1 / 7)


def test_rates_are_brought_together_and_sets_may_be_unpaired(folders, tmp_path):
    break_rate(*folders)
    break_all_names(*folders)
    report = judged(folders, tmp_path, "resample=true", "paired=false")
    assert report["protocol"]["sample_rate"] == 16000
    assert {"fd/yamnet", "kad/yamnet"} <= set(report["rows"]["generated"])
    assert "kl/yamnet" not in report["rows"]["generated"]
    assert "shuffled" not in report["rows"]
    assert "retrieval" not in report["rows"]["generated"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "generated=... is required: folder of generated audio files"),
        (["data=GENERATED"], "is not a pairs folder"),  # audio of the starter model for its photos
        (["generated=GENERATED"], "needs reference=DIR"),
        (["generated=none", "reference=REFERENCE"], "generated=none: no such folder"),
        (
            ["generated=GENERATED", "reference=REFERENCE", "suite=best"],
            "suite=best: must be one of offline, paper, all",
        ),
        (["generated=GENERATED", "reference=REFERENCE", "suite=paper"], "needs weights_dir=DIR"),
        (
            ["generated=GENERATED", "reference=REFERENCE", "suite=all", "weights_dir=GENERATED"],
            "lacks 4 of 4 files: passt-s-f128",
        ),
        (["mode=imagehear", "generated=GENERATED", "model=GENERATED"], "give one of generated=DIR"),
        (["mode=imagehear"], r"needs generated=DIR \(audio files\), or images=DIR"),
        (["generated=GENERATED", "reference=REFERENCE", "missing=drop"], "missing=drop: must be one of error, skip"),
        (["generated=GENERATED", "reference=REFERENCE", "resamples=1"], "resamples=1: must be >= 2"),
        (["model=GENERATED"], "data_dir=... is required: data=DIR: a pairs folder"),
        (["codec=GENERATED"], "data_dir=... is required: data=DIR: a pairs folder"),
        (
            ["mode=imagehear", "model=GENERATED", "images=GENERATED"],
            "of ImageHear are missing: accordion1.jpg",
        ),
        (["model=GENERATED", "data=GENERATED"], "is not a pairs folder"),
        (
            ["generated=GENERATED", "reference=REFERENCE", "export=paper"],
            r"export=paper: must be one of av-benchmark \(or null\)",
        ),
        (["generated=GENERATED", "reference=REFERENCE", "labels=none.csv"], "none.csv does not exist"),
    ],
)
def test_what_cannot_work_is_rejected(folders, tmp_path, overrides, message):
    names = {"GENERATED": folders[0], "REFERENCE": folders[1]}
    for name, value in names.items():
        overrides = [x.replace(name, str(value)) for x in overrides]
    with pytest.raises(ValueError, match=message):
        run(evaluate, config("evaluate", f"out={tmp_path / 'out'}", *overrides), ValueError)


@pytest.mark.parametrize("wrong", ["export=av-benchmark", "model=x", "per_class=3"])
def test_a_mode_has_no_options_of_the_others(wrong, tmp_path, capfd):
    assert command("evaluate", "codec=x", "data=x", wrong, f"out={tmp_path}") == 2
    assert "no such option" in capfd.readouterr().err


def test_a_model_is_sampled_once_and_measured(trained, pairs, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = [f"model={trained / 'base'}", f"data={pairs}", "split=all", f"out={out}", "resamples=50"]
    arguments += ["resamples_fd=3", "examples=1", "sampler.guidance_scale=1"]
    assert command("evaluate", *arguments) == 0
    first = (out / "report.json").read_bytes()
    report = json.loads(first)
    assert set(report["rows"]) == {"generated", "draft", "real", "reconstruction", "shuffled"}
    for level in ("up", "low"):
        assert report["codec"][level]["codebook_size"] == 32
        assert 1 <= report["codec"][level]["codes_perplexity"] <= 32
        bits = report["priors"][level]
        gain = bits["shuffled"]["value"] - bits["condition"]["value"]
        assert bits["gain_over_shuffled"]["value"] == pytest.approx(gain, abs=1e-6)
        assert 0 < bits["condition"]["value"] < 8
    assert "none" in report["priors"]["low"]
    assert "none" not in report["priors"]["up"]  # which is not guided
    (out / "sounds" / "up" / "owl_03_00.wav").unlink()
    kept = (out / "sounds" / "up" / "cat_03_00.wav").stat().st_mtime_ns
    capfd.readouterr()
    assert command("evaluate", *arguments) == 0
    assert (out / "report.json").read_bytes() == first
    assert (out / "sounds" / "up" / "cat_03_00.wav").stat().st_mtime_ns == kept
    assert "1 inputs: 1 audio files to generate" in capfd.readouterr().out
    assert command("evaluate", *arguments, "seed=1") == 2
    assert "audio of another model or other options" in capfd.readouterr().err


def test_the_networks_that_generate_are_released_before_those_that_judge_are_loaded(
    trained, pairs, tmp_path, monkeypatch
):
    import gc

    from im2wav.evaluation import scoring
    from im2wav.prior import Prior

    load_networks, priors = scoring.load_networks, []

    def load_and_count(cfg):
        priors.append(sum(type(x) is Prior for x in gc.get_objects()))
        return load_networks(cfg)

    monkeypatch.setattr(scoring, "load_networks", load_and_count)
    arguments = [f"model={trained / 'base'}", f"data={pairs}", "split=all", *FAST[:3], "sampler.guidance_scale=1"]
    evaluate(config("evaluate", *arguments, f"out={tmp_path / 'out'}"))
    before, after = priors
    assert after <= before


@pytest.mark.slow  # `make test` compares two devices with one for `sample`
def test_several_devices_generate_the_same_audio_and_one_process_evaluates_it(trained, pairs, tmp_path):
    arguments = [f"model={trained / 'base'}", f"data={pairs}", "split=all", *FAST[:2], "examples=0", "batch_size=2"]
    assert command("evaluate", *arguments, f"out={tmp_path / 'one'}") == 0
    devices = "sample=['trainer.devices=2','trainer.accelerator=cpu']"
    call = [sys.executable, "-m", "im2wav.evaluate", *arguments, devices, f"out={tmp_path / 'two'}"]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("open the page") == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / x).rglob("*.wav")} for x in ("one", "two"))
    assert len(one) == 6
    assert one == two


def test_a_wrong_option_of_sample_is_one_line(trained, pairs, tmp_path, capfd):
    arguments = [f"model={trained / 'base'}", f"data={pairs}", "split=all", f"out={tmp_path / 'out'}"]
    for option, message in (("colour=red", "no such option"), ("overlap=-1", "must be >= 0")):
        capfd.readouterr()
        assert command("evaluate", *arguments, f"sample=['{option}']") == 2
        lines = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("INFO: ")]  # of the network
        assert len(lines) == 1, lines
        assert re.fullmatch(rf"error: (sample: )?{option}.*: {message}.*", lines[0])


def test_a_codec_alone_gives_the_codec_reconstruction_row_of_its_model(trained, pairs, tmp_path, capfd):
    arguments = [f"data={pairs}", "split=all", "resamples=50", "resamples_fd=3", "examples=1", "seconds=0.256"]
    model = [f"model={trained / 'base'}", "sampler.guidance_scale=1", f"out={tmp_path / 'model'}"]
    codec = [f"codec={trained / 'base' / 'vqvae' / 'last.ckpt'}", f"out={tmp_path / 'codec'}"]
    assert command("evaluate", *model, *arguments) == 0
    capfd.readouterr()
    assert command("evaluate", *codec, *arguments) == 0
    assert "SI-SDR" in capfd.readouterr().out
    whole, alone = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("model", "codec"))
    assert alone["rows"]["generated"] == whole["rows"]["reconstruction"]
    assert alone["rows"]["real"] == whole["rows"]["real"]
    assert alone["codec"] == whole["codec"]  # 0.256 s are the window of this model
    assert "priors" not in alone
    assert alone["model"] == {"codec": whole["model"]["codec"]}
    files = re.findall(r"data:audio/[^\"]+", (tmp_path / "codec" / "report.html").read_text())
    assert len(files) == len(set(files)) == 4  # the best and the worst, each as it comes back and as it was


def test_bits_do_not_depend_on_the_batch_and_are_those_of_training(trained, pairs):
    from im2wav.checkpoint import load_net
    from im2wav.data.pairs import PairsFolder
    from im2wav.evaluation.evaluated_model import batches, codec_figures, prior_figures
    from im2wav.evaluation.figures import Plan
    from im2wav.prior import Conditions, Timing

    codec, low = (load_net(trained / "base" / kind / "last.ckpt") for kind in ("vqvae", "low_prior"))
    plan, folder = Plan(resamples=10), PairsFolder(pairs)
    bits = [prior_figures(codec, {"low": low}, batches(folder, "all", 4096, size), plan) for size in (1, 4)]
    found = [codec_figures(codec, batches(folder, "all", 4096, size), plan) for size in (1, 4)]
    for way in ("condition", "shuffled", "none"):
        one, other = (b["low"][way]["value"] for b in bits)
        assert one == pytest.approx(other, abs=1e-4)
    assert found[0]["up"]["si_sdr_db"]["value"] == pytest.approx(found[1]["up"]["si_sdr_db"]["value"], abs=1e-3)
    assert found[0]["up"]["codes_used"] == found[1]["up"]["codes_used"]
    (batch,) = [b for b, _ in batches(folder, "all", 4096, 6)]
    with torch.inference_mode():
        codes = codec.encode(batch.wav)["low"]
        expected = low.bits(codes, Conditions(batch.clip, Timing(**batch.timing))).item()
    assert bits[0]["low"]["condition"]["value"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="its splits are"):
        next(batches(folder, "test", 4096, 4))


def test_imagehear_in_one_command(trained, tmp_path):
    """All 30 classes, a sound each; the photographs do not ship, so others stand in for them."""
    images, pictures = tmp_path / "images", sorted((ASSETS / "images").iterdir())
    images.mkdir()
    for number, stem in enumerate(imagehear.image_classes()):
        shutil.copy(pictures[number % len(pictures)], images / f"{stem}.jpg")
    out = tmp_path / "out"
    options = [f"model={trained / 'base'}", f"images={images}", "per_class=1", "batch_size=30", f"out={out}"]
    assert command("evaluate", "mode=imagehear", *options, "resamples=50", "examples=1") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["sets"]["generated"]["n"] == 30
    assert {"acc@1/yamnet", "acc@5/yamnet", "acc_30way/yamnet", "is/yamnet"} <= set(report["rows"]["generated"])
    assert "acc_30way/yamnet" in report["rows"]["shuffled"]
    assert len(report["classes"]) == 30
    assert sorted(report["confusion"]["labels"]) == report["confusion"]["labels"]
    assert sum(map(sum, report["confusion"]["table"])) == pytest.approx(30)


def test_imagehears_lists():
    shares = imagehear.images_per_class(120)
    assert len(imagehear.class_names()) == 30
    assert len(shares) == 101
    assert sum(shares.values()) == 3600
    assert shares["guitar1"] == 15
    assert imagehear.class_of("Playing Accordion") == "Accordion"
    assert imagehear.audioset_names("owl", ["Owl", "Hoot"]) == ["Owl"]
    with pytest.raises(ValueError, match="120 in the paper"):
        imagehear.images_per_class(0)


def test_av_benchmark_finds_its_folders(folders, tmp_path):
    images, out = tmp_path / "videos", tmp_path / "out"
    images.mkdir()
    write_mp4(images / "owl_03.mp4")
    shutil.copy(folders[0] / "owl_03_00.wav", folders[0] / "owl_03_01.wav")
    found = judged(folders, tmp_path, "export=av-benchmark", f"images={images}")
    assert found == {"pairs": 8, "videos": 1, "left_out": 1, "seconds": 1.2, "rate": 16000}
    names = [sorted(p.stem for p in (out / kind).iterdir()) for kind in ("gt_audio", "pred_audio")]
    assert names[0] == names[1] == sorted(NAMES)
    assert [p.name for p in (out / "video").iterdir()] == ["owl_03.mp4"]
    assert soundfile.info(out / "gt_audio" / "owl_03.wav").frames == 19200


def test_a_sweep_ends_in_one_table(folders, tmp_path):
    arguments = [f"generated={folders[0]}", f"reference={folders[1]}", f"out={tmp_path / 'out'}", *FAST]
    assert command("evaluate", "-m", *arguments, "loudness=-20,-30") == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| loudness=-20 |" in table
    assert "| loudness=-30 |" in table
    assert "shuffled baseline, first setting" in table
