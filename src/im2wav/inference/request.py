"""Requests: one audio to generate, and the options it is generated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from im2wav.decoding import SamplingOptions
from im2wav.files import state_sha256
from im2wav.inference.inputs import ImageSource, Input, one_input
from im2wav.media.reading import read_audio

if TYPE_CHECKING:
    from im2wav.inference.code_buffer import Networks
    from im2wav.inference.outputs import GeneratedAudio

# the length of a VGGSound clip in samples: the low prior is conditioned on the length of the whole recording
DEFAULT_RECORDING = 160_000


@dataclass(frozen=True)
class Request:
    """One audio to generate.

    Attributes:
        input: what the audio is generated for.
        seed: same seed, same audio.
        number: of the audio among those of its input.
        samples: length of the audio; None for that of the input, else one window of the priors.
        overlap: fraction of a window that repeats the one before, for audio longer than a window.
        sampling: guidance, temperature, filters.
        recording: length in samples of the recordings that the low prior was trained on.
        sample_rate: Hz.
        negative: input that guidance moves away from, see `SamplingOptions.negative_scale`.
        known_codes: codes by level [T] at the start of the audio.
        inpaint_interval: samples (from, to) of the known codes to generate again; None for an audio continuation.

    Raises:
        ValueError: a value out of range, or an interval without known codes.
    """

    input: Input
    seed: int = 0
    number: int = 0
    samples: int | None = None
    overlap: float = 0.5
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    recording: int = DEFAULT_RECORDING
    sample_rate: int = 16000
    negative: Input | None = None
    known_codes: Mapping[str, Tensor] | None = None
    inpaint_interval: tuple[int, int] | None = None

    def __post_init__(self):
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: expected a fraction >= 0 and < 1")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"{self.samples} samples of audio: expected 1 or more")
        if self.inpaint_interval is not None and self.known_codes is None:
            raise ValueError("inpaint_interval needs the audio: set inpaint=AUDIO")

    def seconds(self, window: int) -> float:
        """Length of the audio, for priors with a window of `window` samples.

        Raises:
            MediaError: a video that cannot be read.
        """
        if self.samples is not None:
            return self.samples / self.sample_rate
        if self.input.images:
            return self.input.images[-1][1] + window / self.sample_rate  # one window for the last image
        return self.input.seconds() or window / self.sample_rate

    def resolve(self, window: int, **changes: Any) -> Request:
        """The request with its length in samples, and other changes.

        Raises:
            MediaError: a video that cannot be read.
        """
        request = replace(self, **changes)
        return replace(request, samples=round(request.seconds(window) * self.sample_rate))

    def identity(self) -> dict[str, Any]:
        """Everything except the networks that the audio depends on, as plain values; files by their content.

        Raises:
            MediaError: a file of the input is missing.
        """
        settings: dict[str, Any] = {**asdict(self.sampling), "overlap": self.overlap}
        if self.negative is not None:
            settings["negative_sha256"] = self.negative.sha256
        if self.known_codes is not None:
            name = "continue_from" if self.inpaint_interval is None else "inpaint"
            settings[f"{name}_sha256"] = state_sha256(self.known_codes)
        if self.inpaint_interval is not None:
            settings["inpaint_interval"] = [sample / self.sample_rate for sample in self.inpaint_interval]
        return {"input_sha256": self.input.sha256, "seed": self.seed, "samples": self.samples, "settings": settings}


def make_request(
    networks: Networks,
    item: Input,
    sampling: SamplingOptions,
    *,
    sample_rate: int,
    recording: int,
    seconds: float | None = None,
    overlap: float = 0.5,
    negative: ImageSource | None = None,
    negative_text: str | None = None,
    continue_from: str | Path | Tensor | None = None,
    inpaint: GeneratedAudio | str | Path | None = None,
    inpaint_interval: Sequence[float] | None = None,
) -> Request:
    """A request from the options of `sample` and of `Im2Wav.generate`; see there.

    Raises:
        ValueError: options out of range or that exclude each other, or a negative input without guidance.
        MediaError: an audio file that cannot be read.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds}: expected more than 0")
    if continue_from is not None and (inpaint is not None or inpaint_interval is not None):
        raise ValueError("continue_from cannot be combined with inpaint and inpaint_interval: set one of the two")
    if (inpaint is None) != (inpaint_interval is None) or (inpaint is not None and seconds is not None):
        raise ValueError("set inpaint=AUDIO together with inpaint_interval=[FROM,TO], and without seconds")
    away = None
    if negative is not None or negative_text is not None:
        away = one_input(negative, None, None, negative_text)
        if not networks.low.can_be_guided:
            raise ValueError(
                "a negative input needs guidance, but this low prior was trained without (condition_dropout=0)"
            )
    samples = None if seconds is None else round(seconds * sample_rate)
    request = Request(item, 0, 0, samples, overlap, sampling, recording, sample_rate, away)
    if continue_from is not None:
        wav = continue_from if isinstance(continue_from, Tensor) else read_audio(continue_from, sample_rate)
        return replace(request, known_codes=networks.encode(wav, pad=False))
    if inpaint is None or inpaint_interval is None:
        return request
    if isinstance(inpaint, str | Path):
        wav = read_audio(inpaint, sample_rate)
        codes = networks.encode(wav)
    else:
        wav, codes = inpaint.wav, dict(inpaint.codes)
    length = len(wav) / sample_rate
    if len(inpaint_interval) != 2 or not 0 <= inpaint_interval[0] < inpaint_interval[1] <= length:
        raise ValueError(
            f"inpaint_interval={list(inpaint_interval)}: expected two increasing seconds within the {length:.3f} s "
            "of the audio"
        )
    first, end = (round(x * sample_rate) for x in inpaint_interval)
    return replace(request, samples=len(wav), known_codes=codes, inpaint_interval=(first, end))
