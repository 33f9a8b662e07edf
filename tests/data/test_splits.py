"""Splits by the manifest or by a hash of the sound's group, never by position; fractions that are nested."""

import csv

import numpy as np
import pytest

from helpers import make_pairs
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.manifest import COLUMNS, Manifest, fraction_of, split_rows
from im2wav.files import table_bytes


def manifest(path, rows) -> Manifest:
    path.write_bytes(table_bytes(COLUMNS, rows))
    return Manifest.read(path)


def rows(count, **more):
    return [{"id": f"clip {i}", "split": "train", "samples": 1, "frames": 1, **more} for i in range(count)]


def names(pairs, chosen):
    return {pair.id for pair in pairs.take(chosen)}


def test_shares_are_kept_and_order_and_new_rows_do_not_matter(tmp_path):
    given = rows(2000)
    pairs = manifest(tmp_path / "a.csv", given)
    split = split_rows(pairs, "group", {"train": 0.8, "valid": 0.15, "test": 0.05})
    assert sum(map(len, split.values())) == 2000
    for name, share in {"train": 0.8, "valid": 0.15, "test": 0.05}.items():
        assert abs(len(split[name]) / 2000 - share) < 0.03
    other = manifest(tmp_path / "b.csv", [*given[::-1], *rows(500, id="new")][:2300])
    again = split_rows(other, "group", {"train": 0.8, "valid": 0.15, "test": 0.05})
    for name in split:
        assert names(pairs, split[name]) == {n for n in names(other, again[name]) if n != "new"}


def test_what_shares_a_group_or_an_audio_file_stays_together(tmp_path):
    given = [{**row, "group": f"g{i // 4}"} for i, row in enumerate(rows(400))]
    given += [{**row, "id": f"s{i}", "sound": f"hash {i // 2}"} for i, row in enumerate(rows(400))]
    pairs = manifest(tmp_path / "a.csv", given)
    where = {}
    for name, chosen in split_rows(pairs, "group", {"train": 0.5, "valid": 0.25, "test": 0.25}).items():
        for pair in pairs.take(chosen):
            assert where.setdefault(pair.group or pair.sound, name) == name
    assert set(where.values()) == {"train", "valid", "test"}


def test_fractions_are_nested_and_repeatable(tmp_path):
    pairs = manifest(tmp_path / "a.csv", rows(1000))
    everything = np.arange(1000)
    chosen = {share: set(fraction_of(pairs, everything, share).tolist()) for share in (0.1, 0.3, 1.0)}
    assert chosen[0.1] < chosen[0.3] < chosen[1.0]
    assert 60 < len(chosen[0.1]) < 140
    assert chosen[0.1] == set(fraction_of(pairs, everything, 0.1).tolist())


def test_what_makes_no_sense_is_rejected(tmp_path):
    root = make_pairs(tmp_path / "p", (1.0,) * 6, splits=("train",) * 6)
    options = {"root": str(root), "num_samples": 4096}
    for more, message in (
        ({"split": "position"}, r"data\.split='position'"),
        (
            {"split": "group", "split_fractions": {"train": 0.5, "valid": 0.1, "test": 0.1}},
            r"data\.split_fractions=.*add up to 1",
        ),
        ({"split": "group", "split_fractions": {"train": 1.0}}, r"data\.split_fractions="),
        ({"train_fraction": 0}, r"data\.train_fraction=0"),
        ({"train_fraction": 1e-9}, r"none of 6 pairs .*data\.train_fraction=1e-09"),
    ):
        with pytest.raises(ValueError, match=message):
            PairsDataModule(**options, **more)
    data = PairsDataModule(**options, split="group", split_fractions={"train": 0.5, "valid": 0.25, "test": 0.25})
    assert sum(len(windows) for windows in data.windows.values()) == 6
    with (root / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (root / "manifest.csv").write_bytes(table_bytes(COLUMNS, [{**line, "split": "val"} for line in lines]))
    with pytest.raises(ValueError, match="split='val': expected one of"):
        PairsDataModule(**options)
