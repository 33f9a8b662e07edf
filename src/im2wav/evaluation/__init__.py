"""Metrics of generated audio, and reports."""
