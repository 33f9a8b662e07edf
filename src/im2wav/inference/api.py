"""`Im2Wav`, the Python API. It imports neither Lightning nor Hydra.

from im2wav import Im2Wav

model = Im2Wav.from_pretrained()
audio = model.generate("dog.jpg", seed=1)
audio.save("dog.wav")
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from im2wav.checkpoint import Loaded, check_same_origin, net_sha256
from im2wav.data.pairs import DatasetInfo
from im2wav.decoding import SamplingOptions
from im2wav.decoding.compiled import ROWS_AT_ONCE
from im2wav.decoding.decoder import MAX_BATCH_SIZE, Networks, batch_that_fits
from im2wav.decoding.linear import Compile, check_compile, pick_device, resolve_precision
from im2wav.decoding.sampler import item_seed
from im2wav.inference.generate import GeneratedAudio, count_codes, generate, stream
from im2wav.inference.hub_model import HubModel
from im2wav.inference.inputs import ImageSource, Input, embed_input, one_input
from im2wav.inference.request import CodeBuffer, Request, make_request
from im2wav.media.encoder import ImageEncoder, build_encoder
from im2wav.system import track_progress

log = logging.getLogger(__name__)


class Im2Wav(HubModel):
    """A codec, two priors, and their image encoder.

    Args:
        codec, low, up: from `im2wav.checkpoint.load`.
        make_encoder: builds the image encoder, called at first use; None for the encoder that the priors were trained
            with.
        device: auto, cpu, cuda (cuda:1) or mps; auto prefers cuda, then mps (Apple silicon), then cpu.
        precision: auto, fp32, bf16, fp16 (GPUs only) or int8 (CPUs only). auto is fp32 on a CPU and on MPS; on CUDA it
            is bf16, or fp16 on devices older than Ampere, which only emulate bf16.
        consume: keep the priors' weights in memory once, not twice; the model cannot be saved then.
        compile: True compiles decoding steps, on a CPU (one or two sequences at a time; needs a C++ compiler) or on
            CUDA (needs Triton); `triton` uses fused kernels on CUDA; see docs/speed.md.

    Raises:
        ValueError: networks of different origin, or a device, precision or compile option that is not available.
    """

    def __init__(
        self,
        codec: Loaded,
        low: Loaded,
        up: Loaded,
        make_encoder: Callable[[], ImageEncoder] | None = None,
        device: str = "auto",
        precision: str = "auto",
        consume: bool = False,
        compile: Compile = False,
    ):
        check_same_origin(codec, low, up)
        self.device = pick_device(device)
        precision = resolve_precision(precision, torch.device(self.device))
        check_compile(compile, torch.device(self.device))
        self.loaded = {"codec": codec, "low": low, "up": up}
        data = dict(low.data)
        self.recording = round(data.pop("seconds") * data["sample_rate"])  # samples, see `Request.recording`
        self.info = DatasetInfo(**data)
        nets: dict[str, Any] = {name: x.net.to(self.device) for name, x in self.loaded.items()}
        self.networks = Networks(**nets, precision=precision, consume=consume, compile=compile)
        if consume:
            _ = self.sha256  # before the weights are freed
        self._make_encoder = make_encoder or (lambda: build_encoder(self.info.encoder))

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The image encoder.

        Raises:
            ValueError: it is not the one that the priors were trained with.
        """
        encoder = self._make_encoder()
        self.info.check_encoder(encoder.name, encoder.weights_sha256, "the low prior")
        return encoder.to(self.device)

    @cached_property
    def sha256(self) -> dict[str, str | None]:
        """Hashes of the weights of all networks."""
        hashes: dict[str, str | None] = {name: net_sha256(x.net) for name, x in self.loaded.items()}
        return {**hashes, "encoder": self.info.weights_sha256}

    def sampling(self, given: Mapping[str, Any]) -> SamplingOptions:
        """How codes are drawn: as given, otherwise as the low prior recommends, otherwise as in Im2Wav.

        Raises:
            ValueError: an unknown name, or a value out of range.
        """
        return SamplingOptions().updated(self.loaded["low"].sampling or {}).updated(given)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.info.sample_rate

    @property
    def window(self) -> float:
        """Seconds in the context of the priors; the default length of audio for a photo."""
        return self.networks.window / self.sample_rate

    def generate(
        self,
        image: ImageSource | None = None,
        *,
        seed: int = 0,
        num_drafts: int = 1,
        progress: bool = False,
        **options: Any,
    ) -> GeneratedAudio:
        """Generate audio.

        Args:
            image: a photo, as a path or a PIL image; or set one of `video`, `timeline` (photos and the seconds from
                which each is shown, such as ["dog.jpg@0", "car.jpg@3"]) and `text` (experimental, with CLIP only).
            seed: same seed, same audio.
            num_drafts: drafts to generate; with more than 1, the one that the image explains best is refined.
            progress: show a progress bar.
            options: `seconds`: length; that of the video, else one window, if None. `negative`, `negative_text`: a
                photo or a text that guidance moves away from. `continue_from`: an audio prompt, as a file or samples
                [N] at the model's sample rate. `inpaint`, `inpaint_interval`: audio (from `generate`, or a file), and
                the interval in seconds to generate again. And `guidance_scale`, `temperature`, `overlap` and all
                others of `SamplingOptions`; the model recommends some.

        Raises:
            ValueError: not exactly one input, options out of range, or drafts of a low prior without guidance.
            MediaError: a file that cannot be read.
        """
        return self.drafts(image, seed=seed, num_drafts=num_drafts, progress=progress, **options)[0]

    def drafts(
        self,
        image: ImageSource | None = None,
        *,
        seed: int = 0,
        num_drafts: int = 4,
        progress: bool = False,
        **options: Any,
    ) -> list[GeneratedAudio]:
        """Generate drafts, the one that the image explains best first; only that one is refined.

        The others have the waveform `low`; `generate` with the seed of their request refines one of them.

        Args:
            image, seed, num_drafts, progress, options: see `generate`.

        Raises:
            ValueError: see `generate`.
            MediaError: a file that cannot be read.
        """
        if num_drafts < 1:
            raise ValueError(f"num_drafts={num_drafts}: expected 1 or more")
        first = self._request(image, **options)
        seeds = [seed, *(item_seed(seed, "draft", k) for k in range(1, num_drafts))]
        group = [first.resolve(self.networks.window, seed=s, number=k) for k, s in enumerate(seeds)]
        runner = Runner(self, None if num_drafts == 1 else 1, batch_size=16, hide_progress=not progress)
        (drafts,) = runner.generate([runner.buffers(group)])
        return sorted(drafts, key=lambda audio: audio.rank)

    def stream(
        self, image: ImageSource | None = None, *, seed: int = 0, **options: Any
    ) -> Generator[Tensor, None, GeneratedAudio]:
        """Generate audio, and yield it in pieces [n] meanwhile; concatenated, they equal the result of `generate`.

        The generator returns the whole audio, without the waveform `low`: `audio = yield from model.stream(...)`.

        Args:
            image, seed, options: see `generate`.

        Raises:
            ValueError: see `generate`.
            MediaError: a file that cannot be read.
        """
        request = self._request(image, **options).resolve(self.networks.window, seed=seed)
        runner = Runner(self)
        return runner.stream(*runner.buffers([request]))

    def _request(
        self,
        image: ImageSource | None = None,
        *,
        video: str | Path | None = None,
        timeline: Sequence[str | tuple[str | Path, float]] | None = None,
        text: str | None = None,
        **options: Any,
    ) -> Request:
        known = {f.name for f in fields(SamplingOptions)}
        sampling = self.sampling({k: v for k, v in options.items() if k in known})
        rest = {k: v for k, v in options.items() if k not in known}
        return make_request(self, one_input(image, video, timeline, text), sampling, **rest)


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
