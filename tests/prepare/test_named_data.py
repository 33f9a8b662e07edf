import csv
import json
from importlib import resources
from pathlib import Path

import pytest

from conftest import command, config, tone, write_mp4, write_wav
from helpers import TINY_ENCODER
from im2wav.data.imagehear_list import imagehear
from im2wav.data.pairs import PairsFolder
from im2wav.files import file_sha256
from im2wav.prepare.sources import demo_sources, imagehear_sources, vggsound_sources

TABLE = """\
---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
-_with_underscore,147,"railroad car, train wagon",train
0gone000000,5,cat purring,train
"""


@pytest.fixture
def vggsound(tmp_path):
    folder = tmp_path / "videos"
    (folder / "part 2").mkdir(parents=True)
    # of different lengths: the same sound in two splits would be noticed
    write_mp4(folder / "---g-f_I2yQ_000001.mp4", seconds=1)
    write_mp4(folder / "part 2" / "--0PQM4-hqg_30000_40000.mp4", seconds=1.2)  # as SpecVQGAN and Im2Wav name them
    write_mp4(folder / "-_with_underscore_000147.mkv", seconds=1.4)
    write_mp4(folder / "not_in_the_list_000000.mp4", seconds=1)
    (tmp_path / "vggsound.csv").write_text(TABLE)
    return folder, tmp_path / "vggsound.csv"


def test_vggsound_by_name(vggsound, tmp_path):
    folder, table = vggsound
    out = tmp_path / "data" / "vggsound"
    arguments = [*TINY_ENCODER, "data=vggsound", f"input={folder}", f"source.table={table}", f"out={out}", "fps=5"]
    assert command("embed", *arguments) == 1
    found = {pair.id: (pair.label, pair.split, pair.group) for pair in PairsFolder(out).pairs}
    assert found == {
        "---g-f_I2yQ_000001": ("people marching", "test", "---g-f_I2yQ"),
        "--0PQM4-hqg_000030": ("waterfall burbling", "train", "--0PQM4-hqg"),
        "-_with_underscore_000147": ("railroad car, train wagon", "train", "-_with_underscore"),
    }
    (skipped,) = csv.DictReader((out / "skipped.csv").open())
    assert (skipped["id"], skipped["reason"]) == ("0gone000000_000005", "missing file")
    info = json.loads((out / "dataset.json").read_text())
    assert info["data"] == "vggsound"
    assert len(info["list_sha256"]) == 64
    assert command("embed", *arguments, "max_failed=0.25") == 0
    write_mp4(folder / "0gone000000_000005.mp4", seconds=1.6)  # fetched at last
    assert command("embed", *arguments) == 0
    table.write_text(TABLE.replace("people marching", "people running"))
    assert command("embed", *arguments) == 2  # another list is another data set


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("youtube_id,start_seconds,label,split\n", "line 1: expected YouTube id"),
        ("---g-f_I2yQ,1,people marching\n", "line 1: expected YouTube id"),
        ("---g-f_I2yQ,1,people marching,valid\n", "train or test"),
        ("another00000,1,people marching,test\n", "none of the 1 clips.*another00000_000001.mp4"),
        (TABLE + "---g-f_I2yQ,1,again,train\n", "several sources have the id '---g-f_I2yQ_000001'"),
    ],
)
def test_a_list_that_is_not_vggsound_s_is_rejected(vggsound, table, message):
    folder, path = vggsound
    path.write_text(table)
    with pytest.raises(ValueError, match=message):
        vggsound_sources(str(folder), str(path))


def test_a_missing_list_or_folder_is_named(vggsound, tmp_path):
    folder, path = vggsound
    with pytest.raises(ValueError, match="official csv"):
        vggsound_sources(str(folder), str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="none does not exist"):
        vggsound_sources(str(tmp_path / "none"), str(path))


def test_imagehear_has_101_images_of_30_classes(shared):
    entries = imagehear()
    assert len(entries.classes) == 30
    assert len(entries.class_of) == 101
    assert entries.class_of["people4.jpg"].name == "People"  # the official list forgot it
    assert entries.class_of["dog1.jpg"].vggsound[-1] == "dog baying"
    assert "Music" in entries.audioset_general
    sources = imagehear_sources(str(shared / "data" / "imagehear"))
    assert {(source.split, source.label == entries.class_of[f"{source.id}.jpg"].name) for source in sources} == {
        ("test", True)
    }
    hashes = json.loads(resources.files("im2wav.data").joinpath("imagehear.json").read_text())["sha256"]
    assert {f"{source.id}.jpg": file_sha256(Path(source.image)) for source in sources} == hashes


def test_imagehear_and_the_demo_by_name(shared, tmp_path, capfd):
    images = shared / "data" / "imagehear"
    assert command("embed", *TINY_ENCODER, "data=imagehear", f"input={images}", f"out={tmp_path / 'images'}") == 0
    folder = PairsFolder(tmp_path / "images")
    assert len(folder.pairs) == 101
    assert folder.info.data == "imagehear"
    assert command("embed", *TINY_ENCODER, "data=imagehear", f"input={tmp_path}", f"out={tmp_path / 'x'}") == 2
    assert "none of the 101 ImageHear photographs" in capfd.readouterr().err
    assert command("embed", *TINY_ENCODER, "data=demo", f"out={tmp_path / 'demo'}", "max_failed=0.1") == 0
    assert len(PairsFolder(tmp_path / "demo").pairs) == len(demo_sources()) == 48


@pytest.mark.parametrize("name", ["pairs", "vggsound", "imagehear", "demo"])
def test_a_data_set_has_one_name_when_it_is_made_and_when_it_is_read(name):
    made = config("embed", f"data={name}", "paths.output=x")
    read = config("train", f"data={name}", "model=vqvae", "paths.output=x")
    assert made.out == read.data.root == f"data/{name}"
    assert name in made.source._target_ or name == "pairs"


def test_a_name_that_nobody_can_write_is_rejected(tmp_path, capfd):
    write_wav(tmp_path / "a.wav", tone())
    (tmp_path / "manifest.csv").write_text(f"id,image,audio\n{'x' * 300},a.jpg,a.wav\n")
    assert command("embed", *TINY_ENCODER, f"input={tmp_path}", f"out={tmp_path / 'out'}") == 2
    assert "expected at most 240 bytes" in capfd.readouterr().err
