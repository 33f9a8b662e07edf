"""`Im2Wav`: the whole of im2wav in a few lines of Python, with neither Lightning nor Hydra.

from im2wav import Im2Wav

model = Im2Wav.from_pretrained("runs/base")
sound = model.generate("dog.jpg", seed=1)
sound.save("dog.wav")
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor
from tqdm.auto import tqdm

from im2wav.checkpoint import Loaded, check_same_origin, net_sha256
from im2wav.data.pairs import DatasetInfo
from im2wav.decoding import SamplingOptions
from im2wav.decoding.linear import check_compile, pick_device, pick_precision
from im2wav.decoding.sampler import item_seed
from im2wav.hub import find_folder, load_folder, save_folder
from im2wav.inference.code_buffer import Composition, count_codes
from im2wav.inference.drafts import draft_and_refine
from im2wav.inference.generated_audio import Sound
from im2wav.inference.inputs import Input, look, one_input
from im2wav.inference.request import Clip, Models, Request
from im2wav.inference.settings import Picture, Settings, make_settings
from im2wav.inference.streaming import stream
from im2wav.media.encoder import ImageEncoder, build_encoder


class Im2Wav(ModelHubMixin, library_name="im2wav", tags=["audio-generation", "image-to-audio", "video-to-audio"]):
    """Three nets that belong together, and the encoder that looks at pictures for them.

    Args:
        codec, low, up: what `im2wav.checkpoint.load` gives.
        make_encoder: builds the image encoder, which is done when the first picture is to be seen; None for the
            encoder that the priors were trained with.
        device: auto, cpu, cuda (cuda:1) or mps; auto takes cuda before mps (Apple silicon) before cpu.
        precision: auto, fp32, bf16, fp16 (GPUs only) or int8 (CPUs only). auto is fp32 on a CPU and on MPS; on CUDA it
            is bf16, or fp16 on devices older than Ampere, which only emulate bf16.
        consume: hold the priors' weights once, not twice, in memory; the model can then not be saved.
        compile: compile the priors' steps, for a CPU (one or two sounds at a time; needs a C++ compiler) or for CUDA
            (needs Triton); see docs/speed.md.

    Raises:
        ValueError: nets that do not belong together, a device or precision that is not available, or compile on MPS.
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
        compile: bool = False,
    ):
        check_same_origin(codec, low, up)
        self.device = pick_device(device)
        self.loaded = {"codec": codec, "low": low, "up": up}
        data = dict(low.data)
        self.total = round(data.pop("seconds") * data["sample_rate"])  # length of a recording that the priors know
        self.info = DatasetInfo(**data)
        nets: dict[str, Any] = {name: x.net.to(self.device) for name, x in self.loaded.items()}
        precision = pick_precision(precision, torch.device(self.device))
        check_compile(compile, torch.device(self.device))
        self.models = Models(**nets, precision=precision, consume=consume, compile=bool(compile))
        if consume:
            _ = self.sha256  # while the weights are here
        self._make_encoder = make_encoder or (lambda: build_encoder(self.info.encoder))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Im2Wav":
        """Load a model.

        Args:
            pretrained_model_name_or_path: a folder from `save_pretrained` or `python -m im2wav.convert`; a folder of
                runs, such as runs/base; `official` for the authors' weights; or an id on the Hugging Face Hub.
            options: `device`, `precision`, `consume`, `compile`: see the class; `encoder`, options of the image encoder
                such as {"weights": "/path/to/ViT-B-32.pt"}; for the Hub `revision`, `token`, `cache_dir`,
                `force_download`, `local_files_only`.

        Raises:
            ValueError: no such folder or id, or nets that are missing or do not belong together.
        """
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        encoder: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str = "auto",
        consume: bool = False,
        compile: bool = False,
        **hub: Any,
    ) -> "Im2Wav":
        loaded, seen = load_folder(find_folder(model_id, **hub))
        return cls(
            **loaded,
            make_encoder=lambda: build_encoder(**{**seen, **(encoder or {})}),
            device=device,
            precision=precision,
            consume=consume,
            compile=compile,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.models.consume:
            raise ValueError(
                "this model was loaded with consume=true, which gives its weights away: load it again without"
            )
        save_folder(self.loaded, self.info, save_directory)

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
        """Hashes of the weights of the nets and of the encoder, on which the sounds depend."""
        hashes: dict[str, str | None] = {name: net_sha256(x.net) for name, x in self.loaded.items()}
        return {**hashes, "encoder": self.info.weights_sha256}

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.info.sample_rate

    @property
    def window(self) -> float:
        """Seconds that the priors see at once; how long the sound of a photo is where nothing else is asked for."""
        return self.models.window / self.sample_rate

    def length(self, item: Input, seconds: float | None = None) -> float:
        """How many seconds the sound of an input lasts: as long as a video, else one window.

        Raises:
            ValueError: not more than 0 s.
            MediaError: a video that cannot be read.
        """
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds={seconds}: expected more than 0")
        if seconds is None and item.images:
            return item.images[-1][1] + self.window  # the last picture is seen for a window
        return seconds if seconds is not None else item.seconds() or self.window

    def look(self, item: Input, seconds: float) -> Clip:
        """What is seen of an input in so many seconds.

        Raises:
            MediaError: it cannot be read.
            ValueError: embeddings of another encoder, or a text and an encoder that knows images alone.
        """
        if item.pair is not None:
            info = item.pair[0].info
            self.info.check_encoder(info.encoder, info.weights_sha256, f"input={item.path}")
            return Clip(*look(item, None, self.info.fps, seconds))
        return Clip(*look(item, self.encoder, self.info.fps, seconds))

    @torch.inference_mode()
    def encode(self, wav: Tensor, whole: bool = True) -> dict[str, Tensor]:
        """Samples [N] -> codes by level [T].

        Args:
            wav: at the model's sample rate.
            whole: silence is added for the last codes, else the samples that fill none are left out.

        Raises:
            ValueError: too short for a code.
        """
        hop = self.models.codec.hop_lengths["low"]
        count = -(-len(wav) // hop) if whole else len(wav) // hop
        if not count:
            raise ValueError(f"a sound of {len(wav)} samples is too short: a coarse code takes {hop}")
        wav = torch.nn.functional.pad(wav, (0, max(0, count * hop - len(wav))))[: count * hop]
        return {k: codes[0].cpu() for k, codes in self.models.codec.encode(wav[None, None].to(self.device)).items()}

    def generate(
        self, image: Picture | None = None, *, seed: int = 0, num_drafts: int = 1, progress: bool = False, **what: Any
    ) -> Sound:
        """Make a sound.

        Args:
            image, what: see `order`.
            seed: the same seed gives the same sound.
            num_drafts: with more than 1, so many drafts are made, and the one that the picture explains best is
                refined.
            progress: show a bar.

        Raises:
            ValueError: see `order`; or drafts from a low prior that cannot be guided.
            MediaError: an input that cannot be read.
        """
        if num_drafts < 1:
            raise ValueError(f"num_drafts={num_drafts}: expected 1 or more")
        start = time.monotonic()
        item, settings = self.order(image, **what)
        first = self.request(item, settings, seed)
        seeds = [seed, *(item_seed(seed, "draft", k) for k in range(1, num_drafts))]
        requests = [replace(first, seed=s) for s in seeds]
        with bar(self.models, requests, 1, "generate", not progress) as on_step:
            (drafts,) = draft_and_refine(self.models, [requests], 1, settings.sampling, on_step=on_step)
        number = next(k for k, draft in enumerate(drafts) if draft.rank == 0)
        best = drafts[number]
        about: dict[str, Any] = {
            "input": item.source,
            "identity": self.identity(item, seeds[number], len(best.sound.wav["up"]), settings),
        }
        about["gap"] = best.gap
        about["timing"] = {"seconds": round(time.monotonic() - start, 3)}
        video = item.path if item.kind == "video" else None
        return Sound(best.sound.wav["up"], self.sample_rate, best.sound.wav["low"], best.sound.codes, about, video)

    def stream(self, image: Picture | None = None, *, seed: int = 0, **what: Any) -> Iterator[Tensor]:
        """Make a sound and yield it in pieces [n] while it is made; joined they are what `generate` gives.

        Args:
            image, what: see `order`.
            seed: the same seed gives the same sound.

        Raises:
            ValueError: see `order`.
            MediaError: an input that cannot be read.
        """
        item, settings = self.order(image, **what)
        return stream(self.models, self.request(item, settings, seed), settings.sampling)

    def order(
        self,
        image: Picture | None = None,
        *,
        video: str | Path | None = None,
        timeline: Sequence[str | tuple[str | Path, float]] | None = None,
        text: str | None = None,
        **settings: Any,
    ) -> tuple[Input, Settings]:
        """What is heard, and how.

        Args:
            image, video, timeline, text: one of them: a photo (a path or a PIL image); a video; photos with the second
                from which each is seen, `["dog.jpg@0", "car.jpg@3"]`; a text (experimental, with CLIP alone).
            settings: see `make_settings`; also guidance_scale, temperature, top_k, top_p: see `SamplingOptions`.

        Raises:
            ValueError: not one input, or settings that do not fit each other.
            MediaError: a file that cannot be read.
        """
        known = {f.name for f in fields(SamplingOptions)}
        sampling = SamplingOptions(**{k: v for k, v in settings.items() if k in known})
        return one_input(image, video, timeline, text), self.settings(
            sampling, **{k: v for k, v in settings.items() if k not in known}
        )

    def settings(self, sampling: SamplingOptions, **options: Any) -> Settings:
        """What sounds that are made together have in common; see `make_settings`.

        Raises:
            ValueError: settings that do not fit each other, or a negative and a low prior that cannot be guided.
            MediaError: a file that cannot be read.
        """
        settings = make_settings(sampling, self.encode, self.sample_rate, **options)
        if settings.negative is not None and not self.models.low.can_be_guided:
            raise ValueError(
                "a negative needs guidance, and this low prior never learnt it (it was trained with "
                "condition_dropout=0)"
            )
        return settings

    def request(self, item: Input, settings: Settings, seed: int) -> Request:
        """Look at an input: all that its sound depends on.

        Raises:
            ValueError: see `Im2Wav.look` and `Request`.
            MediaError: it cannot be read.
        """
        seconds, away = self.length(item, settings.seconds), settings.negative
        return Request(
            self.look(item, seconds),
            seed,
            round(seconds * self.sample_rate),
            settings.overlap,
            self.total,
            self.sample_rate,
            None if away is None else self.look(away, seconds),
            settings.given,
            settings.replace,
        )

    def identity(self, item: Input, seed: int, samples: int, settings: Settings) -> dict[str, Any]:
        """All that the samples of a sound depend on, as plain values.

        Raises:
            MediaError: the input is gone.
        """
        return {
            "input_sha256": item.sha256,
            "seed": seed,
            "samples": samples,
            "settings": {
                **settings.plain(),
                "precision": self.models.precision,
                **({"compile": True} if self.models.compile else {}),  # its kernels round otherwise
            },
            "models": self.sha256,
        }


@contextmanager
def bar(
    models: Models, requests: Sequence[Request], refined: int, desc: str, disable: bool | None
) -> Iterator[Callable[[int], object]]:
    """A progress bar over the codes of some requests, of which so many are refined; gives what moves it on."""
    items = [Composition(models, request) for request in requests]
    fine = count_codes(items, ["up"]) * refined // max(1, len(items))
    with tqdm(total=count_codes(items, ["low"]) + fine, desc=desc, unit="code", disable=disable) as shown:
        yield shown.update
