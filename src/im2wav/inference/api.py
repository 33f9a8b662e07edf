"""`Im2Wav`, the Python API. It imports neither Lightning nor Hydra.

from im2wav import Im2Wav

model = Im2Wav.from_pretrained("runs/base")
audio = model.generate("dog.jpg", seed=1)
audio.save("dog.wav")
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from im2wav.adapter import apply_adapters
from im2wav.cards import read_card
from im2wav.checkpoint import Loaded, base_name, check_same_origin, net_sha256
from im2wav.data.pairs import DatasetInfo
from im2wav.decoding import SamplingOptions
from im2wav.decoding.decoder import Networks
from im2wav.decoding.linear import Compile, check_compile, pick_device, resolve_precision
from im2wav.decoding.sampler import item_seed
from im2wav.hub import find_adapters, find_folder, load_folder
from im2wav.inference.generate import GeneratedAudio
from im2wav.inference.hub_model import HubModel
from im2wav.inference.inputs import ImageSource, one_input
from im2wav.inference.request import Request, make_request
from im2wav.inference.runner import Runner
from im2wav.media.encoder import ImageEncoder, build_encoder


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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        encoder: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str = "auto",
        consume: bool = False,
        compile: Compile = False,
        adapters: Sequence[str] = (),
        **hub: Any,
    ) -> "Im2Wav":
        """Load a model.

        Args:
            pretrained_model_name_or_path: a folder from `save_pretrained` or `python -m im2wav.convert`; a folder of
                runs, such as runs/base; `official` for the authors' weights; or an id on the Hugging Face Hub.
            encoder: options of the image encoder, such as {"weights": "/path/to/ViT-B-32.pt"}.
            device, precision, consume, compile: see the class.
            adapters: files of adapters or ids on the Hub, each with or without a weight, such as
                "dogs.safetensors@0.5".
            hub: for the Hub `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ValueError: no such folder or id, one that cannot be read without access or without a connection, or
                networks that are missing or of different origin.
        """
        name = str(pretrained_model_name_or_path)
        folder = find_folder(name, **hub)
        loaded, saved = load_folder(folder)
        paths = find_adapters(adapters, **{key: hub[key] for key in ("token", "cache_dir") if key in hub})
        apply_adapters({loaded[name].kind: loaded[name].net for name in ("low", "up")}, paths)
        options = {**saved, **(encoder or {})}
        model = cls(
            **loaded,
            make_encoder=lambda: build_encoder(**options),
            device=device,
            precision=precision,
            consume=consume,
            compile=compile,
        )
        if adapters:
            about = {"base": base_name(name, loaded["low"]), "adapters": [Path(text).name for text in adapters]}
            for key in ("low", "up"):
                model.loaded[key] = replace(loaded[key], training={**(loaded[key].training or {}), **about})
        else:
            model.card = read_card(folder)
        return model

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
            options: `seconds`: length; that of the video, else one window, if None. `overlap`: fraction of a window
                that repeats the one before, for audio longer than a window. `negative`, `negative_text`: a photo or a
                text that guidance moves away from. `continue_from`: an audio prompt, as a file or samples [N] at the
                model's sample rate. `inpaint`, `inpaint_interval`: audio (from `generate`, or a file), and the
                interval in seconds to generate again. And `guidance_scale`, `negative_scale`, `temperature`, `top_k`,
                `top_p`, `up_condition`: see `SamplingOptions`.

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
