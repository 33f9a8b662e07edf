"""A codec without gradients, to compare trained ones with: k-means codes of mel spectra, and Griffin-Lim.

    python experiments/starter/kmeans_codec.py data/starter/pairs test OUT
    python -m im2wav.evaluate generated=OUT/generated reference=OUT/reference labels=OUT/labels.csv seconds=4.096

80 mel bands of 40 ms windows at 100 Hz, two frames side by side at 50 Hz, 6 codebooks of 1,024 (3 kbit/s); mel spectra
are inverted without negative values (30 multiplicative updates), then 2 iterations of Griffin-Lim.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from im2wav.codec.losses import mel_filters
from im2wav.codec.quantizer import k_means, nearest_rows
from im2wav.data.pairs import PairsFolder

RATE, WINDOW, HOP, BANDS, LATENT, BOOKS, CODES = 16000, 640, 160, 80, 64, 6, 1024
FILTERS = torch.from_numpy(mel_filters(WINDOW, BANDS, RATE)).t()  # [bands, bins]
HANN = torch.hann_window(WINDOW)


def spectrum(wav: Tensor) -> Tensor:
    """Samples [N] -> complex [bins, frames]."""
    return torch.stft(wav, WINDOW, HOP, WINDOW, HANN, return_complex=True)


def features(wav: Tensor) -> Tensor:
    """Log mel spectra of pairs of frames, [T, 2 * BANDS]."""
    mel = (FILTERS @ spectrum(wav).abs()).clamp_min(1e-3).log()
    return mel[:, : mel.shape[1] // 2 * 2].t().reshape(-1, 2 * BANDS)


def waveform(log_mel: Tensor, length: int) -> Tensor:
    """The inverse of `features`: [T, 2 * BANDS] -> [N]."""
    mel = log_mel.reshape(-1, BANDS).t().exp()
    magnitude = (FILTERS.t() @ mel).clamp_min(1e-6)
    for _ in range(30):
        magnitude = magnitude * (FILTERS.t() @ mel) / (FILTERS.t() @ (FILTERS @ magnitude)).clamp_min(1e-9)
    size = min(length, (mel.shape[1] - 1) * HOP)
    phase = torch.polar(torch.ones_like(magnitude), 2 * np.pi * torch.rand_like(magnitude))
    for _ in range(3):
        wav = torch.istft(magnitude * phase, WINDOW, HOP, WINDOW, HANN, length=size)
        again = spectrum(wav)[:, : magnitude.shape[1]]
        phase = again / again.abs().clamp_min(1e-8)
    return wav


def main() -> None:
    """Train the codebooks on the training split, and write the recordings of another one and their reconstructions."""
    root, split, out = sys.argv[1:]
    torch.manual_seed(0)
    folder = PairsFolder(root)
    training = torch.cat([features(folder.read_wav(pair)) for pair in folder.pairs if pair.split == "train"])
    mean = training.mean(0)
    components = (
        torch.linalg.eigh(((training - mean).t() @ (training - mean)).double()).eigenvectors[:, -LATENT:].float()
    )
    rest, books = (training - mean) @ components, []
    for _ in range(BOOKS):
        books.append(k_means(rest, CODES)[0])
        rest = rest - books[-1][nearest_rows(rest, books[-1])[0]]
    for name in ("generated", "reference"):
        (Path(out) / name).mkdir(parents=True, exist_ok=True)
    with (Path(out) / "labels.csv").open("w", newline="") as file:
        labels = csv.writer(file)
        labels.writerow(["id", "label"])
        for pair in folder.pairs:
            if pair.split != split:
                continue
            wav = folder.read_wav(pair)
            rest, total = (features(wav) - mean) @ components, torch.zeros(1)
            for book in books:
                part = book[nearest_rows(rest, book)[0]]
                rest, total = rest - part, total + part
            made = waveform(total @ components.t() + mean, len(wav)).clamp(-1, 1)
            for name, samples in (("generated", made), ("reference", wav)):
                soundfile.write(Path(out) / name / f"{pair.id}.wav", samples.numpy(), RATE, subtype="PCM_16")
            labels.writerow([pair.id, pair.label])


if __name__ == "__main__":
    main()
