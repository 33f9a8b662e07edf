"""Damaged, foreign and unusual official files: one line that names the file, and exit code 2."""

import os
import pickle
import resource
import shutil

import numpy as np
import pytest
import torch

from conftest import command, tone, write_wav
from im2wav.data.pairs import PairsFolder
from im2wav.official import convert_checkpoint
from im2wav.official.checkpoint_file import read


@pytest.fixture(scope="module")
def vqvae(shared):
    return shared / "golden" / "tiny" / "vqvae.pth.tar"


@pytest.fixture
def given(vqvae, tmp_path):
    """A folder with one good file."""
    (tmp_path / "given").mkdir()
    shutil.copy(vqvae, tmp_path / "given" / "good.pth.tar")
    return tmp_path / "given"


def convert(capfd, *arguments) -> str:
    """The only line of a conversion that fails."""
    capfd.readouterr()
    assert command("convert", *arguments) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    return line


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "zip of 100 bytes", "pickle", "empty", "page"])
def test_a_broken_file_beside_good_ones(given, vqvae, tmp_path, capfd, kind):
    whole = vqvae.read_bytes()
    old = legacy({"hps": {}, "model": {"a": torch.zeros(999)}}, tmp_path / "old") if kind == "pickle" else b""
    broken = {
        "zip": whole[: len(whole) // 2],
        "zip of 100 bytes": whole[:100],
        "pickle": old[: len(old) // 2],
        "empty": b"",
        "page": b"<html>quota exceeded</html>",
    }
    (given / "low.pth.tar").write_bytes(broken[kind])
    line = convert(capfd, f"official={given}", f"out={tmp_path / 'out'}")
    assert line.startswith(f"error: {given / 'low.pth.tar'} is ")
    assert not (tmp_path / "out").exists()


def test_flipped_bytes_of_a_weight(given, tmp_path, capfd):
    path = given / "good.pth.tar"
    weight = read(path)["model"]["decoders.0.out.weight"].numpy().tobytes()
    content = path.read_bytes()
    at = content.index(weight) + len(weight) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    line = convert(capfd, f"official={given}", f"out={tmp_path / 'out'}")
    assert f"{path} is damaged: wrong checksum" in line


def test_an_unfinished_download_and_other_files_are_no_error(given, tmp_path, capfd):
    (given / "low.pth.tar.part").write_bytes((given / "good.pth.tar").read_bytes()[:100])
    (given / "README").touch()
    assert command("convert", f"official={given}", f"out={tmp_path / 'out'}") == 0
    assert "low.pth.tar.part: an unfinished download" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "32"}, "hps has width='32', expected a whole number"),
        ({"width": [32]}, "hps has width="),
        ({"depth": 4.5}, "hps has depth='4.5', expected a whole number"),
        ({"m_conv": "1.0"}, "hps has m_conv='1.0', expected a number"),
        ({"downs_t": 3}, "hps has downs_t='3', expected a list of whole numbers"),
        ({"downs_t": ["3", 2]}, "hps has downs_t='3', expected a whole number"),
        ({"downs_t": [3]}, "hps"),
        ({"bandwidth": 3}, "hps has bandwidth='3'"),
        ({"bandwidth": {"l1": "a"}}, "hps has bandwidth.l1='a', expected a number"),
        ({"l_bins": 0}, "official|weights do not match"),
        ({"width": -1}, "hps|weights do not match"),
        ({"level": "0", "prior": True}, "hps has level='0'"),
    ],
)
def test_hps_of_other_types(vqvae, tmp_path, changes, message):
    content = read(vqvae)
    content["hps"].update(changes)
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match=message) as caught:
        convert_checkpoint(tmp_path / "a")
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"hps": [], "model": {}},
        {"hps": {}, "model": []},
        {"hps": {}, "model": {"a": 3}},
        {"hps": {}, "model": {}, "step": "many"},
        {1: 2},
    ],
    ids=str,
)
def test_other_content(tmp_path, content):
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match="is not an official Im2Wav checkpoint"):
        read(tmp_path / "a")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("trace",)


