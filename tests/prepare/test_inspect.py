"""What inspect says of data that were made to be wrong in known ways."""

import re

import numpy as np
import pytest
import torch

from conftest import command, write_mp4
from helpers import make_pairs
from im2wav.data.manifest import COLUMNS
from im2wav.data.pairs import DatasetInfo, PairsFolder
from im2wav.files import npy_bytes, table_bytes, wav_bytes, write_atomic
from im2wav.prepare.survey import draw_rows


@pytest.fixture
def odd(tmp_path):
    """Six pairs: a silent sound, a clipped one, one that is in two splits, one with too few frames, one unreadable."""
    root = tmp_path / "pairs"
    DatasetInfo("test", 2, None, 10.0).write(root)
    video = write_mp4(tmp_path / "a.mp4", seconds=1.0)
    kinds = {"fine": 0.1, "silent": 0.0, "clipped": 1.0, "twin": 0.1, "few": 0.1, "broken": 0.1}
    rows = []
    for i, (name, level) in enumerate(kinds.items()):
        seconds, frames = 5 + i, 10 if name == "few" else 10 * (5 + i)
        wave = level * torch.sin(torch.arange(seconds * 16000) / 10)
        write_atomic(root / f"wav/{name}.wav", wav_bytes(wave, 16000))
        write_atomic(root / f"clip/{name}.npy", npy_bytes(np.ones((frames, 2), np.float16)))
        row = {"id": name, "label": name, "split": "valid" if name in ("twin", "few") else "train", "group": f"g{i}"}
        row |= {"wav": f"wav/{name}.wav", "clip": f"clip/{name}.npy", "samples": seconds * 16000, "frames": frames}
        rows.append({**row, "sound": "same" if name in ("fine", "twin") else name, "source": str(video)})
    (root / "wav/broken.wav").write_bytes(b"RIFF")
    write_atomic(root / "manifest.csv", table_bytes(COLUMNS, rows))
    write_atomic(root / "skipped.csv", b"id,reason,detail\na,no audio,x\nb,no audio,y\nc,still frame,z\n")
    return root


def test_what_is_wrong_is_found(odd, tmp_path, capfd):
    assert command("inspect", f"data.root={odd}", f"out={tmp_path / 'page.html'}") == 0
    printed = " ".join(capfd.readouterr().out.split())
    for expected in (
        "pairs 6 with audio 6 hours of audio 0.0125 labels 6",
        "train 4 0.00778 4 4 valid 2 0.00472 2 2 test 0",
        "no audio 2 still frame 1",
        "- 2 labels have no training pair: few, twin",
        "- 1 clips have 10% more or fewer frames than 10 per second of their audio",
        "- 1 of 5 recordings are silent",
        "- 1 of 5 recordings reach full scale",
        "- 1 of 6 recordings cannot be read:",
        "- 1 identical recordings are in more than one split, such as fine, twin",
        "- 1 images or videos are in more than one split",
        "seconds 5 5.05 7.5 9.95 10 7.5",
    ):
        assert expected in printed, expected
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") == 5
    assert page.count("data:image/jpeg") == 6  # the middle frame of each video
    assert page.count("data:image/svg") == 2
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    assert "cannot be read" in page


def test_the_page_is_the_same_again_and_leaves_out_what_is_not_there(odd, tmp_path):
    arguments = [f"data.root={odd}", "cards=3", "num_measured=2"]
    pages = []
    for name in ("a", "b"):
        assert command("inspect", *arguments, f"out={tmp_path / name}.html") == 0
        pages.append((tmp_path / f"{name}.html").read_text())
    assert pages[0] == pages[1]
    assert "Loudness of 2 recordings" in pages[0]
    root = make_pairs(tmp_path / "bare")
    assert command("inspect", f"data.root={root}") == 0
    assert "its image is missing" in (root / "inspect.html").read_text()
    assert command("inspect", f"data.root={root}", "out=null", "data.split=group") == 0


def test_it_reads_shards_and_rejects_what_is_none(odd, tmp_path, capfd):
    root = make_pairs(tmp_path / "pairs2")
    assert command("shard", f"data.root={root}", f"out={tmp_path / 'shards'}") == 0
    assert command("inspect", f"data.root={tmp_path / 'shards'}", "out=null", "full=true") == 0
    assert "Loudness of 2 recordings" in capfd.readouterr().out
    assert command("inspect", f"data.root={tmp_path / 'nothing'}") == 2
    assert "is not a pairs folder" in capfd.readouterr().err
    write_atomic(root / "manifest.csv", table_bytes(COLUMNS, []))
    assert command("inspect", f"data.root={root}") == 2
    assert "has no rows" in capfd.readouterr().err


def test_rows_are_drawn_by_the_seed(odd):
    rows = np.arange(1000)
    assert (draw_rows(rows, 10, 0) == draw_rows(rows, 10, 0)).all()
    assert (draw_rows(rows, 10, 0) != draw_rows(rows, 10, 1)).any()
    assert len(draw_rows(rows, 2000, 0)) == 1000
    assert len(PairsFolder(odd).pairs) == 6
