"""The same windows in the same steps, whatever the devices, the workers, or where a run was stopped."""

import json
import os
import signal

import pytest
import torch

from conftest import command, tiny_config
from helpers import STEADY, losses, make_pairs
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.loader import BatchPartition, KeyStream
from im2wav.train import train


def test_every_row_comes_before_any_twice_and_the_seed_decides():
    draws = KeyStream(5, 12, seed=3)
    keys = [draws[i] for i in range(24)]
    for epoch in (keys[:12], keys[12:]):
        rows = [key.row for key in epoch]
        assert sorted(rows[:5]) == sorted(rows[5:10]) == [0, 1, 2, 3, 4]
    assert len({key.place for key in keys}) == 24
    assert keys[:12] != keys[12:]
    again = KeyStream(5, 12, seed=3)
    assert [again[i] for i in reversed(range(24))] == keys[::-1]
    assert [KeyStream(5, 12, seed=4)[i] for i in range(24)] != keys
    assert [KeyStream(3, 3, 0, shuffle=False, place=0.5)[i] for i in range(3)] == [
        (i, 0.5, 0.5, None) for i in range(3)
    ]


def test_blending_changes_the_weights_alone():
    plain, blended = (KeyStream(5, 12, seed=3, blend=blend) for blend in (False, True))
    assert [plain[i][:2] for i in range(24)] == [blended[i][:2] for i in range(24)]
    assert {plain[i].mix for i in range(24)} == {0.5}
    assert len({blended[i].mix for i in range(24)}) == 24


