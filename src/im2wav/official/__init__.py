"""Download and convert the official Im2Wav checkpoints."""

from im2wav.official.conversion import OfficialCheckpoint, convert_checkpoint
from im2wav.official.folder import convert_folder, fetch

__all__ = ["OfficialCheckpoint", "convert_checkpoint", "convert_folder", "fetch"]
