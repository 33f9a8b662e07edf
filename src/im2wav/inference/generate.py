"""Generate audio: draw low codes, rank drafts, draw up codes, decode; many requests in one batch.

`stream` yields audio while its codes are drawn.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from im2wav.codec import LEVELS
from im2wav.codec.codec import BlockDecoder, decode_wave
from im2wav.decoding import DecodeState, ParallelState
from im2wav.files import AUDIO_FORMATS, wav_bytes, write_atomic
from im2wav.inference.inputs import Input
from im2wav.inference.request import CodeBuffer, Request, Window
from im2wav.media.mux import mux, mux_photo, write_m4a
from im2wav.media.reading import read_image
from im2wav.prior import Conditions

OnStep = Callable[[int], object]
FORMATS = (*AUDIO_FORMATS, "m4a")


@dataclass(frozen=True)
class GeneratedAudio:
    """Generated audio.

    Attributes:
        request: what it was generated from.
        codes: by level, [T] or [T, Q].
        waveforms: by level, samples [N] in [-1, 1] on the CPU: `up` is the result, unless a draft was not refined;
            `low` is decoded from the low codes only.
        rank: of the draft among those of its input; 0 is the best.
        gap: guidance gap of the draft in bits per code; None if drafts were not ranked.
        about: the content of its .json.
    """

    request: Request = field(repr=False)
    codes: Mapping[str, Tensor]
    waveforms: Mapping[str, Tensor]
    rank: int = 0
    gap: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def wav(self) -> Tensor:
        """Samples [N] in [-1, 1], on the CPU."""
        return self.waveforms["up"]

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.request.sample_rate

    def save(self, path: str | Path) -> Path:
        """Save it in a format of `FORMATS` or, for a video or a photo, .mp4, and `about` as a .json beside it.

        Raises:
            ValueError: another suffix, or the file cannot be written.
        """
        path, item = Path(path), self.request.input
        if path.suffix.lower() != ".mp4":
            write_audio(path, self.wav, self.sample_rate)
        else:
            write_video(item, self.wav, self.sample_rate, path)
        write_about(path, self.about)
        return path


def write_audio(path: Path, wav: Tensor, sample_rate: int) -> None:
    """Write wav [N] as `path`, in the format of its suffix, one of `FORMATS`.

    Raises:
        ValueError: another suffix, or the file cannot be written.
    """
    suffix = path.suffix[1:].lower()
    if suffix == "m4a":
        write_m4a(wav, sample_rate, path)
    elif suffix in FORMATS:
        write_atomic(path, wav_bytes(wav, sample_rate, suffix))
    else:
        raise ValueError(f"{path}: the suffix must be one of {', '.join('.' + f for f in FORMATS)}")


def write_video(item: Input, wav: Tensor, sample_rate: int, path: Path) -> None:
    """Write an mp4 of a video or a photo with the audio [N].

    Raises:
        ValueError: another kind of input, or the file cannot be written.
        MediaError: an input that cannot be read, or that mp4 cannot contain.
    """
    if item.kind == "video" and item.path is not None:
        mux(item.path, wav, sample_rate, path)
    elif item.kind == "photo":
        photo = item.image or read_image(item.path)  # type: ignore[arg-type]
        mux_photo(photo, wav, sample_rate, path)
    else:
        raise ValueError(f"{path}: the input was neither a video nor a photo; save it as .wav")


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write the .json beside an audio file."""
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


def start_windows(level: str, batch: Sequence[tuple[CodeBuffer, Window]]) -> DecodeState | ParallelState:
    """Start to draw windows of equal shape and sampling options in one batch.

    The codes before them, and for the up level the low codes, are drawn already.
    """
    networks, request = batch[0][0].networks, batch[0][0].request
    decoder, negative = networks.decoders[level], None
    conditions = Conditions.cat([buffer.conditions(level, w, buffer.request.input) for buffer, w in batch])
    if request.negative is not None and decoder.can_be_guided:
        away = [buffer.conditions(level, w, buffer.request.negative) for buffer, w in batch]  # type: ignore[arg-type]
        negative = Conditions.cat(away).to(networks.device)
    return decoder.start(
        conditions.to(networks.device),
        torch.stack([buffer.uniform[level][w.start : w.end] for buffer, w in batch]),
        request.sampling.of_level(level),
        torch.stack([buffer.codes[level][w.start : w.first] for buffer, w in batch]),
        negative,
        torch.stack([buffer.following(level, w) for buffer, w in batch]),
    )


def draw_windows(level: str, batch: Sequence[tuple[CodeBuffer, Window]], on_step: OnStep | None) -> None:
    """Draw windows of equal shape in one batch, and store their codes."""
    state = start_windows(level, batch)
    codes = state.steps(on_step=on_step and (lambda n: on_step(n * len(batch))))
    for (buffer, window), row in zip(batch, codes, strict=True):
        buffer.put(level, window, row)
    state.release()


def draw_level(buffers: Sequence[CodeBuffer], level: str, batch_size: int = 16, on_step: OnStep | None = None) -> None:
    """Draw all codes of one level; low before up. Windows share a batch if shapes and sampling options are equal."""
    while waiting := [buffer for buffer in buffers if buffer.windows[level]]:
        groups = defaultdict(list)
        for buffer in waiting:
            for window in buffer.ready_windows(level):
                groups[buffer.shape(level, window), buffer.request.sampling].append((buffer, window))
        for group in groups.values():
            for first in range(0, len(group), batch_size):
                draw_windows(level, group[first : first + batch_size], on_step)


