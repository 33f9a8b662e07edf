"""One audio to generate: the request, the windows it is drawn in, and its codes while they are drawn.

Windows slide over a sequence of codes. Each starts with codes that are drawn already. Source: Im2Wav (Sheffer & Adi,
2022), sample.py; the scheme is Jukebox's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from im2wav.codec import LEVELS
from im2wav.decoding import SamplingOptions
from im2wav.decoding.sampler import uniforms
from im2wav.files import state_sha256
from im2wav.inference.inputs import ImageSource, Input, one_input
from im2wav.media.reading import read_audio
from im2wav.prior import Conditions, Timing

if TYPE_CHECKING:
    from im2wav.decoding.decoder import Networks
    from im2wav.inference.api import Im2Wav
    from im2wav.inference.generate import GeneratedAudio


@dataclass(frozen=True)
class Request:
    """One audio to generate.

    Attributes:
        input: what the audio is generated for.
        seed: same seed, same audio.
        number: of the audio among those of its input.
        samples: length of the audio; None for that of the input, else one window of the priors.
        sampling: guidance, temperature, filters, overlap of windows.
        recording: length in samples of the recordings that the low prior was trained on, which it is conditioned on;
            by default that of VGGSound.
        sample_rate: Hz.
        negative: input that guidance moves away from, see `SamplingOptions.negative_scale`.
        known_codes: codes by level, [T] or [T, Q], at the start of the audio.
        inpaint_interval: samples (from, to) of the known codes to generate again; None for an audio continuation.

    Raises:
        ValueError: a value out of range, or an interval without known codes.
    """

    input: Input
    seed: int = 0
    number: int = 0
    samples: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    recording: int = 160_000
    sample_rate: int = 16000
    negative: Input | None = None
    known_codes: Mapping[str, Tensor] | None = None
    inpaint_interval: tuple[int, int] | None = None

    def __post_init__(self):
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"{self.samples} samples of audio: expected 1 or more")
        if self.inpaint_interval is not None and self.known_codes is None:
            raise ValueError("inpaint_interval needs the audio: set inpaint=AUDIO")

    @property
    def seconds(self) -> float:
        """Length of the audio, once it is resolved."""
        return (self.samples or 0) / self.sample_rate

    def resolve(self, window: int, **changes: Any) -> Request:
        """The request with other changes and its length in samples, for priors with a window of `window` samples.

        Raises:
            MediaError: a video that cannot be read.
        """
        request = replace(self, **changes)
        if request.samples is not None:
            return request
        seconds = request.input.seconds() or window / self.sample_rate
        if request.input.images:
            seconds += request.input.images[-1][1]  # one window for the last image
        return replace(request, samples=round(seconds * self.sample_rate))

    def identity(self) -> dict[str, Any]:
        """Everything except the networks that the audio depends on, as plain values; files by their content.

        Raises:
            MediaError: a file of the input is missing.
        """
        later = {"up_condition": "window", "passes": 2, "up_temperature": None}  # of older versions: as without them
        settings: dict[str, Any] = {k: v for k, v in asdict(self.sampling).items() if later.get(k) != v}
        if self.negative is not None:
            settings["negative_sha256"] = self.negative.sha256
        if self.known_codes is not None:
            name = "continue_from" if self.inpaint_interval is None else "inpaint"
            settings[f"{name}_sha256"] = state_sha256(self.known_codes)
        if self.inpaint_interval is not None:
            settings["inpaint_interval"] = [sample / self.sample_rate for sample in self.inpaint_interval]
        return {"input_sha256": self.input.sha256, "seed": self.seed, "samples": self.samples, "settings": settings}


def make_request(
    model: Im2Wav,
    item: Input,
    sampling: SamplingOptions,
    *,
    seconds: float | None = None,
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
    rate, networks = model.sample_rate, model.networks
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
    samples = None if seconds is None else round(seconds * rate)
    request = Request(item, 0, 0, samples, sampling, model.recording, rate, away)
    if continue_from is not None:
        wav = continue_from if isinstance(continue_from, Tensor) else read_audio(continue_from, rate)
        try:
            return replace(request, known_codes=networks.encode(wav, pad=False))
        except ValueError as error:
            named = "" if isinstance(continue_from, Tensor) else f"={continue_from}"
            raise ValueError(f"continue_from{named}: {error}") from error
    if inpaint is None or inpaint_interval is None:
        return request
    if isinstance(inpaint, str | Path):
        wav = read_audio(inpaint, rate)
        codes = networks.encode(wav)
    else:
        wav, codes = inpaint.wav, dict(inpaint.codes)
    length = len(wav) / rate
    if len(inpaint_interval) != 2 or not 0 <= inpaint_interval[0] < inpaint_interval[1] <= length:
        raise ValueError(
            f"inpaint_interval={list(inpaint_interval)}: expected two increasing seconds within the {length:.3f} s "
            "of the audio"
        )
    first, end = (round(x * rate) for x in inpaint_interval)
    return replace(request, samples=len(wav), known_codes=codes, inpaint_interval=(first, end))


class Window(NamedTuple):
    """Draws codes `first` to `end` of a sequence; the context starts at `start`."""

    start: int
    first: int
    end: int


def window_starts(total: int, length: int, hop: int) -> list[int]:
    """Starts of windows of `length` that cover `total` positions: 0, hop, ...; the last one ends at `total`.

    Raises:
        ValueError: the sequence is shorter than a window, or the hop is not 1 to `length`.
    """
    if total < length:
        raise ValueError(f"{total} codes are fewer than a window of {length}")
    if not 0 < hop <= length:
        raise ValueError(f"hop={hop}: expected 1 to {length} codes (the window)")
    return [*range(0, total - length, hop), total - length]


def plan_windows(total: int, length: int, hop: int, wanted: Sequence[tuple[int, int]]) -> list[Window]:
    """Windows that draw the intervals `wanted` (first, end) of `total` codes, each code once, from left to right.

    They start where they would if all codes were drawn, so that each code has the same context in both cases.
    """
    plan, done = [], 0
    for start in window_starts(total, length, hop):
        for a, b in sorted(wanted):
            first, end = max(a, done), min(b, start + length)
            if first < end:
                plan.append(Window(start, first, end))
        done = start + length
    return plan


class CodeBuffer:
    """The codes of one audio while they are generated.

    Args:
        networks: that generate it.
        request: the audio; its input, and its negative input if any, are embedded.

    Attributes:
        samples: length of the audio.
        codes: by level, of all positions [T] or [T, Q]; 0 where not drawn yet.
        is_given: by level, [T]: positions whose codes are known and not drawn.
        uniform: by level, the random numbers that draw the codes, of the same shape.
        plan: by level, the windows to draw; `windows`, those that are not drawn yet.
        lengths: by level, the number of codes of the audio; the context may be longer.
        rank, gap: of a draft, see `GeneratedAudio`.

    Raises:
        ValueError: the known codes do not fit the length.
    """

    def __init__(self, networks: Networks, request: Request):
        self.networks, self.request = networks, request
        self.rank: int = 0
        self.gap: float | None = None
        self.samples = request.samples or networks.window
        hops, ratio, context = networks.codec.hop_lengths, networks.ratio, networks.low.context_length
        self.lengths = {level: -(-self.samples // hops[level]) for level in LEVELS}
        total = max(context, self.lengths["low"])
        if request.sampling.overlap == 0:  # whole windows: the last one does not begin with codes of the one before
            total = -(-total // context) * context
        totals = {"low": total, "up": total * ratio}
        shapes, device = networks.codec.code_shapes, networks.device
        self.codes = {k: torch.zeros(n, *shapes[k], dtype=torch.long, device=device) for k, n in totals.items()}
        self.is_given = {k: torch.zeros(n, dtype=torch.bool) for k, n in totals.items()}
        self.uniform = {k: uniforms([request.seed], n, k, device, shapes[k])[0] for k, n in totals.items()}
        hop = max(1, int((1 - request.sampling.overlap) * context))
        low = self._intervals(total)
        up = [(a * ratio, min(b * ratio, self.lengths["up"])) for a, b in low]
        self.plan = {
            "low": plan_windows(total, context, hop, low),
            "up": plan_windows(total * ratio, context * ratio, hop * ratio, [(a, b) for a, b in up if a < b]),
        }
        self.windows = {level: list(plan) for level, plan in self.plan.items()}
        for level, plan in self.plan.items():
            for window in plan:
                self.is_given[level][window.first : window.end] = False

    def _intervals(self, total: int) -> list[tuple[int, int]]:
        """Intervals of low codes to draw; stores the known codes."""
        known, interval = self.request.known_codes, self.request.inpaint_interval
        if known is None:
            return [(0, total)]
        count, ratio, hop = len(known["low"]), self.networks.ratio, self.networks.codec.hop_lengths["low"]
        if count > self.lengths["low"] or (interval is None and count == self.lengths["low"]):
            raise ValueError(
                f"{self.samples} samples are requested, but {count * hop} are known already: increase seconds"
            )
        for level, size in (("low", count), ("up", count * ratio)):
            if len(known[level]) < size:
                raise ValueError(f"{len(known[level])} known codes of level {level}: expected {size}")
            self.codes[level][:size] = known[level][:size].to(self.codes[level])
            self.is_given[level][:size] = True
        if interval is None:
            return [(count, total)]
        first, end = interval[0] // hop, -(-interval[1] // hop)
        if not 0 <= first < end <= count:
            raise ValueError(
                f"inpainting samples {interval[0]} to {interval[1]}: expected an interval within the {count * hop} "
                "samples of the audio"
            )
        return [(first, end), (count, total)]

    def conditions(self, level: str, window: Window, item: Input) -> Conditions:
        """Conditions of a window on an input, for a batch of 1 on the CPU.

        The low prior knows positions in recordings as long as those it was trained on. Later windows are conditioned
        as the end of such a recording.
        """
        networks, request = self.networks, self.request
        context, hop = networks.decoders[level].context_length, networks.codec.hop_lengths[level]
        offset, duration = window.start * hop, context * hop
        frames = self._frames(level, window, item)
        total = max(request.recording, duration)
        timing = Timing(*(torch.tensor([float(v)]) for v in (total, min(offset, total - duration), duration)))
        covered = slice(window.start // networks.ratio, (window.start + context) // networks.ratio)
        low = self.codes["low"][None, covered] if level == "up" else None
        return Conditions(frames[None].float(), timing, None if low is None else low.cpu())

    def _frames(self, level: str, window: Window, item: Input) -> Tensor:
        """Embeddings [F, D] that a window is conditioned on."""
        hop, rate = self.networks.codec.hop_lengths[level], self.request.sample_rate
        duration = self.networks.decoders[level].context_length * hop / rate
        if level == "up" and self.request.sampling.up_condition == "video":
            return item.until(max(self.request.seconds, duration)).float().mean(0, keepdim=True)
        return item.between(window.start * hop / rate, duration)

    def shape(self, level: str, window: Window) -> tuple[int, ...]:
        """Windows of equal shape can be drawn in one batch: numbers of codes, codes known before and after, frames."""
        items = (item for item in (self.request.input, self.request.negative) if item is not None)
        frames = (len(self._frames(level, window, item)) for item in items)
        return window.end - window.start, window.first - window.start, len(self.following(level, window)), *frames

    def following(self, level: str, window: Window) -> Tensor:
        """The known codes [n] or [n, Q] of a window's context that follow the codes to draw, as in inpainting."""
        end = window.start + self.networks.decoders[level].context_length
        known = self.is_given[level][window.end : end]
        return self.codes[level][window.end : window.end + int(known.int().cumprod(0).sum())]

    def ready_windows(self, level: str) -> list[Window]:
        """Windows that can be drawn now: the next one, and later ones that start without known codes (overlap=0)."""
        first, *later = self.windows[level]
        return [first, *(w for w in later if w.first == w.start)]

    def put(self, level: str, window: Window, codes: Tensor) -> None:
        """Store the codes [n] of a window."""
        self.windows[level].remove(window)
        self.codes[level][window.first : window.end] = codes[window.first - window.end :]
