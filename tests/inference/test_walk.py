"""The walk of a photo: how many files of the package a reader meets who follows `sample input=photo.jpg`."""

import sys
import threading
from pathlib import Path

from conftest import ASSETS, REPO, command

SOURCE = str(REPO / "src" / "im2wav")
# the entry, 5 files of inference/, 5 of decoding/, 7 of networks and media (codec/, prior/, media/, layers.py), and
# cli.py, options.py, files.py, checkpoint.py, data/pairs.py and system.py
MAX_FILES = 24


def test_generating_audio_for_a_photo_calls_few_files(trained, tmp_path):
    arguments = ["run_name=base", f"paths.runs={trained}", f"input={ASSETS / 'images' / 'owl_03.jpg'}"]
    arguments += ["device=cpu", "seconds=0.02"]
    assert command("sample", *arguments, f"out={tmp_path / 'a'}") == 0  # imports everything
    files: set[str] = set()

    def record(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE) and frame.f_code.co_name != "<module>":
            files.add(str(Path(frame.f_code.co_filename).relative_to(SOURCE)))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        assert command("sample", *arguments, f"out={tmp_path / 'b'}") == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert (tmp_path / "b/up/owl_03_00.wav").read_bytes() == (tmp_path / "a/up/owl_03_00.wav").read_bytes()
    assert {"sample.py", "inference/generate.py", "decoding/state.py", "codec/codec.py"} <= files
    assert len(files) <= MAX_FILES, "\n".join(sorted(files))
