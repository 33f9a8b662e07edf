"""One sound and how it was made: what the Python API gives, and the files that it becomes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from im2wav.data.pairs import wav_bytes, write_atomic
from im2wav.data.video import mux

FORMATS = ("wav", "flac")


def write_sound(path: Path, wav: Tensor, sample_rate: int, about: Mapping[str, Any]) -> None:
    """Write wav [N] as `path` (.wav or .flac) and what is known of it as a .json beside.

    Raises:
        ValueError: another suffix, or it cannot be written.
    """
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends with one of {', '.join('.' + f for f in FORMATS)}")
    write_atomic(path, wav_bytes(wav, sample_rate, path.suffix[1:].upper()))
    write_about(path, about)


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write the .json beside a sound."""
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True)
class Sound:
    """A generated sound.

    Attributes:
        wav: samples [N] in [-1, 1], on the CPU.
        sample_rate: Hz.
        draft: the same from the coarse codes alone [N].
        codes: by level [T].
        about: how it was made.
        video: the video that it belongs to.
    """

    wav: Tensor
    sample_rate: int
    draft: Tensor
    codes: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(repr=False)
    video: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Write it as .wav, .flac or, where it belongs to a video, .mp4, and how it was made as a .json beside.

        Raises:
            ValueError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".mp4":
            write_sound(path, self.wav, self.sample_rate, self.about)
        elif self.video is None:
            raise ValueError(f"{path}: this sound was made for no video; save it as .wav or .flac")
        else:
            mux(self.video, self.wav, self.sample_rate, path)
            write_about(path, self.about)
        return path
