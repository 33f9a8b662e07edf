import csv
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from im2wav.data.manifest import COLUMNS, Manifest, Pair
from im2wav.data.pairs import DatasetInfo
from im2wav.files import table_bytes

ROWS = 200_000


def row(i: int) -> dict[str, object]:
    name = f'{i:06d} Ü, "quoted"_{i * 7919 % 1000}'
    files = {"wav": f"wav/{name}.wav", "clip": f"clip/{name}.npy", "source": f"/data/vggsound/video/{name}.mp4"}
    split = ("train", "valid", "test")[i % 3]
    return {"id": name, "label": f"label {i % 309}", "split": split, "samples": 160_000 + i, "frames": 300, **files}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    DatasetInfo("clip_vit_b32", 512, None, 30.0).write(root)
    (root / "manifest.csv").write_bytes(table_bytes(COLUMNS, map(row, range(ROWS))))
    return root


def test_rows_are_what_was_written(large):
    manifest = Manifest.read(large / "manifest.csv")
    assert len(manifest) == ROWS
    for i in (0, 1, 8191, 8192, ROWS - 1):
        expected = {name: row(i).get(name, "") for name in COLUMNS}
        assert manifest[i] == Pair(**expected)
    assert manifest[-1] == manifest[ROWS - 1]
    assert [pair.id for pair in manifest[10:40:10]] == [row(i)["id"] for i in (10, 20, 30)]
    valid = manifest.take(manifest.where("split", lambda split: split == "valid"))
    assert set(valid.strings("split")) == {"valid"}
    np.testing.assert_array_equal(valid.column("samples"), 160_000 + np.arange(1, ROWS, 3))


MEASURE = """
import resource, sys, time
from multiprocessing import get_context
from im2wav.data.pairs import PairsFolder

def own():  # what this process alone holds, in MB
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith(("Private_Clean", "Private_Dirty"))) / 1024

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def walk(folder, queue):
    before = own()
    for pair in folder.pairs[::20]:
        pass
    queue.put(own() - before)

before = peak()
start = time.process_time()
folder = PairsFolder(sys.argv[1])
print(time.process_time() - start, peak() - before)
queue = get_context("fork").Queue()
workers = [get_context("fork").Process(target=walk, args=(folder, queue)) for _ in range(2)]
[worker.start() for worker in workers]
print(*(queue.get(timeout=100) for _ in workers))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs /proc and fork")
def test_200_000_rows_open_in_2_seconds_and_200_megabytes_forked_workers_included(large):
    run = subprocess.run([sys.executable, "-c", MEASURE, large], capture_output=True, text=True, check=True)
    seconds, megabytes, *workers = map(float, run.stdout.split())
    assert seconds < 2  # of this process; the clock of a busy machine tells nothing
    assert megabytes < 200
    assert max(workers) < 30  # having read rows from everywhere: the columns stay shared


def test_a_bad_manifest_is_rejected(tmp_path):
    path = tmp_path / "manifest.csv"
    with pytest.raises(ValueError, match="does not exist"):
        Manifest.read(path)
    for text, message in (
        ("", "lacks the columns"),
        ("id,label\n", "lacks the columns"),
        ("id,label,split,group,wav,clip,samples,frames,source\na,b\n", "a row of 2 fields, expected 9"),
        (
            "id,label,split,group,wav,clip,samples,frames,source\na,,,,,,many,1,\n",
            "line 2: samples=many: expected a whole number",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Manifest.read(path)


def test_a_folder_of_an_earlier_version_opens(tmp_path):
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS[:9], ["a", "", "train", "", "", "clip/a.npy", "", 1, "a.jpg"]])
    assert list(Manifest.read(path)) == [Pair("a", "", "train", "", "", "clip/a.npy", 0, 1, "a.jpg")]
