"""Loudness in LUFS, as broadcasters and streaming services measure it: ITU-R BS.1770 (EBU R 128)."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

SHORTEST = 0.4  # seconds; the loudness is a mean over blocks of this length


def check_loudness_options(seconds: float) -> None:
    """Check that the loudness of audio of this length can be measured.

    Raises:
        ValueError: the audio is too short, or `pyloudnorm` is not installed.
    """
    _load_meter()
    if seconds < SHORTEST:
        raise ValueError(f"loudness= needs at least {SHORTEST} s of audio; {seconds:g} s are to be generated")


def _load_meter() -> Any:
    try:
        import pyloudnorm
    except ImportError:
        raise ValueError("loudness= needs the package pyloudnorm: pip install 'im2wav[loudness]'") from None
    return pyloudnorm


def normalise_loudness(wav: Tensor, sample_rate: int, target: float, peak_limit: float) -> tuple[Tensor, dict]:
    """Scale audio to a loudness, or less where its peak would exceed the limit.

    Args:
        wav: samples [N] in [-1, 1], at least `SHORTEST` seconds.
        sample_rate: Hz.
        target: integrated loudness in LUFS.
        peak_limit: highest sample peak in dBFS.

    Returns:
        The scaled audio, and as plain values its loudness in LUFS (None: silent, not scaled) and the gain in dB.
    """
    meter = _load_meter().Meter(sample_rate)
    with warnings.catch_warnings():  # of a logarithm of zero, for silent audio
        warnings.simplefilter("ignore")
        measured = float(meter.integrated_loudness(wav.double().numpy()))
    if not np.isfinite(measured):
        return wav, {"loudness": None, "gain_db": 0.0}
    gain = min(target - measured, peak_limit - 20 * float(np.log10(wav.abs().max().item())))
    return wav * 10 ** (gain / 20), {"loudness": round(measured + gain, 2), "gain_db": round(gain, 2)}
