"""Generate audio: draw low codes, rank drafts, draw up codes, decode; many requests in one batch.

`Runner` is what `Im2Wav.generate` and the command `sample` share; `stream` yields audio while its codes are drawn.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from im2wav.codec import LEVELS
from im2wav.codec.codec import BlockDecoder, decode_wave
from im2wav.decoding import DecodeState
from im2wav.decoding.compiled import ROWS_AT_ONCE
from im2wav.decoding.decoder import MAX_BATCH_SIZE, batch_that_fits
from im2wav.inference.inputs import Input, embed_input
from im2wav.inference.outputs import GeneratedAudio
from im2wav.inference.request import CodeBuffer, Request, Window
from im2wav.prior import Conditions

if TYPE_CHECKING:
    from im2wav.inference.api import Im2Wav

OnStep = Callable[[int], object]
log = logging.getLogger(__name__)


def start_windows(level: str, batch: Sequence[tuple[CodeBuffer, Window]]) -> DecodeState:
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
        request.sampling,
        torch.stack([buffer.codes[level][w.start : w.first] for buffer, w in batch]),
        negative,
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
        logits = buffer.networks.decoders["low"].score(both, codes.repeat(2, 1))
        known = window.first - window.start
        chosen = codes[:, known:, None].repeat(2, 1, 1)
        bits = logits[:, known:].float().log_softmax(-1).gather(-1, chosen) / math.log(2)
        total += (bits[0] - bits[1]).cpu().double().sum().item()  # on the CPU: MPS has no float64
        count += end - window.first
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


def stream(buffer: CodeBuffer, on_step: OnStep | None = None) -> Iterator[Tensor]:
    """Generate one audio and yield it in pieces, samples [n] in [-1, 1] on the CPU, as soon as their codes are drawn.

    The two levels alternate, window by window. The concatenated pieces equal the result of `generate`.

    Args:
        buffer: no codes drawn yet.
        on_step: called with the number of codes drawn, after each step.
    """
    networks, length, codes = buffer.networks, buffer.lengths["up"], buffer.codes["up"]
    blocks, remaining = BlockDecoder(networks.codec, "up", length), buffer.samples

    def pieces(known: int) -> Iterator[Tensor]:
        nonlocal remaining
        for part in blocks.push(codes, known):
            yield part[:remaining].cpu()
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


@dataclass
class Runner:
    """Generates the audio of groups of requests; a group has one input and different seeds.

    Attributes:
        model: the model.
        keep: drafts of each group to refine; None to refine all and rank none.
        batch_size: audio files generated in a batch; None for as many as fit into the free memory of the device.
        hide_progress: None to show a progress bar on terminals only.
    """

    model: "Im2Wav"
    keep: int | None = None
    batch_size: int | None = None
    hide_progress: bool | None = None

    def fit_batch(self, has_negative: bool) -> int:
        """`batch_size`, or what fits on the device at first use: devices may differ."""
        if self.batch_size is None:
            networks, rows = self.model.networks, 3 if has_negative else 2
            grouped = networks.compile and networks.device.type == "cpu"  # more rows than one compiled group are slower
            most = ROWS_AT_ONCE // rows if grouped else MAX_BATCH_SIZE
            self.batch_size = batch_that_fits([networks.low, networks.up], networks.precision, rows, most)
            log.info("batch_size=%d on %s", self.batch_size, networks.device)
        return self.batch_size

    def buffers(self, group: Sequence[Request]) -> list[CodeBuffer]:
        """Embed the input of a group of requests, whose lengths are resolved, and create its code buffers.

        Raises:
            MediaError: an input that cannot be read.
            ValueError: embeddings of another encoder, a text without a text encoder, or known codes that do not fit.
        """
        first = group[0]
        item = self._embed(first.input, first.seconds)
        negative = None if first.negative is None else self._embed(first.negative, first.seconds)
        return [CodeBuffer(self.model.networks, replace(request, input=item, negative=negative)) for request in group]

    def _embed(self, item: Input, seconds: float) -> Input:
        info = self.model.info
        if item.pair is not None:
            stored = item.pair[0].info
            info.check_encoder(stored.encoder, stored.weights_sha256, f"input={item.path}")
        return embed_input(item, lambda: self.model.encoder, info.fps, seconds)

    def generate(self, groups: Sequence[Sequence[CodeBuffer]]) -> list[list[GeneratedAudio]]:
        """Generate the audio of groups of buffers in batches, see `generate`."""
        start, requests = time.monotonic(), [buffer.request for group in groups for buffer in group]
        names = {request.input.name for request in requests}
        title = names.pop() if len(names) == 1 else f"{len(requests)} audio files"
        size = self.fit_batch(requests[0].negative is not None)
        with tqdm(total=count_codes(groups, self.keep), desc=title, unit="code", disable=self.hide_progress) as bar:
            results = generate(groups, self.keep, size, bar.update)
        timing = {"seconds": round(time.monotonic() - start, 3), "batch": len(requests)}
        return [[replace(audio, about=self._about(audio, len(group), timing)) for audio in group] for group in results]

    def _about(self, audio: GeneratedAudio, drafts: int, timing: dict[str, Any]) -> dict[str, Any]:
        request = audio.request
        rank = {} if audio.gap is None else {"rank": audio.rank, "gap": audio.gap}
        about = {"input": request.input.source, "seed": request.seed, "seconds": request.seconds}
        return {**about, **rank, "identity": self.identity(request, drafts), "timing": timing}

    def identity(self, request: Request, drafts: int) -> dict[str, Any]:
        """Everything that the audio files of a request depend on, as plain values; see `Request.identity`."""
        networks, identity = self.model.networks, request.identity()
        identity["settings"]["precision"] = networks.precision
        if networks.compile:  # compiled kernels round differently
            identity["settings"]["compile"] = networks.compile
        ranking = {} if self.keep is None else {"num_drafts": drafts, "keep": self.keep}
        return {**identity, "models": self.model.sha256, **ranking}
