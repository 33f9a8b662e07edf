"""Inference: from image embeddings to a wave. Neither Lightning nor Hydra."""

from im2wav.generation.decode import Decoder, sample_codes
from im2wav.generation.decoding import Decoding
from im2wav.generation.drafts import Draft, draft_and_refine
from im2wav.generation.pipeline import Generated, generate
from im2wav.generation.request import Clip, Models, Request
from im2wav.generation.sampling import SamplingOptions
from im2wav.generation.streaming import stream

__all__ = [
    "Clip",
    "Decoder",
    "Decoding",
    "Draft",
    "Generated",
    "Models",
    "Request",
    "SamplingOptions",
    "draft_and_refine",
    "generate",
    "sample_codes",
    "stream",
]
