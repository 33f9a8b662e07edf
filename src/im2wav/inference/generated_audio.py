"""Generated audio, and the files that it is saved as."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from im2wav.files import wav_bytes, write_atomic
from im2wav.media.mux import mux

FORMATS = ("wav", "flac")


def write_sound(path: Path, wav: Tensor, sample_rate: int, about: Mapping[str, Any]) -> None:
    """Write wav [N] as `path` (.wav or .flac), and `about` as a .json beside it.

    Raises:
        ValueError: another suffix, or the files cannot be written.
    """
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join('.' + f for f in FORMATS)}")
    write_atomic(path, wav_bytes(wav, sample_rate, path.suffix[1:].upper()))
    write_about(path, about)


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write the .json beside an audio file."""
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True)
class Sound:
    """Generated audio.

    Attributes:
        wav: samples [N] in [-1, 1], on the CPU.
        sample_rate: Hz.
        draft: audio decoded from the codes of the low level only [N].
        codes: codes by level [T].
        about: how it was generated.
        video: the input, if it was a video.
    """

    wav: Tensor
    sample_rate: int
    draft: Tensor
    codes: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(repr=False)
    video: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Save it as .wav, .flac or, if the input was a video, .mp4, and `about` as a .json beside it.

        Raises:
            ValueError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".mp4":
            write_sound(path, self.wav, self.sample_rate, self.about)
        elif self.video is None:
            raise ValueError(f"{path}: the input was no video; save it as .wav or .flac")
        else:
            mux(self.video, self.wav, self.sample_rate, path)
            write_about(path, self.about)
        return path
