"""Waveform <-> codes: two levels of discrete codes from one VQ-VAE. Torch only."""

from im2wav.codec.codec import LEVELS, AudioCodec, CodecOutput

__all__ = ["LEVELS", "AudioCodec", "CodecOutput"]
