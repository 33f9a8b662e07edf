"""Waveform <-> codes: two levels of discrete codes, from a VQ-VAE or from a residual codec. Torch only."""

from im2wav.codec.codec import LEVELS, AudioCodec, Codec, CodecOutput
from im2wav.codec.residual import ResidualCodec

__all__ = ["LEVELS", "AudioCodec", "Codec", "CodecOutput", "ResidualCodec"]
