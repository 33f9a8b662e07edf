"""Damaged media: `embed` finishes, and each file is embedded or listed with a reason.

`DAMAGED=1000 pytest -o log_cli=true tests/prepare/test_damaged_media.py` makes more files, and logs
figures.
"""

import logging
import os
import random
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from conftest import command, tone, write_wav
from helpers import TINY_ENCODER, PeakMemory
from im2wav.media.reading import read_image  # registers HEIC
from im2wav.prepare.clip_reader import End, Workers
from im2wav.tables import read_table
from make_media import write_video

COUNT = int(os.environ.get("DAMAGED", "44"))


def originals(folder):
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    for suffix in ("jpg", "png", "webp", "heic", "avif"):
        picture.save(folder / f"image.{suffix}", format={"jpg": "jpeg", "heic": "heif"}.get(suffix, suffix))
    for suffix, codec, audio in (
        ("mp4", "libx264", "aac"),
        ("mkv", "libx264", "flac"),
        ("webm", "libvpx", "libopus"),
        ("avi", "mpeg4", "libmp3lame"),
        ("mov", "libx265", "pcm_s16le"),
        ("ts", "libx264", "aac"),
    ):
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        write_video(folder / f"video.{suffix}", 2.0, codec, audio, 48000, options=options)
    assert read_image(folder / "image.heic").size == picture.size
    return sorted(folder.iterdir())


def damage(content: bytes, kind: str, numbers: random.Random) -> bytes:
    if kind == "truncated":
        return content[: numbers.randrange(len(content))]
    if kind == "empty":
        return b""
    changed = bytearray(content)
    if kind == "flipped":
        for _ in range(numbers.choice([1, 8, 64])):
            changed[numbers.randrange(len(changed))] ^= 1 << numbers.randrange(8)
    return bytes(changed)


@pytest.fixture
def seconds(monkeypatch):
    """Seconds from the start of a file to its end, by id."""
    run, began, found = Workers.run, {}, {}

    def timed(workers, jobs):
        def started():
            for key, job in jobs:
                began[key] = time.monotonic()
                yield key, job

        for key, message in run(workers, started()):
            if isinstance(message, End):
                found[key] = time.monotonic() - began[key]
            yield key, message

    monkeypatch.setattr(Workers, "run", timed)
    return found


@pytest.mark.timeout(1200)
def test_each_damaged_file_is_embedded_or_listed(tmp_path, seconds):
    numbers, source, out = random.Random(0), tmp_path / "source", tmp_path / "pairs"
    source.mkdir()
    intact = originals(tmp_path / "originals")
    kinds = ["truncated", "flipped", "flipped", "renamed", "empty", "whole"]
    made = {}
    for number in range(COUNT):
        original, kind = intact[number % len(intact)], numbers.choice(kinds)
        suffix = numbers.choice(intact).suffix if kind == "renamed" else original.suffix
        name = f"{number:04d}_{kind}_{original.suffix[1:]}"
        (source / f"{name}{suffix}").write_bytes(damage(original.read_bytes(), kind, numbers))
        if suffix in (".jpg", ".png", ".webp", ".heic", ".avif"):
            write_wav(source / f"{name}.wav", tone(0.5))
        made[name] = kind
    shutil.rmtree(tmp_path / "originals")
    options = [*TINY_ENCODER, "timeout=20", "max_failed=1", "fps=5", "min_frame_change=0"]
    with PeakMemory() as memory:
        assert command("embed", f"input={source}", f"out={out}", *options) == 0
    embedded = {row["id"]: row for row in read_table(out / "manifest.csv", {"id"})}
    skipped = {row["id"]: row for row in read_table(out / "skipped.csv", {"id"})}
    assert embedded.keys() | skipped.keys() == made.keys()
    assert not embedded.keys() & skipped.keys()
    for name, kind in made.items():
        if kind == "whole":
            assert name in embedded, skipped[name]
        if kind == "empty":
            assert skipped[name]["reason"] == "empty file"
        if name in skipped:
            assert skipped[name]["reason"] not in ("decoder hung", "decoder error", ""), skipped[name]
    for name, row in embedded.items():
        frames = np.load(out / row["clip"])
        assert len(frames) == int(row["frames"])
        assert np.isfinite(frames).all()
        if made[name] == "whole" and row["source"].rpartition(".")[2] in ("mp4", "mkv", "webm", "mov", "ts"):
            assert len(frames) in (9, 10)
            assert int(row["samples"]) == pytest.approx(32000, abs=1600)
    assert memory.largest < 700, "MiB of a decoding process"
    reasons = Counter(row["reason"] for row in skipped.values())
    longest = max(seconds, key=seconds.get)
    logging.getLogger("figures").warning(
        "%d embedded, %d listed: %s\nlargest decoding process %.0f MiB, all of them %.0f MiB\nlongest file: %.2f s, %s",
        len(embedded),
        len(skipped),
        dict(reasons),
        memory.largest,
        memory.total,
        seconds[longest],
        longest,
    )
