"""Write changed copies of recordings: other speed, tone and start, of the same group.

    python experiments/starter/augment.py RECORDINGS data/starter/augmented

RECORDINGS has sources.csv, and so has the output folder. A copy is 0.94 to 1.06 times as fast, with a tilt of up to
3 dB per octave and a bump of up to 6 dB, and starts up to 20 ms later: its codes differ from those of the original.
"""

import argparse
import csv
import random
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray

RATE = 16000


def changed(wave: NDArray, draw: random.Random) -> NDArray:
    """A copy of samples [N] with another speed, tone and start: [M]."""
    wave = wave[draw.randrange(RATE // 50) :] if len(wave) > RATE // 4 else wave
    speed = draw.choice([94, 95, 96, 97, 98, 102, 103, 104, 105, 106])
    faster = torchaudio.functional.resample(torch.from_numpy(wave), speed * RATE // 100, RATE).numpy()
    spectrum, octaves = np.fft.rfft(faster), np.log2(np.fft.rfftfreq(len(faster), 1 / RATE).clip(60) / 1000)
    bump = draw.uniform(-6, 6) * np.exp(-((octaves - draw.uniform(-3, 3)) ** 2) / 0.5)
    wave = np.fft.irfft(spectrum * 10 ** ((draw.uniform(-3, 3) * octaves + bump) / 20), len(faster))
    return wave * min(1.0, 0.98 / max(1e-6, np.abs(wave).max()))


def main() -> None:
    """Write the copies of all recordings; existing files are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder with sources.csv")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--copies", type=int, default=2, help="of each recording")
    options = parser.parse_args()
    with (options.recordings / "sources.csv").open(newline="", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    rows = []
    for done, source in enumerate(sources):
        wave, rate = soundfile.read(options.recordings / source["file"], dtype="float32")
        if rate != RATE or wave.ndim > 1:
            raise SystemExit(f"{source['file']}: expected {RATE} Hz, one channel")
        stem = source["file"].rpartition(".")[0]
        for copy in range(options.copies):
            name = f"{stem}_changed{copy}.flac"
            path = options.out / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, changed(wave, random.Random(name)), RATE, subtype="PCM_16")
            rows.append({**source, "file": name, "note": f"{source['note']}; changed by augment.py".strip("; ")})
        if done % 100 == 0:
            sys.stderr.write(f"{done} of {len(sources)}\n")
    with (options.out / "sources.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(sources[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
