"""Log-mel spectrograms of waveforms, as numbers and as images."""

import numpy as np
import torchaudio.transforms
from PIL import Image
from torch import Tensor

DYNAMIC_RANGE = 20.0  # dB below the maximum; weaker values count as silence, to ignore faint noise
# colour map from dark to bright, evenly spaced stops
COLOURS = np.array([[4, 3, 20], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], float)


def log_mel(wav: Tensor, sample_rate: int, dynamic_range: float = DYNAMIC_RANGE, frame: float = 0.064) -> Tensor:
    """Log-mel spectrogram of wav [N]: [frames, 64], in dB above the maximum minus `dynamic_range`; 0 is silence.

    64 mel bands, Hann frames of `frame` seconds, half overlapping. The maximum is `dynamic_range`, so that the
    result does not depend on the loudness of the audio.
    """
    window = int(sample_rate * frame)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=window, hop_length=window // 2, n_mels=64, norm="slaney", mel_scale="htk"
    )
    decibels = 10 * mel(wav.float()).clamp_min(1e-10).log10()
    return (decibels - decibels.max() + dynamic_range).clamp_min(0).T


def mel_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """Mel spectrogram of wav [N]: time to the right, frequency upwards, 50 dB from dark to bright."""
    level = log_mel(wav, sample_rate, dynamic_range=50.0, frame=0.032).numpy().T[::-1] / 50.0
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, stops, COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))
