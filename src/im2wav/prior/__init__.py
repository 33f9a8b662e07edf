"""Codes given conditions: a sparse transformer over one level of codes. Torch only."""

from im2wav.prior.conditioning import Conditions, Timing
from im2wav.prior.prior import DecodeState, Prior

__all__ = ["Conditions", "DecodeState", "Prior", "Timing"]
