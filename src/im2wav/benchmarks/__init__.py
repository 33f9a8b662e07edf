"""Benchmarks; results are ratios to limits measured in the same run."""

from im2wav.benchmarks.row import Row

__all__ = ["Row"]
