"""Priors: sparse transformers over one level of codes, given conditions. Torch only."""

from im2wav.prior.conditioning import Conditions, Timing
from im2wav.prior.transformer import Prior

__all__ = ["Conditions", "Prior", "Timing"]
