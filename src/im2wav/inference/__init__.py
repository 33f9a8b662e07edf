"""Inputs and outputs of audio generation."""
