"""What sounds that are made together have in common."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from im2wav.decoding import SamplingOptions
from im2wav.files import state_sha256
from im2wav.inference.generated_audio import Sound
from im2wav.inference.inputs import Input, one_input
from im2wav.media import reading as media

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Settings:
    """What sounds that are made together have in common; see `make_settings`."""

    sampling: SamplingOptions
    seconds: float | None = None
    overlap: float = 0.5
    negative: Input | None = None
    given: Mapping[str, Tensor] | None = None
    replace: tuple[int, int] | None = None  # samples

    def plain(self) -> dict[str, Any]:
        """The settings as plain values; files by their content."""
        about: dict[str, Any] = {**asdict(self.sampling), "overlap": self.overlap}
        if self.negative is not None:
            about["negative_sha256"] = self.negative.sha256
        if self.given is not None:
            about["given_sha256"] = state_sha256(self.given)
            about["replace"] = None if self.replace is None else list(self.replace)
        return about


def make_settings(
    sampling: SamplingOptions,
    encode: Callable[..., dict[str, Tensor]],
    sample_rate: int,
    *,
    seconds: float | None = None,
    overlap: float = 0.5,
    negative: Picture | None = None,
    negative_text: str | None = None,
    prefix: str | Path | Tensor | None = None,
    edit: Sound | str | Path | None = None,
    replace: Sequence[float] | None = None,
) -> Settings:
    """What sounds have in common.

    Args:
        sampling: how codes are drawn.
        encode: samples [N] -> codes, see `Im2Wav.encode`.
        sample_rate: Hz.
        seconds: length; that of a video, else one window of the priors, where None.
        overlap: share of a window that repeats the one before, for sounds longer than a window.
        negative, negative_text: a photo or a text that sounds are guided away from.
        prefix: a sound that is to go on: a file, or samples [N] at the model's rate.
        edit, replace: a sound (as `generate` gave it, or a file), and the stretch of it, in seconds, that is to be
            made anew; what lies before and after is kept.

    Raises:
        ValueError: settings that do not fit each other.
        MediaError: a file that cannot be read.
    """
    away = None
    if negative is not None or negative_text is not None:
        away = one_input(negative, None, None, negative_text)
    common = Settings(sampling, seconds, overlap, away)
    if prefix is not None and (edit is not None or replace is not None):
        raise ValueError("a sound goes on (prefix) or is mended (edit and replace), not both")
    if prefix is not None:
        wav = prefix if isinstance(prefix, Tensor) else media.read_audio(prefix, sample_rate)
        return dataclasses.replace(common, given=encode(wav, whole=False))
    if edit is None and replace is None:
        return common
    if edit is None or replace is None or seconds is not None:
        raise ValueError("edit=SOUND and replace=[FROM,TO] go together; the sound keeps its length (no seconds)")
    if isinstance(edit, Sound):
        codes, samples = edit.codes, len(edit.wav)
    else:
        wav = media.read_audio(edit, sample_rate)
        codes, samples = encode(wav), len(wav)
    length = samples / sample_rate
    if len(replace) != 2 or not 0 <= replace[0] < replace[1] <= length:
        raise ValueError(f"replace={list(replace)}: expected two rising seconds within the sound's {length:.3f} s")
    first, end = (round(x * sample_rate) for x in replace)
    return dataclasses.replace(common, seconds=length, given=codes, replace=(first, end))
