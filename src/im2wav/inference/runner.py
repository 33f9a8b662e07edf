"""Generate the audio of requests with a model, in batches: for `Im2Wav` and for `sample`."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from im2wav.decoding.compiled import ROWS_AT_ONCE
from im2wav.decoding.decoder import MAX_BATCH_SIZE, batch_that_fits
from im2wav.inference.generate import GeneratedAudio, count_codes, generate, stream
from im2wav.inference.inputs import Input, embed_input
from im2wav.inference.request import CodeBuffer, Request
from im2wav.system import track_progress

if TYPE_CHECKING:
    from im2wav.inference.api import Im2Wav

log = logging.getLogger(__name__)


@dataclass
class Runner:
    """Generates the audio of groups of requests; a group has one input and different seeds.

    Attributes:
        model: the model.
        keep: drafts of each group to refine; None to refine all and rank none.
        batch_size: audio files generated in a batch; None for as many as fit into the free memory of the device.
        hide_progress: see `track_progress`.
    """

    model: Im2Wav
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
        total = count_codes(groups, self.keep)
        with track_progress(desc=title, unit="code", total=total, hidden=self.hide_progress) as bar:
            results = generate(groups, self.keep, size, bar.update)
        timing = {"seconds": round(time.monotonic() - start, 3), "batch": len(requests)}
        return [[replace(audio, about=self._about(audio, len(group), timing)) for audio in group] for group in results]

    def stream(self, buffer: CodeBuffer) -> Generator[Tensor, None, GeneratedAudio]:
        """Generate the audio of a buffer and yield it in pieces, see `im2wav.inference.generate.stream`."""
        start = time.monotonic()
        audio = yield from stream(buffer)
        timing = {"seconds": round(time.monotonic() - start, 3), "batch": 1}
        return replace(audio, about=self._about(audio, 1, timing))

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


def make_batches(groups: Sequence[Sequence[Request]], size: int) -> list[list[Sequence[Request]]]:
    """Divide groups into batches of at most `size` requests, without dividing a group."""
    batches: list[list[Sequence[Request]]] = []
    for group in groups:
        if not batches or sum(map(len, batches[-1])) + len(group) > size:
            batches.append([])
        batches[-1].append(group)
    return batches
