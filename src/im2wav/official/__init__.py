"""The official Im2Wav's checkpoints -> ours: reading, translating, fetching."""

from im2wav.official.conversion import OfficialCheckpoint, convert_checkpoint
from im2wav.official.folder import convert_folder, fetch

__all__ = ["OfficialCheckpoint", "convert_checkpoint", "convert_folder", "fetch"]
