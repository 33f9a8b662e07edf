"""Codes given conditions: a sparse transformer over one level of codes. Torch only."""

from im2wav.prior.conditioning import Conditions, Timing
from im2wav.prior.prior import Prior

__all__ = ["Conditions", "Prior", "Timing"]
