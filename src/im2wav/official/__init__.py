"""The official Im2Wav's checkpoints -> ours: reading, translating, fetching."""

from im2wav.official.folder import convert_folder, fetch
from im2wav.official.weights import Official, convert

__all__ = ["Official", "convert", "convert_folder", "fetch"]
