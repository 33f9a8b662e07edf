"""The networks of a model, and the codes of one audio while they are generated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from im2wav.codec import LEVELS, AudioCodec
from im2wav.codec.codec import decode_wave
from im2wav.decoding import Decoder
from im2wav.decoding.linear import Compile
from im2wav.decoding.sampler import uniforms
from im2wav.inference.inputs import ImageEmbeddings
from im2wav.inference.outputs import GeneratedAudio
from im2wav.inference.request import Request
from im2wav.inference.sliding_windows import Window, plan_windows
from im2wav.prior import Conditions, Prior, Timing


@dataclass(frozen=True)
class Networks:
    """A codec and its priors in eval mode, on one device.

    Attributes:
        codec, low, up: the networks.
        precision, consume, compile: of the priors, see `Decoder`.
    """

    codec: AudioCodec
    low: Prior
    up: Prior
    precision: str = "fp32"
    consume: bool = False
    compile: Compile = False

    @cached_property
    def decoders(self) -> dict[str, Decoder]:
        """The decoders of the priors by level, created at first use."""
        priors = {"low": self.low, "up": self.up}
        return {k: Decoder(prior, self.precision, self.consume, self.compile) for k, prior in priors.items()}

    @property
    def window(self) -> int:
        """Samples in the context of the priors."""
        return self.low.context_length * self.codec.hop_lengths["low"]

    @property
    def ratio(self) -> int:
        """Number of up codes for each low code."""
        return self.codec.hop_lengths["low"] // self.codec.hop_lengths["up"]

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.codec.parameters()).device

    @torch.inference_mode()
    def encode(self, wav: Tensor, pad: bool = True) -> dict[str, Tensor]:
        """Encode samples [N] as codes by level [T].

        Args:
            wav: at the sample rate of the codec.
            pad: pad with silence to whole low codes; otherwise drop the rest.

        Raises:
            ValueError: too short for one code.
        """
        hop = self.codec.hop_lengths["low"]
        count = -(-len(wav) // hop) if pad else len(wav) // hop
        if not count:
            raise ValueError(f"audio of {len(wav)} samples is too short: expected at least {hop}, one low code")
        wav = torch.nn.functional.pad(wav, (0, max(0, count * hop - len(wav))))[: count * hop]
        return {k: codes[0].cpu() for k, codes in self.codec.encode(wav[None, None].to(self.device)).items()}


def window_conditions(
    request: Request, embeddings: ImageEmbeddings, offset: int, duration: int, codes_low: Tensor | None = None
) -> Conditions:
    """Conditions of the window of `duration` samples at sample `offset`, for a batch of 1 on the CPU.

    The low prior knows positions in recordings as long as those it was trained on. Later windows are conditioned as
    the end of such a recording.
    """
    frames = embeddings.between(offset / request.sample_rate, duration / request.sample_rate)
    total = max(request.recording, duration)
    timing = Timing(*(torch.tensor([float(v)]) for v in (total, min(offset, total - duration), duration)))
    return Conditions(frames[None].float(), timing, None if codes_low is None else codes_low[None])


@dataclass(frozen=True)
class WindowInputs:
    """Inputs of a prior for one window of one audio. B = 1."""

    conditions: Conditions
    negative: Conditions | None
    uniform: Tensor  # [1, n], from the start of the context to the end of the window
    prefix: Tensor  # [1, p], known codes at the start of the context

    @property
    def shape(self) -> tuple[int, ...]:
        """Windows of equal shape can be drawn in one batch."""
        frames = [0 if c is None else c.clip.shape[1] for c in (self.conditions, self.negative)]
        return (*self.uniform.shape, *self.prefix.shape, *frames)


class CodeBuffer:
    """The codes of one audio while they are generated.

    Args:
        networks: that generate it.
        request: the audio.
        embeddings, negative: image embeddings of the input, and of the negative input.

    Attributes:
        samples: length of the audio.
        codes: by level, all positions [T]; 0 where not drawn yet.
        plan: by level, the windows to draw; `windows`, those that are not drawn yet.
        lengths: by level, the number of codes of the audio; the context may be longer.

    Raises:
        ValueError: the known codes do not fit the length.
    """

    def __init__(
        self,
        networks: Networks,
        request: Request,
        embeddings: ImageEmbeddings,
        negative: ImageEmbeddings | None = None,
    ):
        self.networks, self.request, self.embeddings, self.negative = networks, request, embeddings, negative
        self.samples = request.samples or networks.window
        hops, ratio, context = networks.codec.hop_lengths, networks.ratio, networks.low.context_length
        self.lengths = {level: -(-self.samples // hops[level]) for level in LEVELS}
        total = max(context, self.lengths["low"])
        totals = {"low": total, "up": total * ratio}
        self.codes = {k: torch.zeros(n, dtype=torch.long, device=networks.device) for k, n in totals.items()}
        self.uniform = {k: uniforms([request.seed], n, k, networks.device)[0] for k, n in totals.items()}
        hop = max(1, int((1 - request.overlap) * context))
        low = self._intervals(total)
        ends = ((a * ratio, min(b * ratio, self.lengths["up"])) for a, b in low)
        up = [(a, b) for a, b in ends if a < b]
        self.plan = {
            "low": plan_windows(total, context, hop, low),
            "up": plan_windows(total * ratio, context * ratio, hop * ratio, up),
        }
        self.windows = {level: list(plan) for level, plan in self.plan.items()}

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
        if interval is None:
            return [(count, total)]
        first, end = interval[0] // hop, -(-interval[1] // hop)
        if not 0 <= first < end <= count:
            raise ValueError(
                f"inpainting samples {interval[0]} to {interval[1]}: expected an interval within the {count * hop} "
                "samples of the audio"
            )
        return [(first, end), (count, total)]

    def conditions(self, level: str, window: Window, negative: bool = False) -> Conditions:
        """Conditions of a window for a batch of 1, on the CPU."""
        context, hop = self.networks.decoders[level].context_length, self.networks.codec.hop_lengths[level]
        start, ratio = window.start, self.networks.ratio
        low = self.codes["low"][start // ratio : (start + context) // ratio].cpu() if level == "up" else None
        embeddings = self.negative if negative else self.embeddings
        assert embeddings is not None
        return window_conditions(self.request, embeddings, start * hop, context * hop, low)

    def inputs(self, level: str, window: Window) -> WindowInputs:
        """Inputs of a window, once the codes before it, and the low codes for the up level, are drawn."""
        guided = self.negative is not None and self.networks.decoders[level].can_be_guided
        return WindowInputs(
            self.conditions(level, window),
            self.conditions(level, window, negative=True) if guided else None,
            self.uniform[level][None, window.start : window.end],
            self.codes[level][None, window.start : window.first],
        )

    def ready_windows(self, level: str) -> list[Window]:
        """Windows that can be drawn now: the next one, and later ones that start without known codes (overlap=0)."""
        first, *later = self.windows[level]
        return [first, *(w for w in later if w.first == w.start)]

    def put(self, level: str, window: Window, codes: Tensor) -> None:
        """Store the codes [n] of a window."""
        self.windows[level].remove(window)
        self.codes[level][window.first : window.end] = codes[window.first - window.end :]

    def decode(self, levels: Sequence[str] = LEVELS, rank: int = 0, gap: float | None = None) -> GeneratedAudio:
        """Decode the audio, once all windows of these levels are drawn.

        Each audio is decoded alone: the convolutions are not batch-invariant.
        """
        codec = self.networks.codec
        codes: Mapping[str, Tensor] = {level: self.codes[level][: self.lengths[level]] for level in levels}
        wav = {k: decode_wave(codec, c, k)[: self.samples] for k, c in codes.items()}
        return GeneratedAudio(self.request, {k: c.cpu() for k, c in codes.items()}, wav, rank, gap)