@torch.inference_mode()
def guidance_gap(buffer: CodeBuffer) -> float:
    """How much the image explains the low codes, in bits per code; the best draft has the largest value.

    The mean of log2 p(code | codes before, image) - log2 p(code | codes before) over the drawn codes.
    """
    total, count = 0.0, 0
    for window in buffer.plan["low"]:
        end = min(window.end, buffer.lengths["low"])
        if window.first >= end:
            continue
        conditions = buffer.conditions("low", window, buffer.request.input).to(buffer.networks.device)
        codes = buffer.codes["low"][None, window.start : end]
        both = Conditions.cat([conditions, conditions.null_like()])
        known, twice = window.first - window.start, codes.expand(2, *codes.shape[1:])
        logits = buffer.networks.decoders["low"].score(both, twice)[:, known:]
        bits = logits.float().log_softmax(-1).gather(-1, twice[:, known:].unsqueeze(-1)) / math.log(2)
        total += (bits[0] - bits[1]).cpu().double().sum().item()  # on the CPU: MPS has no float64
        count += bits[0].numel()
    return total / max(count, 1)


def count_codes(groups: Sequence[Sequence[CodeBuffer]], keep: int | None = None) -> int:
    """Number of codes that `generate` draws, for progress bars."""
    plans = [buffer.plan["low"] for group in groups for buffer in group]
    plans += [buffer.plan["up"] for group in groups for buffer in group[:keep]]
    return sum(window.end - window.first for plan in plans for window in plan)


@torch.inference_mode()
def generate(
    groups: Sequence[Sequence[CodeBuffer]],
    keep: int | None = None,
    batch_size: int = 16,
    on_step: OnStep | None = None,
) -> list[list[GeneratedAudio]]:
    """Draw the low codes of all buffers, and refine the `keep` drafts of each group with the largest guidance gap.

    Args:
        groups: buffers of one input with different seeds.
        keep: drafts of each group to refine; None for all. Groups of at most `keep` drafts are not ranked.
        batch_size: windows in a batch.
        on_step: called with the number of codes drawn, after each step.

    Returns:
        The audio of each buffer, in the order given; with the level `low` only if the draft was not refined.

    Raises:
        ValueError: keep < 1, or drafts cannot be ranked because the low prior was trained without guidance.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep}: expected 1 or more")
    buffers = [buffer for group in groups for buffer in group]
    ranked = [group for group in groups if keep is not None and len(group) > keep]
    if ranked and not ranked[0][0].networks.low.can_be_guided:
        raise ValueError(
            "drafts are ranked by guidance, but this low prior was trained without (condition_dropout=0): use "
            "num_samples instead of num_drafts"
        )
    draw_level(buffers, "low", batch_size, on_step)
    for group in ranked:
        for buffer in group:
            buffer.gap = guidance_gap(buffer)
    for group in groups:  # drafts without a gap keep their order
        for rank, buffer in enumerate(sorted(group, key=lambda buffer: -(buffer.gap or 0.0))):
            buffer.rank = rank
    draw_level([buffer for buffer in buffers if keep is None or buffer.rank < keep], "up", batch_size, on_step)
    return [[_decode(buffer) for buffer in group] for group in groups]


def _decode(buffer: CodeBuffer) -> GeneratedAudio:
    """Decode the levels that are drawn. Each audio is decoded alone: the convolutions are not batch-invariant."""
    levels = [level for level in LEVELS if not buffer.windows[level]]
    codes = {level: buffer.codes[level][: buffer.lengths[level]] for level in levels}
    wav = {k: decode_wave(buffer.networks.codec, c, k)[: buffer.samples] for k, c in codes.items()}
    return GeneratedAudio(buffer.request, {k: c.cpu() for k, c in codes.items()}, wav, buffer.rank, buffer.gap)


def stream(buffer: CodeBuffer, on_step: OnStep | None = None) -> Generator[Tensor, None, GeneratedAudio]:
    """Generate one audio and yield it in pieces, samples [n] in [-1, 1] on the CPU, as soon as their codes are drawn.

    The two levels alternate, window by window. The concatenated pieces equal the result of `generate`. The generator
    returns the audio; it has no waveform `low`.

    Args:
        buffer: no codes drawn yet.
        on_step: called with the number of codes drawn, after each step.
    """
    networks, length, codes = buffer.networks, buffer.lengths["up"], buffer.codes["up"]
    blocks, remaining = BlockDecoder(networks.codec, "up", length), buffer.samples
    parts: list[Tensor] = []

    def pieces(known: int) -> Iterator[Tensor]:
        nonlocal remaining
        for part in blocks.push(codes, known):
            parts.append(part[:remaining].cpu())
            yield parts[-1]
            remaining -= len(part)

    low, up = buffer.windows["low"], buffer.windows["up"]
    while up:
        start, first, end = up[0]
        while low and low[0].first * networks.ratio < start + networks.up.context_length:
            draw_windows("low", [(buffer, low[0])], on_step)
        state = start_windows("up", [(buffer, up[0])])
        while first < end:
            count = min(max(blocks.missing(first), 1), end - first)
            codes[first : first + count] = state.steps(count, on_step)[0]
            first += count
            yield from pieces(first)
        state.release()
        up.pop(0)
        yield from pieces(up[0].first if up else length)
    drawn = {level: buffer.codes[level][: buffer.lengths[level]].cpu() for level in LEVELS}
    return GeneratedAudio(buffer.request, drawn, {"up": torch.cat(parts)})
