"""LightningModules of the three models, learning-rate schedules and callbacks."""

from im2wav.training.priors import LowPrior, UpPrior
from im2wav.training.vqvae import VQVAE

__all__ = ["VQVAE", "LowPrior", "UpPrior"]
