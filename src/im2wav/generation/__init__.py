"""Inference: from image embeddings to a wave. Neither Lightning nor Hydra."""

from im2wav.generation.pipeline import Generated, Request, generate
from im2wav.generation.sampling import SamplingOptions

__all__ = ["Generated", "Request", "SamplingOptions", "generate"]
