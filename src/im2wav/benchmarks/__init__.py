"""Speed, each figure as a ratio to a limit that is measured in the same run."""

from im2wav.benchmarks.row import Row

__all__ = ["Row"]
