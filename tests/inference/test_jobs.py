"""Tables of jobs, `input=jobs.csv`, and texts beside images."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F

from conftest import ASSETS, command, config, write_mp4
from im2wav.inference.inputs import embed_input, input_of, text_input, with_prompt
from im2wav.inference.jobs import read_job_table
from im2wav.media.encoder import EfficientNetLite2Encoder
from im2wav.media.loudness import normalise_loudness
from im2wav.sample import sample


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two photos, beside which tables are written."""
    made = tmp_path / "in"
    made.mkdir()
    for name in ("owl_03", "cat_03"):
        shutil.copy(ASSETS / "images" / f"{name}.jpg", made)
    return made


def table(folder: Path, *lines: str) -> Path:
    path = folder / "jobs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def arguments(trained, out, *overrides):
    return [f"paths.runs={trained}", "run_name=base", f"out={out}", "device=cpu", *map(str, overrides)]


def test_every_row_has_its_own_options_and_a_second_run_generates_what_is_missing(trained, folder, tmp_path, capfd):
    jobs = table(
        folder,
        "file,name,seed,seconds,guidance,temperature,negative",
        "owl_03.jpg,,,,,,",
        "owl_03.jpg,,7,0.3,2,0.5,cat_03.jpg",
        "cat_03.jpg,purr,,0.1,,,",
    )
    out = tmp_path / "out"
    rows = sample(config("sample", *arguments(trained, out, f"input={jobs}", "seed=3")))
    assert [row["name"] for row in rows] == ["owl_03", "owl_03-2", "purr"]
    settings = [row["identity"]["settings"] for row in rows]
    assert [s["temperature"] for s in settings] == [1.0, 0.5, 1.0]
    assert [s["guidance_scale"] for s in settings] == [3.0, 2.0, 3.0]
    assert ["negative_sha256" in s for s in settings] == [False, True, False]
    assert [round(row["seconds"], 2) for row in rows] == [0.26, 0.3, 0.1]
    # a row is what the same options give alone
    alone = [f"input={folder / 'cat_03.jpg'}", "seed=3", "seconds=0.1"]
    (row,) = sample(config("sample", *arguments(trained, tmp_path / "alone", *alone)))
    expected = json.loads(Path(row["up"]).with_suffix(".json").read_text())["identity"]
    assert rows[2]["identity"]["settings"] == expected["settings"]
    (out / "low" / "purr_00.json").unlink()
    stamp = (out / "up" / "owl_03-2_00.wav").stat().st_mtime_ns
    assert command("sample", *arguments(trained, out, f"input={jobs}", "seed=3")) == 0
    assert "1 audio files to generate" in capfd.readouterr().out
    assert (out / "up" / "owl_03-2_00.wav").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,volume", "owl_03.jpg,3"], "unknown column 'volume'; expected some of file, name, prompt"),
        (["file,seed", "owl_03.jpg,x"], r"jobs.csv, line 2: seed=x: expected an integer"),
        (["file,seconds", "owl_03.jpg,-1"], r"line 2: seconds=-1.0: expected more than 0"),
        (["file,temperature", "owl_03.jpg,-1"], r"line 2: .*temperature=-1"),
        (["file,prompt_weight,prompt", "owl_03.jpg,2,a"], r"line 2: prompt='a', prompt_weight=2.0: expected a text"),
        (["file", "owl_03.jpg", "gone.jpg"], r"line 3: input=.*gone.jpg: expected a photo"),
        (["file,seed", ",1"], r"line 2: neither a file nor a prompt"),
        (["file,name", "owl_03.jpg,a", "cat_03.jpg,a"], r"lines 2 and 3 have the same name 'a'"),
        (["file"], r"jobs.csv has no rows"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_loaded(folder, tmp_path, lines, message):
    overrides = [f"input={table(folder, *lines)}", "run_name=nowhere", f"out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match=message):
        sample(config("sample", *overrides))
    assert not (tmp_path / "out").exists()


def test_a_name_of_a_table_never_becomes_a_path_outside(trained, folder, tmp_path):
    jobs = table(folder, "file,name", "owl_03.jpg,../../evil")
    with pytest.raises(ValueError, match="name of an input"):
        sample(config("sample", *arguments(trained, tmp_path / "out", f"input={jobs}")))
    assert not list(tmp_path.rglob("evil*"))


def test_rows_with_prompts(folder):
    jobs = read_job_table(
        table(folder, "file;prompt;prompt_weight", "owl_03.jpg;;", "owl_03.jpg;an owl, at night;0.2", ";a dog;"),
        range(2),
        prompt="birds",
    )
    assert [job.inputs[0].kind for job in jobs] == ["photo", "photo", "text"]
    assert [job.inputs[0].prompt for job in jobs] == [("birds", 0.5), ("an owl, at night", 0.2), None]
    assert [job.inputs[0].name for job in jobs] == ["owl_03", "owl_03-2", "a_dog"]
    assert len({job.inputs[0].sha256 for job in jobs}) == 3


def test_a_prompt_turns_the_direction_of_each_embedding_and_keeps_its_norm(tmp_path, monkeypatch):
    text = F.normalize(torch.randn(1, 1280, generator=torch.Generator().manual_seed(0)), dim=-1)
    encoder = EfficientNetLite2Encoder()
    monkeypatch.setattr(encoder, "encode_text", lambda texts: text.repeat(len(texts), 1))
    video = input_of(write_mp4(tmp_path / "v.mp4", seconds=0.5))
    plain = embed_input(video, lambda: encoder, 10.0, 0.4).embeddings
    mixed = [embed_input(with_prompt(video, "x", w), lambda: encoder, 10.0, 0.4).embeddings for w in (0.0, 0.4, 1.0)]
    assert torch.allclose(mixed[0], plain, atol=1e-6)
    assert all(torch.allclose(m.norm(dim=-1), plain.norm(dim=-1)) for m in mixed)
    assert torch.allclose(F.normalize(mixed[2], dim=-1), text.expand_as(plain), atol=1e-6)
    halfway = F.cosine_similarity(mixed[1], text)
    assert (F.cosine_similarity(plain, text) < halfway).all()
    assert (halfway < 1).all()


def test_prompts_that_cannot_be_used(trained, folder, tmp_path):
    with pytest.raises(ValueError, match="is a text already"):
        with_prompt(text_input("a dog"), "a cat")
    given = arguments(trained, tmp_path / "out", f"input={folder}", "prompt='an owl'")
    with pytest.raises(ValueError, match="encodes images only"):
        sample(config("sample", *given))
    assert not list(tmp_path.rglob("*.wav"))


def test_loudness_changes_the_files_only(trained, folder, tmp_path, capfd):
    photo = [f"input={folder / 'owl_03.jpg'}", "seconds=0.5"]
    (plain,) = sample(config("sample", *arguments(trained, tmp_path / "a", *photo)))
    (loud,) = sample(config("sample", *arguments(trained, tmp_path / "b", *photo, "loudness=-30", "format=flac")))
    before, after = (torch.from_numpy(soundfile.read(row["up"])[0]) for row in (plain, loud))
    expected, noted = normalise_loudness(before, 16000, -30.0, -1.0)
    assert torch.allclose(after, expected, atol=1e-3)
    assert loud["normalised"]["loudness"] == pytest.approx(noted["loudness"], abs=0.05)
    assert (loud["identity"]["loudness"], loud["identity"]["peak_limit"]) == (-30, -1)
    capfd.readouterr()
    assert command("sample", *arguments(trained, tmp_path / "b", *photo, "format=flac")) == 2
    assert "generated with loudness=-30" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"needs at least 0\.4 s"):
        sample(config("sample", *arguments(trained, tmp_path / "c", photo[0], "seconds=0.2", "loudness=-23")))
