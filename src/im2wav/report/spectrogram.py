"""Log-mel spectrograms of waveforms, as numbers and as images."""

import numpy as np
import torchaudio.transforms
from PIL import Image
from torch import Tensor

FLOOR = 20.0  # dB under the loudest cell; what is weaker counts as silence, so that faint hiss does not decide
# dark to bright over violet and orange, at even distances
COLOURS = np.array([[4, 3, 20], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], float)


def log_mel(wav: Tensor, sample_rate: int, floor: float = FLOOR, frame: float = 0.064) -> Tensor:
    """Log-mel spectrogram of wav [N]: [frames, 64], in dB above `floor` dB under the loudest cell; 0 is silence.

    64 mel bands, Hann frames of `frame` seconds, half overlapping. The loudest cell comes to `floor`, so that the
    loudness of the whole audio does not count.
    """
    window = int(sample_rate * frame)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=window, hop_length=window // 2, n_mels=64, norm="slaney", mel_scale="htk"
    )
    decibels = 10 * mel(wav.float()).clamp_min(1e-10).log10()
    return (decibels - decibels.max() + floor).clamp_min(0).T


def mel_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """Mel spectrogram of wav [N]: time to the right, frequency upwards, 50 dB from dark to bright."""
    level = log_mel(wav, sample_rate, floor=50.0, frame=0.032).numpy().T[::-1] / 50.0
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, stops, COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))
