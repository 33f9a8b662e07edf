"""How much of the audio that a model generates for labels is copied from its training recordings, and how varied is it?

    python experiments/starter/memorisation.py MODEL PAIRS OUT [--codec CODEC] [--sounds 8] [temperature=0.9 ...]
    python -m im2wav.evaluate generated=OUT/generated reference=OUT/reference labels=OUT/labels.csv

For one pseudo-embedding of each ImageHear label it generates audio with several seeds, and prints, for each label and
in the mean: the fraction of the low codes that agree with the nearest training sequence (first codebook, and all); the
mean distance of log-mel spectrograms between the seeds over that between recordings of the label; and the fraction of
the sounds that are nearer to a training recording than a changed copy of that recording is (augment.py). Distances are
1 - cosine over the best alignment.
"""

import argparse
import csv
import random
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
import torch
from augment import changed
from baselines import training_label
from numpy.typing import NDArray
from torch import Tensor

from im2wav import Im2Wav
from im2wav.checkpoint import load
from im2wav.data.manifest import Pair
from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import CodesFolder, extend_wav
from im2wav.decoding.sampler import item_seed
from im2wav.evaluation.imagehear import class_names
from im2wav.evaluation.metrics import best_cosine
from im2wav.inference.api import Runner
from im2wav.inference.inputs import Input
from im2wav.inference.request import make_request
from im2wav.report.plots import log_mel


class TrainingCodes:
    """Low codes of all training recordings, which `tokenize` has written."""

    def __init__(self, folder: PairsFolder, codec: torch.nn.Module, window: int):
        cache = CodesFolder(folder.root, codec, window, "loop")
        parts = [np.load(cache.path(pair, "low"), mmap_mode="r") for pair in folder.pairs if pair.split == "train"]
        self.codes = np.concatenate([part.reshape(len(part), -1) for part in parts])
        self.left = np.concatenate([np.arange(len(part), 0, -1) for part in parts])  # frames to the end of a recording

    def agreement(self, codes: NDArray) -> tuple[float, float]:
        """Fraction of codes [T, Q] that equal those of the nearest sequence: of the first codebook, and of all."""
        starts = np.flatnonzero(self.left >= len(codes))
        equal = np.zeros((codes.shape[1], len(starts)), np.int16)
        for place, row in enumerate(codes):
            equal += (self.codes[starts + place] == row).T
        return float(equal[0].max() / len(codes)), float(equal.mean(0).max() / len(codes))


def distance(one: Tensor, other: Tensor) -> float:
    """1 - cosine of log-mel spectrograms [T, bands] over the best alignment."""
    short, long = sorted((one, other), key=len)
    return 1 - float(best_cosine(short[None], long[None]))


def mean_distance(mels: list[Tensor]) -> float:
    """Of all pairs."""
    return float(np.mean([distance(a, b) for a, b in combinations(mels, 2)]))


def generate(model: Im2Wav, folder: PairsFolder, pair: Pair, count: int, options: dict[str, float]) -> list:
    """Audio with the codes of several seeds for the embedding of a pair."""
    item = Input(pair.id, "pair", folder.root, pair=(folder, pair))
    first = make_request(model, item, model.sampling(options)).resolve(model.networks.window)
    group = [first.resolve(0, seed=item_seed(0, pair.id, k), number=k) for k in range(count)]
    runner = Runner(model, batch_size=count, hide_progress=True)
    return runner.generate([runner.buffers(group)])[0]


def main() -> None:
    """Generate, measure, print a row for each label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("pairs", help="the pairs folder that it was trained on, with cached codes")
    parser.add_argument("out", type=Path, help="folder of the audio")
    parser.add_argument("--codec", help="the codec that has written the cached codes; by default that of the model")
    parser.add_argument("--labels", type=int, default=30, help="number of labels")
    parser.add_argument("--sounds", type=int, default=8, help="sounds for each label")
    parser.add_argument("options", nargs="*", help="such as temperature=0.9 guidance_scale=3")
    given = parser.parse_intermixed_args()
    options = {key: float(value) for key, value in (word.split("=") for word in given.options)}
    folder, model = PairsFolder(given.pairs), Im2Wav.from_pretrained(given.model, device="cpu")
    codec = load(given.codec, "vqvae").net if given.codec else model.networks.codec
    rate, training = model.sample_rate, TrainingCodes(folder, codec, model.networks.window)
    for name in ("generated", "reference"):
        (given.out / name).mkdir(parents=True, exist_ok=True)
    names = [training_label(name) for name in class_names()][: given.labels]
    figures, labels = [], []
    for name in names:
        pairs = [pair for pair in folder.pairs if pair.label == name]
        chosen = ([pair for pair in pairs if pair.split != "train"] or pairs)[0]
        recordings = [p for p in pairs if p.split == "train" and "_changed" not in p.id]
        waves = [extend_wav(folder.read_wav(p), model.networks.window, "loop") for p in recordings]
        mels = [log_mel(wav, rate) for wav in waves]
        made = generate(model, folder, chosen, given.sounds, options)
        agreement = [training.agreement(audio.codes["low"].flatten(1).numpy()) for audio in made]
        own = [log_mel(audio.wav, rate) for audio in made]
        copies = 0
        for mel in own:
            nearest = min(range(len(mels)), key=lambda k, mel=mel: distance(mel, mels[k]))
            copy = torch.from_numpy(changed(waves[nearest].numpy(), random.Random(nearest))).float()
            copies += distance(mel, mels[nearest]) < distance(log_mel(copy[: len(made[0].wav)], rate), mels[nearest])
        some = mels[:: max(1, len(mels) // 8)][:8]
        variety = mean_distance(own) / mean_distance(some)
        figures.append((*np.mean(agreement, 0), variety, copies / len(own)))
        sys.stdout.write(f"{name:14}" + " ".join(f"{value:.2f}" for value in figures[-1]) + "\n")
        for number, audio in enumerate(made):
            stem = f"{name}_{number:02}"
            soundfile.write(given.out / "generated" / f"{stem}.wav", audio.wav.numpy(), rate, subtype="PCM_16")
            wave = waves[number % len(waves)].numpy()
            soundfile.write(given.out / "reference" / f"{stem}.wav", wave, rate, subtype="PCM_16")
            labels.append((stem, name.removesuffix("_siren")))
    with (given.out / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *labels])
    mean = np.mean(figures, 0)
    sys.stdout.write(
        f"agreement of the first codebook {mean[0]:.3f}, of all low codes {mean[1]:.3f}; variety {mean[2]:.2f} (least "
        f"{min(f[2] for f in figures):.2f}); nearer than a changed copy {mean[3]:.2f}\n"
    )


if __name__ == "__main__":
    main()
