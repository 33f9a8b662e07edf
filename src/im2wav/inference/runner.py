"""The runner that `Im2Wav.generate` and the command `sample` share: requests -> generated audio, files."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from im2wav.decoding.batch_size import MAX_BATCH_SIZE, batch_that_fits
from im2wav.decoding.compiled import ROWS_AT_ONCE
from im2wav.decoding.sampler import item_seed
from im2wav.inference.code_buffer import CodeBuffer
from im2wav.inference.generate import count_codes, generate
from im2wav.inference.inputs import ImageEmbeddings, Input, embed_input
from im2wav.inference.outputs import GeneratedAudio, Outputs
from im2wav.inference.request import Request
from im2wav.media.reading import MediaError

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

    def _embed(self, item: Input, seconds: float) -> ImageEmbeddings:
        info = self.model.info
        if item.pair is None:
            return embed_input(item, self.model.encoder, info.fps, seconds)
        stored = item.pair[0].info
        info.check_encoder(stored.encoder, stored.weights_sha256, f"input={item.path}")
        return embed_input(item, None, info.fps, seconds)

    def buffers(self, group: Sequence[Request]) -> list[CodeBuffer]:
        """Embed the input of a group, and create its code buffers.

        Raises:
            MediaError: an input that cannot be read.
            ValueError: embeddings of another encoder, a text without a text encoder, or known codes that do not fit.
        """
        first, networks = group[0], self.model.networks
        seconds = first.seconds(networks.window)
        embeddings = self._embed(first.input, seconds)
        negative = None if first.negative is None else self._embed(first.negative, seconds)
        return [CodeBuffer(networks, request, embeddings, negative) for request in group]

    def generate(self, groups: Sequence[Sequence[CodeBuffer]]) -> list[list[GeneratedAudio]]:
        """Generate the audio of groups of buffers in batches.

        Raises:
            ValueError: drafts of a low prior without guidance.
        """
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
        seconds = len(audio.waveforms["low"]) / request.sample_rate
        about = {"input": request.input.source, "seed": request.seed, "seconds": seconds}
        return {**about, **rank, "identity": self.identity(request, drafts), "timing": timing}

    def identity(self, request: Request, drafts: int) -> dict[str, Any]:
        """Everything that the audio files of a request depend on, as plain values.

        Raises:
            MediaError: a file of the input is missing.
        """
        networks, identity = self.model.networks, request.identity()
        identity["settings"]["precision"] = networks.precision
        if networks.compile:  # compiled kernels round differently
            identity["settings"]["compile"] = networks.compile
        ranking = {} if self.keep is None else {"num_drafts": drafts, "keep": self.keep}
        return {**identity, "models": self.model.sha256, **ranking}

    def plan(
        self, template: Request, items: Sequence[Input], numbers: Sequence[int], outputs: Outputs
    ) -> tuple[list[list[Request]], int]:
        """Requests that are not finished yet, by input, and the number of unreadable inputs.

        Args:
            template: the options, with the seed of the run.
            items: inputs.
            numbers: of the audio files of each input.
            outputs: the folder.

        Raises:
            ValueError: a file of the same name was generated with other settings.
        """
        groups, failed = [], 0
        for item in items:
            try:
                first = template.resolve(self.model.networks.window, input=item)
                group = [replace(first, seed=item_seed(template.seed, item.name, n), number=n) for n in numbers]
                todo = [r for r in group if not outputs.finished(r, partial(self.identity, r, len(numbers)))]
            except MediaError as error:
                failed += 1
                log.warning("skipped: %s", error)
                continue
            if todo:
                groups.append(group if self.keep is not None else todo)
        return sorted(groups, key=lambda group: group[0].samples or 0), failed  # batches of similar length

    def write(self, outputs: Outputs, groups: Sequence[Sequence[Request]]) -> None:
        """Generate and write audio files, a batch at a time; skip inputs that cannot be read with a warning."""
        for batch in make_batches(groups, self.fit_batch(groups[0][0].negative is not None)):
            buffers = []
            for group in batch:
                try:
                    buffers.append(self.buffers(group))
                except MediaError as error:
                    log.warning("skipped: %s", error)
            for audio in [audio for group in self.generate(buffers) for audio in group] if buffers else []:
                outputs.write(audio)


def make_batches(groups: Sequence[Sequence[Request]], size: int) -> list[list[Sequence[Request]]]:
    """Divide groups into batches of at most `size` requests, without dividing a group."""
    batches: list[list[Sequence[Request]]] = []
    for group in groups:
        if not batches or sum(map(len, batches[-1])) + len(group) > size:
            batches.append([])
        batches[-1].append(group)
    return batches
