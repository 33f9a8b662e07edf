"""Codes written once: what they are, where they may be used, and how they differ from codes of windows at the edges."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from conftest import command, tiny_config
from helpers import STEADY, losses, make_pairs
from im2wav.checkpoint import load_net
from im2wav.data import windows
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.pairs import PairsFolder
from im2wav.files import parse_shard
from im2wav.prepare.code_cache import encode_clip
from im2wav.train import train


@pytest.fixture(scope="module")
def codec(trained):
    return load_net(trained / "base/vqvae/last.ckpt", "vqvae")


@pytest.fixture(scope="module")
def exact(trained):
    """The codec in double precision: rounding differs with the length of the input and could tip a code over."""
    return load_net(trained / "base/vqvae/last.ckpt", "vqvae").double()


def tokenized(root, trained, *more) -> int:
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    return command("tokenize", f"data.root={root}", codec, "data.num_samples=4096", "data.num_workers=0", *more)


def noise(root, seconds=(2.0, 1.0, 0.1)):
    """Pairs whose sounds are noise, so that the codec's codes vary."""
    from im2wav.files import wav_bytes, write_atomic

    make_pairs(root, seconds, splits=("train",) * len(seconds))
    for i, length in enumerate(seconds):
        wav = torch.randn(int(length * 16000), generator=torch.Generator().manual_seed(i)) * 0.2
        write_atomic(root / f"wav/{i}.wav", wav_bytes(wav, 16000))
    return root


@pytest.fixture
def cached(tmp_path, trained):
    root = noise(tmp_path / "pairs")
    assert tokenized(root, trained) == 0
    return root


