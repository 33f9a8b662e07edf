"""Decoding: drawing codes from a prior, one position after another with a KV cache, or in parallel passes."""

from im2wav.decoding.decoder import Decoder, make_decoder, sample_codes
from im2wav.decoding.parallel import ParallelDecoder, ParallelState
from im2wav.decoding.sampler import SamplingOptions
from im2wav.decoding.state import DecodeState

__all__ = [
    "DecodeState",
    "Decoder",
    "ParallelDecoder",
    "ParallelState",
    "SamplingOptions",
    "make_decoder",
    "sample_codes",
]
