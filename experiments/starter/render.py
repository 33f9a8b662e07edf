"""Render what has too few recordings: instruments from two soundfonts; police sirens and church bells by synthesis.

    python experiments/starter/render.py data/starter/rendered

needs the program `fluidsynth`, two General MIDI soundfonts with MIT licences (Debian: fluid-soundfont-gm and
musescore-general-soundfont) and the package `mido`. It writes CLASS/NAME.flac (16 kHz, mono) and sources.csv, in the
form of the folder of recordings. Programs are those of the instrument itself: no horn for a trumpet, no glockenspiel
for a bell.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import mido
import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000
SECONDS = 4.1
DRUMS = 9  # the channel of percussion
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
# class: General MIDI programs (from 0), lowest and highest note, number of phrases, most notes at once
INSTRUMENTS: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {
    "accordion": ((21, 23), 50, 84, 72, 3),
    "harmonica": ((22,), 60, 88, 64, 2),
    "saxophone": ((65, 66, 67), 46, 78, 72, 1),
    "flute": ((73,), 62, 94, 64, 1),
    "trumpet": ((56,), 54, 82, 64, 1),
    "piano": ((0, 1), 36, 92, 64, 4),
    "guitar": ((24, 25, 26), 40, 76, 64, 4),
    "bass": ((32, 33, 34), 28, 50, 56, 1),
    "bells": ((14,), 60, 84, 24, 2),
    "organ": ((16, 19, 20), 40, 84, 28, 4),
    "violin": ((40, 41), 55, 92, 40, 2),
    "harp": ((46,), 40, 88, 24, 3),
}
# class: percussion notes and number of phrases
PERCUSSION = {"bongo": ((60, 61, 62, 63, 64), 64), "drums": ((36, 38, 42, 46, 45, 48, 49, 51), 40)}
SYNTHESIS = {"police_siren": 48, "bells": 48}  # number of sounds
SOUNDFONTS = {  # path below /usr/share/sounds: authors, Debian package
    "sf2/FluidR3_GM.sf2": ("Frank Wen", "fluid-soundfont-gm"),
    "sf3/MuseScore_General_Full.sf3": (
        "Frank Wen, Michael Cowgill, S. Christian Collins",
        "musescore-general-soundfont",
    ),
}
# partials of a church bell over its strike note, their loudness, and decay relative to the hum
PARTIALS = ((0.5, 0.6, 1.0), (1.0, 1.0, 0.8), (1.2, 0.8, 0.6), (1.5, 0.4, 0.45), (2.0, 1.0, 0.35), (2.5, 0.3, 0.25),
            (2.67, 0.3, 0.22), (3.0, 0.4, 0.2), (4.2, 0.3, 0.12), (5.4, 0.2, 0.09), (6.8, 0.15, 0.06))  # fmt: skip


def note_events(draw: random.Random, lowest: int, highest: int, voices: int) -> list[tuple[float, float, int, int]]:
    """(start in s, length in s, note, velocity) of each note of a phrase: long notes, melodies, arpeggios or chords."""
    scale, root = draw.choice(SCALES), draw.randrange(12)
    notes = [n for n in range(lowest, highest + 1) if (n - root) % 12 in scale]
    beat, loud = draw.uniform(0.14, 0.7), draw.randint(60, 118)
    place, time, events = draw.randrange(len(notes)), draw.uniform(0.0, 0.1), []
    while time < SECONDS:
        length = beat * draw.choice((0.5, 1, 1, 1, 2, 3))
        count = draw.randint(1, voices) if draw.random() < 0.5 else 1
        for voice in range(count):
            note = notes[min(len(notes) - 1, place + 2 * voice)]
            events.append((time, length * draw.uniform(0.7, 1.1), note, min(127, loud + draw.randint(-14, 9))))
        place = min(len(notes) - 1, max(0, place + draw.randint(-4, 4)))
        time += length * (1 if draw.random() < 0.9 else 2)
    return events


def drum_events(draw: random.Random, notes: tuple[int, ...]) -> list[tuple[float, float, int, int]]:
    """A rhythm of sixteen steps that repeats with small variations."""
    step, pattern = draw.uniform(0.09, 0.2), [draw.random() ** 2 for _ in range(16)]
    voices, loud = [draw.choice(notes) for _ in range(16)], draw.randint(75, 118)
    events = []
    for number in range(int(SECONDS / step)):
        if draw.random() < 0.25 + pattern[number % 16]:
            note = voices[number % 16] if draw.random() < 0.85 else draw.choice(notes)
            events.append((number * step, 0.2, note, min(127, loud + draw.randint(-25, 9))))
    return events


def render(events: list[tuple[float, float, int, int]], program: int, channel: int, soundfont: str) -> NDArray:
    """Samples [N] in -1 to 1 of notes played by fluidsynth."""
    messages = []
    for start, length, note, velocity in events:
        messages += [(start, "note_on", note, velocity), (start + length, "note_off", note, 0)]
    track, now = mido.MidiTrack([mido.Message("program_change", program=program, channel=channel)]), 0.0
    for time, kind, note, velocity in sorted(messages):
        ticks = round((time - now) * 960)  # 480 ticks a beat, 120 beats a minute
        now += ticks / 960
        track.append(mido.Message(kind, note=note, velocity=velocity, channel=channel, time=ticks))
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "a.mid", Path(folder) / "a.wav"
        mido.MidiFile(tracks=[track], ticks_per_beat=480).save(midi)
        command = ["fluidsynth", "-ni", "-q", "-r", str(2 * RATE), "-g", "0.6", "-o", "synth.dynamic-sample-loading=1"]
        command += ["-F", str(wav), soundfont, str(midi)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wave, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    return decimate(wave.mean(1))


def decimate(wave: NDArray) -> NDArray:
    """Half the sample rate, [2 N] -> [N], by a windowed sinc filter."""
    taps = np.arange(-48, 49)
    kernel = np.sinc(taps / 2 * 0.96) * np.hanning(99)[1:-1]
    return np.convolve(wave, kernel / kernel.sum(), "same")[::2]


def siren(draw: random.Random) -> NDArray:
    """A police siren [N]: its pitch wails, yelps or alternates, through a bright horn in a street."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    low, high = draw.uniform(480, 760), draw.uniform(1000, 1650)
    kind = draw.choice(("wail", "wail", "yelp", "alternate"))
    rate = {"wail": draw.uniform(0.18, 0.5), "yelp": draw.uniform(2.5, 4.5), "alternate": draw.uniform(0.7, 1.3)}[kind]
    phase = (time * rate + draw.random()) % 1
    if kind == "alternate":
        low, high = draw.uniform(400, 500), draw.uniform(540, 680)
        pitch = np.where(phase < 0.5, low, high)
    else:
        rise = draw.uniform(0.4, 0.7)
        shape = np.where(phase < rise, phase / rise, (1 - phase) / (1 - rise))
        pitch = low + (high - low) * shape ** draw.uniform(0.6, 1.2)
    pitch = pitch * (1 + draw.uniform(-0.04, 0.04) * np.tanh((time - SECONDS / 2) * 2))  # it passes by
    angle = 2 * np.pi * np.cumsum(pitch) / RATE
    decay = draw.uniform(0.9, 1.7)
    wave = sum(np.sin(k * angle) / k**decay * (k * pitch < 7500) for k in range(1, 9))
    near = 0.6 + 0.4 * np.sin(np.pi * time / SECONDS + draw.uniform(0, 3)) ** 2
    wave = np.tanh(wave * draw.uniform(0.8, 2.5)) * near
    random_numbers = np.random.default_rng(draw.randrange(2**32))
    echo = np.zeros(RATE // 3)
    echo[0] = 1
    places = random_numbers.integers(200, len(echo), 40)
    echo[places] += 0.25 * random_numbers.standard_normal(40) * np.exp(-places / (RATE * draw.uniform(0.05, 0.15)))
    street = np.cumsum(random_numbers.standard_normal(len(time)))
    street -= np.convolve(street, np.ones(400) / 400, "same")
    return np.convolve(wave, echo)[: len(time)] + draw.uniform(0.01, 0.06) * street / np.abs(street).max() * 6


def church_bells(draw: random.Random) -> NDArray:
    """Strokes of one to three church bells, [N]: inharmonic partials that decay, and the clapper's noise."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    random_numbers = np.random.default_rng(draw.randrange(2**32))
    wave, strike = np.zeros(len(time)), draw.uniform(180, 900)
    for bell in range(draw.choice((1, 1, 2, 3))):
        note = strike * draw.choice((1, 9 / 8, 6 / 5, 4 / 3, 3 / 2)) ** (bell > 0)
        tuned = [(ratio * draw.uniform(0.985, 1.015), loud * draw.uniform(0.4, 1.2), d) for ratio, loud, d in PARTIALS]
        hum, beat, begin = draw.uniform(1.5, 5.0), draw.uniform(0.5, 2.0), draw.uniform(0, 0.1 + 0.5 * bell)
        while begin < SECONDS - 0.2:
            since, force = np.maximum(time - begin, 0), draw.uniform(0.6, 1.0)
            for ratio, loud, decay in tuned:
                tremor = 1 + 0.15 * np.sin(2 * np.pi * draw.uniform(0.5, 3) * since)
                tone = np.sin(2 * np.pi * ratio * note * since) * np.exp(-since / (hum * decay)) * tremor
                wave += force * loud * tone * (ratio * note < 7500) * (time >= begin)
            clapper = random_numbers.standard_normal(len(time)) * np.exp(-since / 0.008) * (time >= begin)
            wave += 0.3 * force * clapper
            begin += beat * draw.uniform(0.95, 1.05)
    return wave


def main() -> None:
    """Render all phrases; existing files are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--soundfonts", type=Path, default=Path("/usr/share/sounds"), help="folder of sf2/ and sf3/")
    options = parser.parse_args()
    rows = []
    jobs = [(name, number, True) for name, count in SYNTHESIS.items() for number in range(count)]
    jobs += [(name, number, False) for name, spec in INSTRUMENTS.items() for number in range(spec[3])]
    jobs += [(name, number, False) for name, (_, count) in PERCUSSION.items() for number in range(count)]
    for done, (name, number, synthesis) in enumerate(jobs):
        draw, stem = random.Random(f"{name} {number}"), f"{name}/{'made' if synthesis else 'rendered'}_{number:03}"
        path = options.folder / f"{stem}.flac"
        if synthesis:
            way = siren if name == "police_siren" else church_bells
            made, source, note, author, licence = partial(way, draw), "render.py", "synthesis", "im2wav", "CC0 1.0"
        else:
            file = list(SOUNDFONTS)[number % len(SOUNDFONTS)]
            author, package = SOUNDFONTS[file]
            source, licence = f"{Path(file).name} (Debian package {package})", "MIT"
            if name in PERCUSSION:
                program, channel, events = draw.choice((0, 8, 16, 24)), DRUMS, drum_events(draw, PERCUSSION[name][0])
            else:
                programs, lowest, highest, _, voices = INSTRUMENTS[name]
                program, channel = programs[number // len(SOUNDFONTS) % len(programs)], 0
                events = note_events(draw, lowest, highest, voices)
            note = f"General MIDI program {program}"
            made = partial(render, events, program, channel, str(options.soundfonts / file))
        if not path.exists():
            wave = made()[: round(SECONDS * RATE)]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave / max(1e-6, np.abs(wave).max()) * draw.uniform(0.3, 0.9), RATE, subtype="PCM_16")
        fields = (f"{stem}.flac", name, stem.replace("/", "_"), SECONDS, "", author, licence, source, note, "")
        rows.append(dict(zip(COLUMNS, fields, strict=True)))
        if done % 50 == 0:
            sys.stderr.write(f"{done} of {len(jobs)}\n")
    with (options.folder / "sources.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


COLUMNS = ("file", "class", "group", "seconds", "original", "author", "licence", "source", "note", "yamnet_top")

if __name__ == "__main__":
    main()
