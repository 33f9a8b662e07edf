"""No name from a manifest, a pickle, an index or a config leads out of its folder, for reading or writing."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import command, tone, write_wav
from helpers import make_pairs
from im2wav.data.pairs import PairsFolder, open_folder
from im2wav.data.windows import CodesFolder, WindowDataset
from im2wav.evaluation.evaluated_model import generate_audio
from im2wav.evaluation.evaluation_inputs import from_pairs
from im2wav.files import LONGEST_NAME, path_inside
from im2wav.hub import load_folder
from im2wav.inference.command import Outputs
from im2wav.inference.inputs import find_inputs
from im2wav.media.reading import MediaError
from im2wav.prepare.journal import Journal
from im2wav.prepare.shard_writer import write_shards
from im2wav.prepare.sources import find_sources, vggsound_sources

OUTSIDE = "../../escaped"


def edit(path: Path, **changes: str) -> None:
    """Change columns of the first row of a csv file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= changes
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "../a", "/a", "a/../../b", "a\0b", "a/b", "x" * 241, "a/"])
def test_a_name_that_leads_elsewhere_is_rejected(name):
    with pytest.raises(ValueError, match=r"table: id .* cannot be a file name in out"):
        path_inside("out", name, "table: id")


@pytest.mark.parametrize("name", ["..", "a/..", "../a", "/a", "a/../../b", "a\0b", "a/", ""])
def test_a_path_that_leads_elsewhere_is_rejected(name):
    with pytest.raises(ValueError, match="cannot be a file name in out"):
        path_inside("out", name, "table: wav", nested=True)


@pytest.mark.parametrize("name", ["a", "..a", "a..b", ".hidden", "Ü (1)", "a:b", "x" * LONGEST_NAME, "a\udcff", "-"])
def test_other_names_stay_as_they_are(name):
    assert path_inside("out", name, "", ".wav") == Path(f"out/{name}.wav")
    assert path_inside("out", f"a/./{name}", "", nested=True) == Path(f"out/a/{name}")


@pytest.mark.parametrize("name", [OUTSIDE, "/absolute", "a/b", "..", ""])
@pytest.mark.parametrize("with_audio", [False, True])
def test_a_key_of_a_pickle(tmp_path, capfd, name, with_audio):
    inside = tmp_path / "a" / "b"
    (inside / "wavs").mkdir(parents=True)
    write_wav(tmp_path / "a" / "escaped.wav", tone(1.0))  # what `wavs`/OUTSIDE.wav is
    (inside / "x.pickle").write_bytes(pickle.dumps({name: np.ones((1, 4), np.float32)}))
    before = everything(tmp_path)
    given = [f"pickles={inside / 'x.pickle'}", f"out={inside / 'out'}", *[f"wavs={inside / 'wavs'}"] * with_audio]
    assert command("convert", *given) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {inside / 'x.pickle'}: name {name!r} cannot be a file name")
    assert everything(tmp_path) == before


