"""Priors: transformers over one level of codes, given conditions. Torch only."""

from im2wav.prior.conditioning import Conditions, Timing
from im2wav.prior.masked import MaskedPrior
from im2wav.prior.transformer import CodePrior, Prior

__all__ = ["CodePrior", "Conditions", "MaskedPrior", "Prior", "Timing"]
