"""Photos, recordings and spectrograms of the page to listen to, from the pairs that im2wav ships.

Beside them: what the starter model, or IM2WAV_DOCS_MODEL=DIR, generates for each photo, and its codec reconstruction.
"""

import csv
import functools
import io
import os
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import soundfile
import torch

from im2wav.report.plots import mel_image

PAIRS = Path(__file__).resolve().parents[2] / "src" / "im2wav" / "assets" / "pairs"
FOLDER = "listen"  # of the files in the site
SHOWN = (  # ids, one of each kind
    "djembe_drums_01",
    "didgeridoo_01",
    "opera_singing_01",
    "bell_01",
    "wolf_howl_01",
    "cow_04",
    "bird_02",
    "crickets_01",
    "helicopter_02",
    "car_passing_01",
    "running_stream_01",
    "baby_crying_01",
)
MODEL = os.environ.get("IM2WAV_DOCS_MODEL") or "starter"
SEED = 1
TITLES = ("Codec reconstruction", f"Generated for the photo, seed {SEED}")  # of what the model makes
MARK = "<!-- recordings -->"


@functools.cache
def rows() -> list[Mapping[str, str]]:
    """Rows of the manifest of the pairs that are shown, in their order."""
    with (PAIRS / "manifest.csv").open(encoding="utf-8", newline="") as file:
        found = {row["id"]: row for row in csv.DictReader(file)}
    return [found[name] for name in SHOWN]


def spectrogram(wav: torch.Tensor, sample_rate: int) -> bytes:
    """PNG of the log-mel spectrogram of wav [N]."""
    buffer = io.BytesIO()
    mel_image(wav, sample_rate).save(buffer, "png")
    return buffer.getvalue()


def flac(wav: torch.Tensor, sample_rate: int) -> bytes:
    """Samples [N] as a FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wav.numpy(), sample_rate, format="FLAC")
    return buffer.getvalue()


def read(path: Path) -> tuple[torch.Tensor, int]:
    """Samples [N], channels averaged, and the sample rate of an audio file."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples).mean(1), rate


@functools.cache
def model() -> Any:
    """The model whose audio is on the page."""
    from im2wav import Im2Wav

    return Im2Wav.from_pretrained(MODEL, device="cpu")


@functools.cache
def codec() -> Any:
    """Codec reconstruction of samples [N] at a sample rate, by that model."""
    from im2wav.checkpoint import find_weights
    from im2wav.evaluation.audio_files import AudioFileSet
    from im2wav.evaluation.evaluated_model import reconstruct
    from im2wav.hub import find_folder

    weights = find_weights(find_folder(MODEL))["codec"]
    return reconstruct(AudioFileSet("recordings", ()), weights, "cpu").process


def generated(row: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Title, samples and sample rate of what a model makes of a pair."""
    wav, rate = read(PAIRS / row["audio"])
    yield TITLES[0], codec()(wav, rate), rate
    audio = model().generate(PAIRS / row["image"], seed=SEED)
    yield TITLES[1], audio.wav, audio.sample_rate


@functools.cache
def files() -> dict[str, bytes]:
    """Path in the site -> content of all photos, audio files and spectrograms."""
    found: dict[str, bytes] = {}
    for row in rows():
        found[f"{FOLDER}/{row['id']}.jpg"] = (PAIRS / row["image"]).read_bytes()
        found[f"{FOLDER}/{row['id']}.flac"] = (PAIRS / row["audio"]).read_bytes()
        found[f"{FOLDER}/{row['id']}.png"] = spectrogram(*read(PAIRS / row["audio"]))
        for title, wav, rate in generated(row):
            name = f"{FOLDER}/{row['id']}-{slug(title)}"
            found |= {f"{name}.flac": flac(wav, rate), f"{name}.png": spectrogram(wav, rate)}
    return found


def slug(title: str) -> str:
    """A title as a part of a file name."""
    return re.sub(r"\W+", "-", title.lower())


def player(name: str, title: str, alt: str) -> str:
    """Spectrogram and audio player of one audio file of the site."""
    return (
        f'<figure class="player"><figcaption>{escape(title)}</figcaption>'
        f'<img class="spectrogram" src="../{name}.png" alt="Spectrogram: {escape(alt)}" loading="lazy">'
        f'<audio controls preload="none" src="../{name}.flac"></audio></figure>'
    )


def card(row: Mapping[str, str]) -> str:
    """Photo, players and authors of a pair."""
    name, label = f"{FOLDER}/{row['id']}", row["label"]
    titles = {name: "Recording"}
    titles |= {f"{name}-{slug(title)}": title for title in TITLES}
    credit = "".join(
        f"<li>{kind}: {link(row[f'{key}_author'])}, {escape(row[f'{key}_licence'])}</li>"
        for kind, key in (("Photo", "image"), ("Recording", "sound"))
    )
    players = "".join(player(path, title, f"{label}, {title.lower()}") for path, title in titles.items())
    return (
        f'<section class="pair"><h3 id="{row["id"]}">{escape(label)}</h3>'
        f'<img class="photo" src="../{name}.jpg" alt="{escape(label)}" loading="lazy">{players}'
        f'<ul class="credit">{credit}</ul></section>'
    )


def link(author: str) -> str:
    """An author with the address that follows the name as a link."""
    name, _, address = author.partition(" http")
    return f'<a href="http{escape(address)}">{escape(name)}</a>' if address else escape(name)


def fill(markdown: str) -> str:
    """Replace the mark of the page by the cards of all pairs."""
    cards = "\n".join(card(row) for row in rows())
    return markdown.replace(MARK, f'<div class="pairs">\n{cards}\n</div>')
