"""Pairs folder -> batches."""