def test_an_id_of_a_manifest_to_embed_and_paths_that_its_author_may_choose(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.csv").write_text(f"id,image\n{OUTSIDE},a.jpg\n")
    with pytest.raises(ValueError, match=r"manifest.csv, line 2: id '../../escaped' cannot be a file name"):
        find_sources(tmp_path / "in")
    (tmp_path / "in" / "manifest.csv").write_text(f"id,image,audio\na,../a.jpg,{tmp_path / 'a.wav'}\n")
    (source,) = find_sources(tmp_path / "in")  # inputs, wherever they are
    assert (os.path.normpath(source.path), source.audio) == (str(tmp_path / "a.jpg"), str(tmp_path / "a.wav"))


def test_a_column_of_vggsound(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "escaped_000030.mp4").touch()
    (tmp_path / "vggsound.csv").write_text("good,1,a,train\n../escaped,30,a,train\n")
    with pytest.raises(ValueError, match=r"vggsound.csv, line 2: .*cannot be a file name"):
        vggsound_sources(str(tmp_path / "videos"), str(tmp_path / "vggsound.csv"))


@pytest.fixture
def forged(tmp_path):
    """A pairs folder whose first row names the files of another folder, which exist."""
    make_pairs(tmp_path / "other")
    root = make_pairs(tmp_path / "pairs")
    edit(root / "manifest.csv", wav="../other/wav/0.wav", clip="../other/clip/0.npy")
    return root


def test_files_of_a_pairs_folder(forged, tmp_path):
    folder = PairsFolder(forged)
    pair = folder.pairs[0]
    uses = {
        "wav": lambda: folder.read_wav(pair),
        "clip": lambda: folder.read_clip(pair),
        "training": lambda: WindowDataset(folder, folder.pairs, 4096, "loop")[(0, 0.0)],
        "references": lambda: from_pairs(folder, "all", needs_images=False),
        "sample": lambda: find_inputs(forged)[0].read_embeddings(),
    }
    for what, use in uses.items():
        with pytest.raises(ValueError, match=r"manifest.csv: (wav|clip) '../other/.*cannot be a file name") as caught:
            use()
        assert isinstance(caught.value, MediaError) == (what == "sample")
    pytest.importorskip("litdata")
    with pytest.raises(ValueError, match="cannot be a file name"):
        write_shards(str(forged), str(tmp_path / "shards"))


def test_an_id_of_a_pairs_folder(tmp_path):
    edit(make_pairs(tmp_path / "pairs") / "manifest.csv", id=OUTSIDE)
    (item, _) = find_inputs(tmp_path / "pairs")
    outputs = Outputs(tmp_path / "deep" / "out")
    for use in (lambda: outputs.path("up", item.name, 0), lambda: outputs.read(item.name, 0)):
        with pytest.raises(ValueError, match=r"'../../escaped' cannot be a file name"):
            use()


def test_the_json_beside_generated_audio(tmp_path):
    (tmp_path / "secret.wav").touch()
    outputs = Outputs(tmp_path / "out")
    path = outputs.path("low", "a", 0, "json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"files": {"low": "../secret.wav"}}))
    assert outputs.read("a", 0) is None
    assert outputs.write_manifest([("a", 0)]) == []


@pytest.mark.parametrize("clip", ["clip/..", "", "clip/a.npy"])
def test_the_cache_of_codes(tmp_path, clip):
    root = make_pairs(tmp_path / "pairs")
    edit(root / "manifest.csv", clip=clip)
    folder, cache = PairsFolder(root), object.__new__(CodesFolder)
    cache.root = tmp_path / "codes"
    if clip == "clip/a.npy":
        assert cache.path(folder.pairs[0], "low") == tmp_path / "codes" / "low" / "a.npy"
        return
    with pytest.raises(ValueError, match="cannot be a file name"):
        cache.path(folder.pairs[0], "low")


def test_codes_of_two_pairs_never_share_a_file(tmp_path):
    root = make_pairs(tmp_path / "pairs")
    edit(root / "manifest.csv", clip="clip/1.npy")  # as the second
    cache = object.__new__(CodesFolder)
    cache.root, cache.hops = tmp_path / "codes", {"low": 32}
    with pytest.raises(ValueError, match=r"several pairs have embeddings called 1.npy"):
        cache.missing(PairsFolder(root).pairs)


def test_a_pair_that_embed_would_remove(tmp_path):
    """The files of a pair whose source is gone are removed: only inside the folder."""
    out, precious = make_pairs(tmp_path / "out"), tmp_path / "precious.wav"
    precious.touch()
    edit(out / "manifest.csv", id="../../precious")
    journal = Journal(out)
    with pytest.raises(ValueError, match=r"id '../../precious' cannot be a file name"):
        journal.fold({}, ["../../precious"])
    assert precious.is_file()


def test_an_index_of_shards(tmp_path):
    pytest.importorskip("litdata")
    root = make_pairs(tmp_path / "pairs")
    write_shards(str(root), str(tmp_path / "shards"))
    index = tmp_path / "shards" / "wav" / "index.json"
    shutil.copy(tmp_path / "shards" / "wav" / "chunk-0-0.bin", tmp_path / "outside.bin")
    content = json.loads(index.read_text())
    content["chunks"][0]["filename"] = "../../outside.bin"
    index.write_text(json.dumps(content))
    folder = open_folder(tmp_path / "shards")
    with pytest.raises(ValueError, match=r"index.json: chunk '../../outside.bin' cannot be a file name"):
        folder.read_wav(folder.pairs[0])


def test_the_config_of_a_model_folder(trained, tmp_path):
    for kind in ("vqvae", "low_prior", "up_prior"):
        (tmp_path / kind).symlink_to(trained / "base" / kind)  # links of the user's own are followed
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"image_encoder": {"name": "clip_vit_b32", "dim": 512}}))
    assert load_folder(tmp_path)[1] == {"name": "clip_vit_b32", "dim": 512}
    config.write_text(json.dumps({"image_encoder": {"name": "clip_vit_b32", "weights": "/etc/hostname"}}))
    with pytest.raises(ValueError, match=r"config.json: image_encoder has weights, expected name and dim"):
        load_folder(tmp_path)


def test_the_encoder_that_a_checkpoint_names(trained, tmp_path, monkeypatch):
    """It becomes the name of a config file."""
    from dataclasses import replace

    from im2wav.evaluation import evaluated_model

    true = evaluated_model.load
    changed = {"encoder": "../../escaped"}
    monkeypatch.setattr(evaluated_model, "load", lambda *a: replace(found := true(*a), data={**found.data, **changed}))
    cfg = SimpleNamespace(mode="model", model_dir=trained / "base", sampler={}, seed=0, sample=[], batch_size=1)
    cfg.device, cfg.paths = "cpu", SimpleNamespace(cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"encoder=../../escaped: expected one of clip_vit_b32"):
        generate_audio(cfg, {"a": tmp_path / "a.jpg"}, {"a": 1}, tmp_path / "out", list, None)
    with pytest.raises(ValueError, match="cannot be a file name"):
        generate_audio(cfg, {OUTSIDE: tmp_path / "a.jpg"}, {OUTSIDE: 1}, tmp_path / "out", list, None)
    assert not (tmp_path / "out").exists()
