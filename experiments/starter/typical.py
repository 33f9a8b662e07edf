"""How typical is each recording of its label, for a classifier that has not heard the recording?

    python experiments/starter/typical.py PAIRS typical.csv

Recordings of one label differ: a door that is knocked on, another that creaks. `manifest.py --most` keeps the most
typical ones. A small network learns the labels from statistics of log-mel spectrograms and of the pitch; each recording
is scored by networks that were trained without its group. No pretrained network takes part, so that what measures the
model has not selected its data.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from im2wav.data.manifest import Pair
from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import extend_wav

RATE, WINDOW, STEP, MOST = 16000, 32640, 16320, 5  # windows of 2.04 s; at most 5 of each recording
FOLDS, SEEDS, EPOCHS, BATCH = 8, 3, 40, 128
FRAME, HOP, LAGS = 640, 320, slice(32, 400)  # of the autocorrelation: 40 to 500 Hz
QUANTILES = (0.1, 0.5, 0.9)


class Statistics:
    """Numbers that describe a window of audio [T], at any level: spectrum, its changes, rhythm, pitch."""

    def __init__(self) -> None:
        self.mel = torchaudio.transforms.MelSpectrogram(RATE, 512, hop_length=160, n_mels=64, f_min=60)

    def __call__(self, wav: Tensor) -> Tensor:
        """A vector."""
        wav = (wav * (0.1 / wav.square().mean().sqrt().clamp_min(1e-5))).clamp(-1, 1)
        mel = (self.mel(wav[None])[0] + 1e-5).log()
        level, change = mel.mean(0), mel.diff(dim=1)
        loud = mel[:, level >= level.median()].mean(1)
        rhythm = torch.fft.rfft(level - level.mean(), n=256).abs()[1:65].log1p()
        cepstrum = torch.fft.rfft(loud - loud.mean()).abs()[1:]
        flatness = mel.mean(0) - mel.exp().mean(0).log()
        frames = wav.unfold(0, FRAME, HOP)
        power = torch.fft.rfft(frames - frames.mean(1, keepdim=True), n=2 * FRAME).abs().square()
        correlation = torch.fft.irfft(power)[:, :FRAME]
        pitch = (correlation / correlation[:, :1].clamp_min(1e-6))[:, LAGS].amax(1)
        loudest = (level > level.max() - 3).float().mean()
        moments = (pitch.mean(), pitch.std(), pitch.quantile(0.9), flatness.mean(), flatness.std(), level.std())
        quantiles = mel.quantile(torch.tensor(QUANTILES), dim=1).flatten()
        parts = (loud, mel.std(1), change.abs().mean(1), quantiles, rhythm, cepstrum, torch.stack((*moments, loudest)))
        return torch.cat(parts).nan_to_num()


def windows(wav: Tensor) -> list[Tensor]:
    """The beginning of a recording, and more windows of a long one."""
    last = len(wav) - WINDOW
    starts = range(0, last + 1, STEP)[:MOST] if last > STEP // 2 else (0,)
    return [extend_wav(wav[start : start + WINDOW], WINDOW, "loop") for start in starts]


def train(inputs: Tensor, labels: Tensor, weights: Tensor, seed: int) -> nn.Module:
    """A classifier of rows [N, D] with labels [N]."""
    torch.manual_seed(seed)
    layers = nn.Linear(inputs.shape[1], 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, len(weights))
    net = nn.Sequential(nn.Dropout(0.2), *layers)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            noisy = inputs[rows] + 0.1 * torch.randn_like(inputs[rows])
            loss = F.cross_entropy(net(noisy), labels[rows], weight=weights, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def held_out_scores(inputs: Tensor, labels: Tensor, groups: Sequence[str]) -> Tensor:
    """Probabilities of all labels [N, C] for each row, from networks that were trained without its group."""
    part = torch.tensor([int(hashlib.sha256(group.encode()).hexdigest(), 16) % FOLDS for group in groups])
    weights = labels.bincount().clamp_min(1).rsqrt()
    scores = torch.zeros(len(inputs), len(weights))
    for number in range(FOLDS):
        held = part == number
        for seed in range(SEEDS):
            net = train(inputs[~held], labels[~held], weights, seed)
            with torch.inference_mode():
                scores[held] += net(inputs[held]).softmax(1) / SEEDS
    return scores


def main() -> None:
    """Write the probability of its label for the beginning of each training recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="pairs folder of all recordings")
    parser.add_argument("out", type=Path, help="CSV file to write: id, score")
    given = parser.parse_args()
    folder, statistics = PairsFolder(given.pairs), Statistics()
    found: list[tuple[Pair, Tensor, bool]] = []
    for pair in folder.pairs:
        if pair.split == "train":
            parts = [statistics(window) for window in windows(folder.read_wav(pair))]
            found += [(pair, part, number == 0) for number, part in enumerate(parts)]
    names = sorted({pair.label for pair, _, _ in found})
    labels = torch.tensor([names.index(pair.label) for pair, _, _ in found])
    inputs = torch.stack([part for _, part, _ in found])
    inputs = (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-4)
    scores = held_out_scores(inputs, labels, [pair.group for pair, _, _ in found])
    own = scores.gather(1, labels[:, None])[:, 0].tolist()
    with given.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(("id", "score"))
        csv.writer(file).writerows(
            (pair.id, f"{score:.4f}") for (pair, _, first), score in zip(found, own, strict=True) if first
        )
    right = (scores.argmax(1) == labels).float().mean()
    sys.stdout.write(f"{len(names)} labels, {len(found)} windows: right for {right:.3f}\n")


if __name__ == "__main__":
    main()
