"""Figures over sounds, and pages that show them."""
