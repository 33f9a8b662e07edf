"""Time and memory of the `evaluate` command in a separate process."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from im2wav.benchmarks.row import Row
from im2wav.files import wav_bytes, write_atomic
from im2wav.media.reading import read_audio

ASSETS = Path(__file__).parents[1] / "assets" / "pairs" / "audio"
RATE = 16000
COMMAND = [sys.executable, "-m", "im2wav.evaluate"]
# A process inherits the peak memory of its parent. This small launcher in between runs the given command and prints its
# exit code, seconds, CPU seconds and peak memory (in units of the system).
MEASURED = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
taken, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, taken, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def write_audio_files(generated: Path, reference: Path, count: int, seconds: float) -> None:
    """Write two folders of `count` audio files: windows of the demo recordings, and the same with noise."""
    recordings = [read_audio(path, RATE) for path in sorted(ASSETS.iterdir())]
    samples, generator = round(seconds * RATE), torch.Generator().manual_seed(0)
    for number in range(count):
        wav = recordings[number % len(recordings)]
        start = int(torch.randint(max(1, len(wav) - samples), (), generator=generator))
        window = wav[start:].repeat(-(-samples // len(wav[start:])))[:samples]
        noise = 0.02 * torch.randn(samples, generator=generator)
        write_atomic(reference / f"{number:05d}.wav", wav_bytes(window, RATE))
        write_atomic(generated / f"{number:05d}.wav", wav_bytes(window + noise, RATE))


def measure_evaluation(
    sounds: int = 3600, seconds: float = 4.096, minutes: float = 4.0, gigabytes: float = 2.0
) -> list[Row]:
    """Benchmark `python -m im2wav.evaluate` on as many files as ImageHear has, and as many references.

    Args:
        sounds: number of files in each folder.
        seconds: duration of each file.
        minutes, gigabytes: limits.

    Raises:
        ValueError: the evaluation failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        generated, reference, out = (Path(folder) / name for name in ("generated", "reference", "out"))
        write_audio_files(generated, reference, sounds, seconds)
        options = [f"generated={generated}", f"reference={reference}", f"out={out}"]
        measured = [sys.executable, "-c", MEASURED, *COMMAND, *options]
        run = subprocess.run(measured, capture_output=True, text=True, check=True)
        code, taken, busy, peak = json.loads(run.stdout)
        if code:
            raise ValueError(f"the evaluation failed: {run.stderr.strip()[-300:]}")
    used = peak / (2**30 if sys.platform == "darwin" else 2**20)
    what = f"{sounds} files of {seconds:g} s and {sounds} references"
    return [
        Row(what, taken / 60, "min", minutes, "limit", 1.0, at_least=False),
        Row("CPU time of all cores", busy / 60, "min"),
        Row("peak memory", used, "GB", gigabytes, "limit", 1.0, at_least=False),
    ]
