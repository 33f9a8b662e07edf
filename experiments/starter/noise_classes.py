"""Do noises come back from a codec as noise? `python experiments/starter/noise_classes.py CODEC PAIRS`.

For the held-out recordings of noisy classes: spectral flatness (1 for white noise, 0 for a tone), and the largest peak
of the mean spectrum over its neighbourhood in dB, which tones that last would raise; of recording, level up, level low.
"""

import sys
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.checkpoint import load_net
from im2wav.data.pairs import PairsFolder

CLASSES = (
    "rain",
    "waterfall",
    "motorcycle",
    "sea_waves",
    "wind",
    "stream",
    "fire",
    "applause",
    "airplane",
    "helicopter",
)


def measures(wav: Tensor) -> list[float]:
    """Flatness and largest peak of samples [N]; frames 30 dB below the loudest do not count."""
    power = torch.stft(wav, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs().square()[8:480] + 1e-9
    loud = power.sum(0)
    power = power[:, loud > loud.max() * 1e-3]
    flatness = (power.log().mean(0).exp() / power.mean(0)).mean()
    mean = power.mean(1)
    around = F.avg_pool1d(mean[None, None], 31, 1, 15, count_include_pad=False)[0, 0]
    return [float(flatness), float((10 * (mean / around).log10()).max())]


@torch.inference_mode()
def main() -> None:
    """Print a row for each class, and the mean of all recordings."""
    codec, folder = load_net(sys.argv[1], "vqvae"), PairsFolder(sys.argv[2])
    found = defaultdict(list)
    for pair in folder.pairs:
        if pair.split == "train" or pair.label not in CLASSES or pair.samples < 3200:
            continue
        wav = folder.read_wav(pair)
        wav = wav[: len(wav) // 320 * 320]
        codes = codec.encode(wav[None, None])
        versions = [wav, *(codec.decode(codes, level)[0, 0] for level in ("up", "low"))]
        found[pair.label].append([value for version in versions for value in measures(version)])
    found["all"] = [row for rows in found.values() for row in rows]
    sys.stdout.write("label, recordings: flatness of recording, up, low; peak in dB of recording, up, low\n")
    for label, rows in found.items():
        m = torch.tensor(rows).mean(0)
        sys.stdout.write(
            f"{label:12} {len(rows):3}: {m[0]:.3f} {m[2]:.3f} {m[4]:.3f}; {m[1]:.1f} {m[3]:.1f} {m[5]:.1f}\n"
        )


if __name__ == "__main__":
    main()
