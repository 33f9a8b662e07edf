"""Export folders for other benchmarks."""

import csv
import io
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from im2wav.evaluation.audio_files import AudioFile, Reading
from im2wav.evaluation.evaluation_inputs import Inputs
from im2wav.files import VIDEO_SUFFIXES, wav_bytes, write_atomic

log = logging.getLogger(__name__)


def av_benchmark(out: Path, found: Inputs, reading: Reading) -> dict[str, Any]:
    """Write folders for av-benchmark with matching names.

    `gt_audio/NAME.wav` and `pred_audio/NAME.wav`, cut to one length; `video/NAME.mp4` if the images are videos;
    `captions.csv` (name, caption) if there are labels. av-benchmark uses one file per reference: only the first
    generated file of each reference is exported.

    Raises:
        ValueError: there are no references.
    """
    if found.reference is None:
        raise ValueError("export=av-benchmark needs a reference: reference=DIR, or model=DIR with data=PAIRS")
    taken: dict[str, AudioFile] = {}
    for file in found.sets["generated"].files:
        taken.setdefault(file.target, file)
    for folder in ("gt_audio", "pred_audio", "video"):
        shutil.rmtree(out / folder, ignore_errors=True)
    real = {file.name: file for file in found.reference.files}
    videos = 0
    for name, file in taken.items():
        flat = name.replace("/", "_")
        write_atomic(out / "gt_audio" / f"{flat}.wav", wav_bytes(reading.raw(real[name]), reading.rate))
        write_atomic(out / "pred_audio" / f"{flat}.wav", wav_bytes(reading.raw(file), reading.rate))
        video = found.images.get(name)
        if video is not None and video.suffix.lower() in VIDEO_SUFFIXES:
            (out / "video").mkdir(exist_ok=True)
            shutil.copyfile(video, out / "video" / f"{flat}{video.suffix.lower()}")
            videos += 1
    if any(found.labels.get(name) for name in taken):
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([("name", "caption"), *((n.replace("/", "_"), found.labels.get(n, "")) for n in taken)])
        write_atomic(out / "captions.csv", buffer.getvalue().encode())
    left = sum(Counter(s.target for s in found.sets["generated"].files).values()) - len(taken)
    log.info(
        "%d pairs, %d videos in %s%s\nnext, in av-benchmark: python evaluate.py --gt_audio %s --gt_cache %s "
        "--pred_audio %s --pred_cache %s --audio_length=%g%s",
        len(taken),
        videos,
        out,
        f"; {left} further files of the same references were left out" if left else "",
        *(out / name for name in ("gt_audio", "gt_cache", "pred_audio", "pred_cache")),
        reading.seconds,
        "" if videos else " --skip_video_related",
    )
    return {"pairs": len(taken), "videos": videos, "left_out": left, "seconds": reading.seconds, "rate": reading.rate}
