"""Hearing pictures: generate the sound that belongs to a photo or a video."""