def test_windows_begin_with_a_code_and_carry_the_cached_ones(cached, codec):
    data = PairsDataModule(str(cached), num_samples=4096, batch_size=4, codes="cache", windows_per_epoch=12)
    data.tokenizer = codec
    for batch in data.train_dataloader():
        assert data.on_after_batch_transfer(batch, 0) is batch
        assert (batch.timing["offset"] % 32 == 0).all()
        for i, name in enumerate(batch.id):
            offset = int(batch.timing["offset"][i])
            wav = data.folder.read_wav(data.folder.pairs[int(name)])
            if len(wav) < 4096:  # filled up before it was encoded, as the window is
                expected = codec.encode(batch.wav[i : i + 1])
            else:
                whole = codec.encode(wav[None, None, : len(wav) // 32 * 32])
                expected = {k: v[:, offset // hop :][:, : 4096 // hop] for k, v in whole.items() for hop in [hops[k]]}
            for level, codes in expected.items():
                assert torch.equal(batch.codes[level][i], codes[0])


hops = {"up": 8, "low": 32}


def test_cached_codes_differ_from_fresh_ones_only_near_the_edges(cached, exact):
    """Within the receptive field of the window's edge some differ, beyond it none."""
    folder, size = PairsFolder(cached), 8192
    radius, differ = exact.encoder_reach, {"up": [], "low": []}
    for pair in (pair for pair in folder.pairs if pair.samples > size + 64):
        wav = folder.read_wav(pair).double()
        start = (len(wav) - size) // 2 // 32 * 32
        whole, fresh = encode_clip(exact, wav), exact.encode(wav[None, None, start : start + size])
        for level, hop in hops.items():
            differ[level].append(whole[level][start // hop : (start + size) // hop] != fresh[level][0])
    for level, hop in hops.items():
        found = torch.stack(differ[level]).any(0)
        index = torch.arange(len(found))
        near = torch.minimum(index, index.flip(0)) * hop <= radius
        assert not near.all()
        assert found[near].any()
        assert not found[~near].any()


def test_pieces_of_a_long_clip_give_the_codes_of_the_whole(exact):
    wav = torch.randn(20_011, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2
    whole, pieces = encode_clip(exact, wav), encode_clip(exact, wav, piece=3000)
    assert whole["low"].shape == (20_011 // 32,)
    for level in hops:
        assert torch.equal(whole[level], pieces[level])


def test_a_prior_trains_from_the_cache_without_the_codec(cached, trained, tmp_path, monkeypatch):
    overrides = [o for o in STEADY if "codebook" not in o]
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    about = json.loads((cached / "dataset.json").read_text())
    (cached / "dataset.json").write_text(json.dumps({**about, "encoder": "efficientnet_lite2", "dim": 2}))
    overrides += ["data.codes=cache", "trainer.max_steps=2", "model.net.conditioning.clip_dim=2"]
    config = tiny_config("low_prior", cached, tmp_path, *overrides, codec)
    monkeypatch.setattr("im2wav.codec.AudioCodec.encode", None)
    train(config)
    assert len(losses(tmp_path)) == 2


def test_a_stopped_run_continues_and_parts_make_the_whole(cached, trained, tmp_path):
    (folder,) = (cached / "codes").iterdir()
    there = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.npy")}
    assert len(there) == 6
    assert {np.load(p).dtype for p in there} == {np.dtype(np.int16)}
    (folder / "low" / "1.npy").unlink()
    assert tokenized(cached, trained) == 0
    for path, (content, time) in there.items():
        assert path.read_bytes() == content
        assert path.stat().st_mtime_ns == time or path.name == "1.npy"
    other = noise(tmp_path / "other")
    for part in ("0/2", "1/2"):
        assert tokenized(other, trained, f"shard={part}", "dry_run=true") == 0
    assert not (other / "codes").exists()
    assert tokenized(other, trained, "shard=0/2") == 0
    assert len(list((other / "codes").rglob("low/*.npy"))) == 2
    assert tokenized(other, trained, "shard=0/1") == 0
    assert {p.name: p.read_bytes() for p in (other / "codes").rglob("low/*")} == {
        p.name: c for p, (c, _) in there.items() if p.parent.name == "low"
    }


def _tokenize_and_die(root, trained, files):
    write, written = windows.write_atomic, []

    def deadly(path, content):
        if len(written) == files:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write(path, content)

    windows.write_atomic = deadly
    tokenized(root, trained)


@pytest.mark.parametrize("files", [2, 5])  # codes.json, then two levels of each clip: both die within a clip
def test_a_killed_run_is_repeated_to_the_same_bytes(cached, trained, tmp_path, files):
    root = noise(tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(target=_tokenize_and_die, args=(root, trained, files))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len([path for path in (root / "codes").rglob("*") if path.is_file()]) == files
    assert tokenized(root, trained) == 0
    codes = [
        {path.relative_to(folder): path.read_bytes() for path in (folder / "codes").rglob("*") if path.is_file()}
        for folder in (root, cached)
    ]
    assert codes[0] == codes[1]
    assert len(codes[0]) == 7


def test_codes_that_do_not_fit_are_rejected(cached, codec, trained, capfd):
    def opened(**more):
        data = PairsDataModule(str(cached), **{"num_samples": 4096, "codes": "cache", **more})
        data.tokenizer = codec
        return data

    opened()
    with pytest.raises(ValueError, match=r"data\.codes='old'"):
        opened(codes="old")
    with pytest.raises(ValueError, match=r"num_samples=4096, now it is 8192"):
        opened(num_samples=8192)
    with pytest.raises(ValueError, match=r"data\.blend=true"):
        opened(blend=True)
    (folder,) = (cached / "codes").iterdir()
    (folder / "up" / "0.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks the codes of 1 of 3 clips, the first is '0': run `python -m"):
        opened()
    np.save(folder / "up" / "0.npy", np.zeros(3, np.int16))
    with pytest.raises(ValueError, match="too few"):
        list(opened().train_dataloader())
    about = json.loads((folder / "codes.json").read_text())
    (folder / "codes.json").write_text(json.dumps({**about, "short": "pad"}))
    assert tokenized(cached, trained) == 2
    assert "was written with short=pad" in capfd.readouterr().err
    folder.rename(folder.with_name("0" * 16))
    with pytest.raises(ValueError, match=r"has no codes of this codec .*0000.*im2wav\.tokenize"):
        opened()
    for part in ("2/2", "1", "a/b"):
        with pytest.raises(ValueError, match="shard="):
            parse_shard(part)
