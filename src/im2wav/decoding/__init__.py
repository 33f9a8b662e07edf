"""Autoregressive decoding: drawing codes from a prior, one position after another, with a KV cache."""

from im2wav.decoding.decoder import Decoder, sample_codes
from im2wav.decoding.sampler import SamplingOptions
from im2wav.decoding.state import DecodeState

__all__ = ["DecodeState", "Decoder", "SamplingOptions", "sample_codes"]
