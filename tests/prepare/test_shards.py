"""Shards: the same crops as from the pairs folder, also after a run was killed or goes on in mid-epoch."""

import hashlib
import multiprocessing

import numpy as np
import pytest
import soundfile
import torch

from conftest import command, tiny_config
from helpers import RATE, STEADY, losses, make_pairs
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.pairs import PairsFolder, open_folder
from im2wav.prepare import shard_writer
from im2wav.prepare.shard_writer import plan_chunks, write_shards
from im2wav.train import train

pytest.importorskip("litdata")

SECONDS = (3.0, 0.5, 1.0, 2.0, 0.2, 1.5)


def content(folder) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def both(tmp_path):
    root = make_pairs(tmp_path / "pairs", SECONDS, splits=("train", "valid", *("train",) * 4))
    assert command("shard", f"data.root={root}", f"out={tmp_path / 'shards'}", "chunk_mb=0.1") == 0
    return root, tmp_path / "shards"


def test_chunks_hold_whole_records_in_order():
    assert plan_chunks(np.array([3, 3, 3, 9, 1, 1]), 7) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert plan_chunks(np.array([], dtype=int), 7) == []


@pytest.mark.parametrize("short", ["loop", "pad", "drop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_batches_from_both(both, short, workers):
    options = {"num_samples": 8192, "batch_size": 2, "short": short, "seed": 5, "windows_per_epoch": 12}
    one, other = (PairsDataModule(str(root), num_workers=workers, **options) for root in both)
    assert len(list((both[1] / "wav").glob("*.bin"))) > 2
    for a, b in zip(one.train_dataloader(), other.train_dataloader(), strict=True):
        assert a.id == b.id
        for x, y in ((a.wav, b.wav), (a.clip, b.clip), (a.timing["offset"], b.timing["offset"])):
            assert torch.equal(x, y)
    if short != "drop":
        assert next(iter(one.val_dataloader())).id == next(iter(other.val_dataloader())).id == ["1"]
    assert one.identity() == other.identity()


def test_training_from_shards_continues_in_mid_epoch_with_the_losses_of_an_unbroken_run_from_files(pairs, tmp_path):
    assert command("shard", f"data.root={pairs}", f"out={tmp_path / 'shards'}", "chunk_mb=0.2") == 0
    whole = [*STEADY, "trainer.max_steps=5"]
    train(tiny_config("vqvae", pairs, tmp_path / "whole", *whole))
    parts = [*STEADY, "data=shards", "data.num_workers=1"]
    for until, goes_on in ((2, []), (5, ["ckpt_path=last"])):
        train(
            tiny_config(
                "vqvae", tmp_path / "shards", tmp_path / "parts", *parts, f"trainer.max_steps={until}", *goes_on
            )
        )
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def _die_in_the_third_chunk(root, out):
    import os

    write, written = shard_writer._write_chunk, []

    def deadly(*chunk):
        if len(written) == 2:
            shard_writer._record = lambda *_: os.kill(os.getpid(), 9)
        written.append(chunk)
        write(*chunk)

    shard_writer._write_chunk = deadly
    write_shards(root, out, 0.1)


def test_a_killed_run_continues_and_any_number_of_processes_write_the_same_bytes(both, tmp_path):
    root, reference = both
    process = multiprocessing.get_context("fork").Process(target=_die_in_the_third_chunk, args=(root, tmp_path / "b"))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert len(list((tmp_path / "b").rglob("chunk-*.bin"))) == 2
    with pytest.raises(ValueError, match=r"wav/|is not a pairs folder|cannot be read"):
        open_folder(tmp_path / "b").read_wav(PairsFolder(root).pairs[0])
    for name in (".writing-table", "wav/.writing-index", "clip/.writing-index"):  # of one that died in `atomic_path`
        (tmp_path / "b" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "b" / name).touch()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("chunk-*.bin")}
    assert command("shard", f"data.root={root}", f"out={tmp_path / 'b'}", "chunk_mb=0.1", "num_workers=2") == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert content(tmp_path / "b") == content(reference)


def test_a_dry_run_writes_nothing(both, tmp_path, capfd):
    assert command("shard", f"data.root={both[0]}", f"out={tmp_path / 'c'}", "dry_run=true") == 0
    assert "would write 6 pairs" in capfd.readouterr().out
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_sharded_is_rejected(both, tmp_path, capfd):
    root, out = both
    assert command("shard", f"data.root={root}", f"out={out}", "chunk_mb=0.2") == 2
    assert "contains shards of another chunk_mb" in capfd.readouterr().err
    assert command("shard", f"data.root={root}", f"out={out}", "chunk_mb=0") == 2
    assert "chunk_mb=0" in capfd.readouterr().err
    other = make_pairs(tmp_path / "other", (1.0, 1.0))
    assert command("shard", f"data.root={other}", f"out={out}", "chunk_mb=0.1") == 2
    assert "shards of other pairs" in capfd.readouterr().err
    (other / "wav/1.wav").write_bytes(b"RIFF")
    assert command("shard", f"data.root={other}", f"out={tmp_path / 'd'}") == 2
    assert "error:" in capfd.readouterr().err
    assert not list((tmp_path / "d").rglob("wav/*.bin"))
    assert not list((tmp_path / "d").rglob("index.json"))
    with pytest.raises(ValueError, match=r"data\.blend=true"):
        PairsDataModule(str(out), num_samples=4096, blend=True)


def test_a_damaged_shard_is_named(both):
    _, out = both
    chunk = out / "wav" / "chunk-0-0.bin"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    folder = open_folder(out)
    with pytest.raises(ValueError, match=r"shards/wav.*'0' cannot be read"):
        folder.read_wav(folder.pairs[0])


def test_stereo_audio_is_mixed(tmp_path):
    root = make_pairs(tmp_path / "pairs", (1.0, 1.0))
    left, right = (np.linspace(-0.5, 0.5, RATE) * scale for scale in (1.0, 0.5))
    soundfile.write(root / "wav/0.wav", np.stack([left, right], 1), RATE)
    files = PairsFolder(root)
    pair = files.pairs[0]
    np.testing.assert_allclose(files.read_wav(pair, mix=0.25), 0.25 * left + 0.75 * right, atol=1e-4)
    np.testing.assert_allclose(files.read_wav(pair, 100, 50, mix=1.0), left[100:150], atol=1e-4)
    assert command("shard", f"data.root={root}", f"out={tmp_path / 'shards'}") == 0
    np.testing.assert_allclose(open_folder(tmp_path / "shards").read_wav(pair), files.read_wav(pair), atol=1e-4)
    blended = PairsDataModule(str(root), num_samples=RATE, batch_size=4, blend=True, windows_per_epoch=4, crop="start")
    batch = next(iter(blended.train_dataloader()))
    scales = {round(wav[0, 0].item() / -0.5, 3) for wav, name in zip(batch.wav, batch.id, strict=True) if name == "0"}
    assert len(scales) == 2
    assert all(0.5 <= scale <= 1 for scale in scales)