@pytest.mark.parametrize("old", [False, True])
def test_the_refusal_of_code_does_not_say_how_to_run_it(tmp_path, monkeypatch, capfd, old):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "a.pth.tar"
    torch.save({"hps": Malicious(), "model": {}}, path, _use_new_zipfile_serialization=not old)
    line = convert(capfd, f"official={path.parent}", f"out={tmp_path / 'out'}")
    assert f"{path} is not an official Im2Wav checkpoint: it contains posix.mkdir, which could run code" in line
    assert "weights_only" not in line
    assert not (tmp_path / "trace").exists()


def test_weights_that_are_not_finite(vqvae, tmp_path):
    content = read(vqvae)
    content["model"]["decoders.0.out.weight"][0, 0] = float("nan")
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match=r"a is damaged: decoders.up.out.weight contain non-finite values"):
        convert_checkpoint(tmp_path / "a")


def test_a_full_disk(given, tmp_path, capfd):
    """A limit of the size of files stands in for it: both fail while the file is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        line = convert(capfd, f"official={given}", f"out={tmp_path / 'out'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith(f"error: cannot write {tmp_path / 'out' / 'vqvae.safetensors'}: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written(given, tmp_path, capfd):
    (tmp_path / "file").touch()  # chmod does not stop root
    line = convert(capfd, f"official={given}", f"out={tmp_path / 'file' / 'out'}")
    assert line.startswith(f"error: cannot write to {tmp_path / 'file' / 'out'}: Not a directory; choose another")


def test_outputs_have_the_mode_of_other_new_files(given, tmp_path):
    assert command("convert", f"official={given}", f"out={tmp_path / 'out'}") == 0
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(("vqvae.safetensors", "config.json"), (tmp_path / "new").stat().st_mode)


# ---- embeddings


def write_pickle(path, **arrays):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(arrays))
    return path


def test_embeddings_that_are_not_finite_are_listed(tmp_path, capfd):
    broken = np.ones((3, 4), np.float32)
    broken[1] = np.nan
    zero = np.array([[1, 0], [0, 0]], np.float32)
    write_pickle(tmp_path / "in" / "a.pickle", good=np.ones((2, 4), np.float32), broken=broken)
    assert command("convert", f"pickles={tmp_path / 'in'}", f"out={tmp_path / 'out'}") == 0
    assert "1 of 2 names were skipped" in "".join(capfd.readouterr())
    assert [pair.id for pair in PairsFolder(tmp_path / "out").pairs] == ["good"]
    skipped = (tmp_path / "out" / "skipped.csv").read_text()
    assert "broken: 1 of 3 embeddings are zero or not finite, the first is number 1" in skipped
    write_pickle(tmp_path / "in" / "a.pickle", zero=zero)
    line = convert(capfd, f"pickles={tmp_path / 'in'}", f"out={tmp_path / 'out2'}")
    assert "none of its 1 names can be converted" in line
    assert not (tmp_path / "out2").exists()


def test_one_name_in_two_pickles(tmp_path, capfd):
    for name in ("a", "b"):
        write_pickle(tmp_path / "in" / f"{name}.pickle", clip=np.ones((2, 4), np.float32))
    line = convert(capfd, f"pickles={tmp_path / 'in'}", f"out={tmp_path / 'out'}")
    assert line == f"error: {tmp_path}/in/b.pickle and {tmp_path}/in/a.pickle both contain 'clip': keep one of them"


def test_a_wrong_folder_of_audio(tmp_path, capfd):
    given = [f"pickles={write_pickle(tmp_path / 'a.pickle', clip=np.ones((2, 4), np.float32))}"]
    given.append(f"out={tmp_path / 'out'}")
    assert f"wavs={tmp_path / 'none'} is not a folder" in convert(capfd, *given, f"wavs={tmp_path / 'none'}")
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "other.wav", tone(1.0))
    line = convert(capfd, *given, f"wavs={tmp_path / 'wavs'}")
    assert f"none of its 1 names can be converted; the first: missing file: {tmp_path / 'wavs' / 'clip.wav'}" in line
    assert not (tmp_path / "out").exists()
