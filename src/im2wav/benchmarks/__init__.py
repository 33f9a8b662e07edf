"""Benchmarks; results stand beside limits measured in the same run."""
