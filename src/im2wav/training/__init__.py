"""Lightning lives here: the three modules that are trained, their schedules and callbacks."""

from im2wav.training.priors import LowPrior, UpPrior
from im2wav.training.vqvae import VQVAE

__all__ = ["VQVAE", "LowPrior", "UpPrior"]