@pytest.mark.parametrize(("devices", "passes"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (8, 3)])
def test_devices_and_passes_share_one_global_batch(devices, passes):
    size = 24
    for step in range(3):
        shares = [BatchPartition(size // devices // passes, devices, rank, passes) for rank in range(devices)]
        taken = [i for part in range(passes) for share in shares for i in share.windows(step * passes + part)]
        assert taken == list(range(step * size, (step + 1) * size))


@pytest.mark.parametrize(("rows", "devices"), [(7, 1), (7, 2), (8, 2), (3, 2), (10, 4)])
def test_validation_covers_every_row_with_as_many_batches_on_each_device(rows, devices):
    size, covered = 2, []
    for number in range(-(-rows // (size * devices))):
        batches = [BatchPartition(size, devices, rank).windows_of(number, rows) for rank in range(devices)]
        assert len({len(batch) for batch in batches}) == 1
        covered += [i for batch in batches for i in batch]
    assert covered[:rows] == list(range(rows))
    assert len(covered) - rows < devices


def test_a_global_batch_that_does_not_divide_is_rejected(tmp_path):
    class Trainer:
        world_size, global_rank, accumulate_grad_batches = 2, 0, 3

    with pytest.raises(ValueError, match=r"data\.global_batch_size=8 .* 2 device.* =?.*use a multiple of 6"):
        BatchPartition.divide(8, 1, Trainer())
    assert BatchPartition.divide(12, 1, Trainer()).batch_size == 2
    assert BatchPartition.divide(None, 4, Trainer()).global_batch_size == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_from_the_next_batch_in_any_process(tmp_path, workers):
    root = str(make_pairs(tmp_path, (1.0,) * 5, splits=("train",) * 5))

    def loader():
        options = {"num_samples": 4096, "global_batch_size": 2, "windows_per_epoch": 8, "seed": 1}
        return PairsDataModule(root, num_workers=workers, **options).train_dataloader()

    whole = loader()
    batches = [batch for _ in range(2) for batch in whole]
    assert len(batches) == 8
    assert torch.cat([batch.number for batch in batches]).tolist() == list(range(16))
    first, second = loader(), loader()
    read = iter(first)
    for _ in range(3):
        next(read)
    second.load_state_dict(first.state_dict())
    for expected, batch in zip(batches[3:], second, strict=False):
        assert batch.id == expected.id
        assert (batch.wav == expected.wav).all()


def test_an_unreadable_file_is_named_by_a_worker_in_one_line(tmp_path):
    root = make_pairs(tmp_path)
    (root / "wav/0.wav").write_bytes(b"RIFF")
    data = PairsDataModule(str(root), num_samples=4096, batch_size=2, num_workers=1)
    with pytest.raises(ValueError, match=r"wav/0\.wav, named in") as caught:
        list(data.train_dataloader())
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_names_what_it_was_reading(tmp_path, monkeypatch):
    from im2wav.data.pairs import PairsFolder

    root = make_pairs(tmp_path)
    read = PairsFolder.read_wav

    def deadly(self, pair, *arguments):
        if pair.id == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, pair, *arguments)

    monkeypatch.setattr(PairsFolder, "read_wav", deadly)
    data = PairsDataModule(str(root), num_samples=4096, batch_size=2, num_workers=2)
    with pytest.raises(ValueError, match=r"died .* while reading '1' \(.*wav/1\.wav"):
        list(data.train_dataloader())


def test_training_names_what_a_dead_worker_was_reading(pairs, tmp_path, monkeypatch, caplog):
    from im2wav.data.pairs import PairsFolder

    read = PairsFolder.read_wav

    def deadly(self, pair, *arguments):
        if pair.id == "owl_03" and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, pair, *arguments)

    monkeypatch.setattr(PairsFolder, "read_wav", deadly)
    with pytest.raises((ValueError, RuntimeError)) as caught:  # PyTorch may notice it in the middle of a step
        train(tiny_config("vqvae", pairs, tmp_path, *STEADY, "data.num_workers=1", "trainer.max_steps=5"))
    assert "wav/owl_03.wav" in str(caught.value) + caplog.text


# a codec whose restarts draw nothing at random, so that what is compared is what the data decides


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stopped_within_an_epoch_continues_with_the_very_next_batch(pairs, tmp_path, workers):
    overrides = [*STEADY, f"data.num_workers={workers}"]
    train(tiny_config("vqvae", pairs, tmp_path / "whole", *overrides, "trainer.max_steps=8"))
    for until in (
        3,
        5,
        8,
    ):  # checkpoints are of steps 2 and 4: within epochs of three steps, and behind the end of the run
        goes_on = ["ckpt_path=last"] * (until > 3)
        train(tiny_config("vqvae", pairs, tmp_path / "parts", *overrides, f"trainer.max_steps={until}", *goes_on))
    assert len(losses(tmp_path / "whole")) == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_continues_with_other_accumulation(pairs, tmp_path):
    """Four windows at a time, then two and two: the same steps see the same windows."""
    seen = {}
    for name, plan in {"one": [(1, 5)], "two": [(2, 2), (1, 5)]}.items():
        for passes, until in plan:
            overrides = [*STEADY, f"trainer.accumulate_grad_batches={passes}", f"trainer.max_steps={until}"]
            if until == 5 and len(plan) > 1:
                overrides.append("ckpt_path=last")
            result = train(tiny_config("vqvae", pairs, tmp_path / name, *overrides))
        loader = result["trainer"].train_dataloader
        seen[name] = loader.state_dict()["windows"], result["trainer"].current_epoch
    assert seen["one"] == seen["two"] == (20, 2)


def test_overfitting_repeats_the_same_batches(pairs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "im2wav.training.VQVAE.on_train_batch_start", lambda self, batch, _: seen.append(batch.number.tolist())
    )
    train(tiny_config("vqvae", pairs, tmp_path, *STEADY, "trainer.overfit_batches=2", "trainer.max_steps=5"))
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2 + [[0, 1, 2, 3]]


def test_the_loader_is_timed(tmp_path):
    small = ["num_samples=8192", "clips=3", "batches=2", "growth_batches=20", f"folder={tmp_path}"]
    out = tmp_path / "b.json"
    assert command("bench", "measure=loader", *(f"measure.{text}" for text in small), f"out={out}") == 0
    *rates, growth = json.loads(out.read_text())["rows"]
    assert [row["value"] > 1 and row["limit"] > 1 for row in rates] == [True, True]
    assert growth["name"] == "growth over 20 batches"
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_full_shared_memory_is_named_and_no_file_is_blamed(tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    data = PairsDataModule(str(make_pairs(tmp_path)), num_samples=4096, batch_size=2, num_workers=1)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(ValueError, match=r"shared memory is full .*--shm-size.*data\.num_workers=0") as error:
        next(iter(data.train_dataloader()))
    assert "wav" not in str(error.value)
    data.num_workers = 0
    next(iter(data.train_dataloader()))
