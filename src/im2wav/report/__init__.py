"""HTML pages, plots and tables for `demo`, `inspect`, `evaluate` and the training dashboard."""

from im2wav.report.page import Audio, Card, Cards, Image, Plot, Table, Text, inline_audio, inline_image, render_page

__all__ = ["Audio", "Card", "Cards", "Image", "Plot", "Table", "Text", "inline_audio", "inline_image", "render_page"]
