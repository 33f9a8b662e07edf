"""Inference: from image embeddings to a wave. Neither Lightning nor Hydra."""

from im2wav.generation.decode import Decoder, Decoding, sample_codes
from im2wav.generation.pipeline import Generated, Request, generate
from im2wav.generation.sampling import SamplingOptions

__all__ = ["Decoder", "Decoding", "Generated", "Request", "SamplingOptions", "generate", "sample_codes"]
