"""Structured configs of `sample`, and of each mode of `evaluate`; see `im2wav.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from im2wav.options import device_option, group, option, seed_option


@dataclass
class Negative:
    """An input that guidance moves away from, by sampler.negative_scale."""

    image: str | None = option(None, "a photo that guidance moves away from")
    text: str | None = option(None, "a text that guidance moves away from (CLIP only)")


@dataclass
class GenerationModel:
    """Options of the commands that generate audio: which model, and how it computes."""

    pretrained: str | None = option(
        None,
        "the model: starter, a small model that is part of im2wav; official, the official Im2Wav weights; a folder "
        "written by convert or save_pretrained; or an id on the Hugging Face Hub; null: starter, unless a run is named",
    )
    run_name: str | None = option(
        None, "instead of pretrained: your run runs/RUN_NAME/{vqvae,low_prior,up_prior}/last.ckpt"
    )
    codec: str | None = option(None, "checkpoint of the VQ-VAE; null: that of the model")
    low: str | None = option(None, "checkpoint of the low prior; null: that of the model")
    up: str | None = option(None, "checkpoint of the up prior; null: that of the model")
    adapters: list[str] = option(
        [], "adapter=FILE,FILE: adapters of the priors, see docs/finetuning.md; FILE@0.5 has a weight of 0.5"
    )
    device: str = device_option(" or mps (Apple silicon)")
    precision: str = option(
        "auto",
        "precision of the priors: fp32, bf16, fp16 (GPUs) or int8 (CPUs); auto: fp32 on a CPU and on MPS, bf16 on CUDA "
        "(fp16 before Ampere)",
    )
    compile: bool | str = option(
        False,
        "true: compile decoding steps on CUDA (needs Triton) or on a CPU (needs g++; batch_size=auto is then at most "
        "2); triton: fused Triton kernels on CUDA (experimental)",
        choices=(True, False, "triton"),
    )
    encoder: Any = group()
    sampler: Any = group()
    paths: Any = group()


@dataclass
class SampleFiles:
    """What `sample` reads and writes; of a base class of their own, these options are the first of --help."""

    input: Any = group(or_path=True)
    out: str = option("samples", "folder of the generated audio")


@dataclass
class Sample(GenerationModel, SampleFiles):
    """Generate audio for input=PATH: a photo, a video, a folder of them, a pairs folder, a table of jobs (.csv), or -.

    - is a list of paths on stdin. Instead of a path, set input.timeline or input.text. Existing audio with the same
    settings is kept.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "input=photo.jpg",
        "input=clip.mp4 run_name=base num_samples=4 seed=1",
        "pretrained=official input=photos out=sounds trainer.devices=8",
    )

    seconds: float | None = option(
        None,
        "length of the audio; null: length of the video, or one window of the priors for a photo",
        unit="seconds",
        above=0,
    )
    overlap: float | None = option(
        None,
        "overlap of successive windows as a fraction of a window, for audio longer than a window; < 1; 0: independent "
        "windows; null: what the model recommends, otherwise 0.5",
        minimum=0,
    )
    seed: int = seed_option("the audio; each file depends only on the seed, the name of its input and its number")
    num_samples: int = option(1, "number of audio files for each input", minimum=1)
    num_drafts: int | None = option(
        None,
        "number of drafts (low prior only) for each input, of which the `keep` best by guidance gap are refined; null: "
        "no drafts",
        minimum=1,
    )
    keep: int = option(1, "with num_drafts: number of drafts that are refined", minimum=1)
    prompt: str | None = option(None, "a text beside the photo or video (experimental, CLIP only)")
    prompt_weight: float = option(0.5, "weight of the prompt; the image has the rest", minimum=0, maximum=1)
    negative: Negative = field(default_factory=Negative)
    continue_from: str | None = option(None, "an audio file to continue (audio prompt)")
    inpaint: str | None = option(None, "an audio file in which inpaint_interval is generated again (inpainting)")
    inpaint_interval: list[float] | None = option(None, "with inpaint: interval [start, end]", unit="seconds")
    format: str = option(
        "wav",
        "format of the audio files; mp4: wav, and for each photo and video also NAME_00.mp4 with the audio",
        choices=("wav", "flac", "mp3", "ogg", "opus", "m4a", "mp4"),
    )
    loudness: float | None = option(
        None, "loudness of the files, such as -23 (ITU-R BS.1770); null: as generated", unit="LUFS", maximum=0
    )
    peak_limit: float = option(-1.0, "with loudness: highest peak of the files", unit="dBFS", maximum=0)
    mux: bool | str = option(
        "auto",
        "also write NAME_00.mp4 with the generated audio; auto: for videos; true: for videos and photos",
        choices=(True, False, "auto"),
    )
    play: bool = option(False, "play the audio, if there are at most 12 files and the machine has a player")
    overwrite: bool = option(False, "generate existing files again")
    max_failed: float = option(
        0.0, "exit code 2 if a larger fraction of the inputs cannot be read", minimum=0, maximum=1
    )
    dry_run: bool = option(False, "only list the audio files to generate")
    batch_size: int | str = option(
        "auto", "audio files per batch; auto: as many as fit into free memory", minimum=1, words=("auto",)
    )
    trainer: Any = group()


@dataclass
class Web(GenerationModel):
    """Start a web page that generates audio for photos and videos, and print its address.

    Only this machine can open the page, unless host=0.0.0.0. The environment variable IM2WAV_PASSWORD, or
    password_file=FILE, sets a password.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "",
        "pretrained=official device=cuda port=8080",
        "host=0.0.0.0 password_file=password.txt max_seconds=10",
    )

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all, so that other machines can open the page")
    port: int | None = option(7860, "port to listen on; null: the first free one from 7860", minimum=1, maximum=65535)
    password_file: str | None = option(
        None, "file that contains the password of the page; null: that of IM2WAV_PASSWORD, or no password"
    )
    frames: list[str] = option(
        [], "addresses of other pages that may show this page in a frame, such as ['https://huggingface.co']"
    )
    max_seconds: float = option(30, "maximum length of the generated audio", unit="seconds", above=0)
    max_upload: float = option(25, "maximum size of an uploaded file", unit="MiB", above=0)
    max_video: float = option(10, "maximum duration of an uploaded video", unit="minutes", above=0)
    max_drafts: int = option(8, "maximum number of drafts to choose from", minimum=1)
    max_queue: int = option(32, "maximum number of waiting requests; further ones are rejected", minimum=1)
    keep: float = option(60, "time after which uploaded and generated files are deleted", unit="minutes", above=0)


@dataclass
class Evaluate:
    """Options that all modes of `evaluate` share."""

    mode: str = option(MISSING, "what is evaluated")
    suite: str = option(
        "offline",
        "networks of the metrics: offline (YAMNet, part of im2wav), paper (VGGish, PaSST, CLIP, Wav2CLIP) or all",
        choices=("offline", "paper", "all"),
    )
    weights_dir: str | None = option(None, "with suite=paper: folder of the networks' weights, see docs/evaluation.md")
    check_weights: bool = option(
        True, "false: also accept weights whose sha256 is not the published one; the report contains it"
    )
    out: str = option(
        "evaluation", "output folder: report.json, report.html, report.md, items.csv, times.json and generated audio"
    )
    seed: int = seed_option("generation, bootstrap resamples and random halves")
    resample: bool = option(
        False, "true: resample all audio to the lowest sample rate; false: different sample rates are an error"
    )
    seconds: float | None = option(
        None,
        "length of audio to evaluate; null: length of the shortest generated file, or 4.096 with mode=codec",
        unit="seconds",
        above=0,
    )
    loudness: float | None = option(
        -20, "RMS level that all audio is normalised to; null: unchanged", unit="dBFS", maximum=0
    )
    resamples: int = option(1000, "number of bootstrap resamples", minimum=2)
    resamples_fd: int = option(20, "number of bootstrap resamples of Fréchet distances, which are expensive", minimum=2)
    examples: int = option(6, "number of best and of worst examples on the page", minimum=0)
    device: str = device_option()
    paired: bool = option(
        True, "true: each generated file has a reference with its name; false: compare only the two sets"
    )
    max_retrieval: int = option(
        500, "maximum number of recordings for the retrieval metrics; with more recordings they are off", minimum=0
    )
    sampler: Any = group()
    paths: Any = group()


@dataclass
class EvaluateAudio(Evaluate):
    """Options of the modes that evaluate audio files, given or generated."""

    missing: str = option(
        "error",
        "files without a counterpart of the same name: error, or skip (the report lists them)",
        choices=("error", "skip"),
    )
    images: str | None = option(None, "folder of the images or videos, named like the audio")
    labels: str | None = option(None, "csv file with the columns id and label (VGGSound, AudioSet or ImageHear labels)")
    export: str | None = option(
        None,
        "av-benchmark: write the folders that av-benchmark reads to `out` instead of evaluating",
        choices=("av-benchmark",),
    )


@dataclass
class Generation:
    """Options of the modes that can generate audio first."""

    batch_size: int = option(16, "audio files per batch in generation", minimum=1)
    sample: list[str] = option([], "other options of im2wav.sample, such as ['encoder.weights=ViT-B-32.pt']")
    reconstruction: bool = option(True, "also evaluate the codec reconstruction of the references (upper bound)")


@dataclass
class EvaluateFolders(EvaluateAudio):
    """Compute metrics with confidence intervals and baselines for a folder of audio files, and write a page.

    mode=folders (default) compares generated=DIR with reference=DIR, or with the audio of a pairs folder, data=PAIRS.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "generated=DIR reference=DIR",
        "generated=DIR reference=DIR images=DIR suite=paper weights_dir=DIR",
        "generated=DIR data=data/pairs split=test",
    )

    mode: str = option("folders", "what is evaluated")
    generated: str = option(MISSING, "folder of generated audio files: NAME.wav, or NAME_00.wav, NAME_01.wav, ...")
    reference: str | None = option(None, "folder of real audio files, NAME.wav")
    data_dir: str | None = option(None, "data=DIR: a pairs folder with the real audio, instead of reference")
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))
    num_samples: int = option(1, "with data: number of audio files for each image", minimum=1)


@dataclass
class EvaluateModel(EvaluateAudio, Generation):
    """Generate audio with a model for the images of a pairs folder, and evaluate it against the folder's audio.

    An interrupted generation resumes where it stopped.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "mode=model model=runs/base data=data/pairs",
        "mode=model model=runs/base data=data/pairs split=test num_samples=4",
        "-m mode=model model=runs/base data=data/pairs sampler.guidance_scale=1,2,3,5",
    )

    mode: str = option("model", "what is evaluated")
    model_dir: str = option(
        "starter", "model=DIR: a run, a folder written by convert or save_pretrained, starter or official"
    )
    data_dir: str = option(
        MISSING, "data=DIR: a pairs folder, whose images are the inputs and whose audio is the reference"
    )
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))
    num_samples: int = option(1, "number of audio files for each image", minimum=1)


@dataclass
class EvaluateCodec(Evaluate):
    """Evaluate a VQ-VAE alone: its reconstructions of the audio of a pairs folder."""

    example_commands: ClassVar[tuple[str, ...]] = (
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs",
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs split=all",
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs seconds=2",
    )

    mode: str = option("codec", "what is evaluated")
    codec: str = option(MISSING, "checkpoint of the VQ-VAE: last.ckpt of its run, or a .safetensors file")
    data_dir: str = option(MISSING, "data=DIR: a pairs folder, whose audio is reconstructed")
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))


@dataclass
class EvaluateImageHear(EvaluateAudio, Generation):
    """Evaluate on ImageHear, the benchmark of Im2Wav: 101 photographs of 30 classes.

    Set images=DIR to generate the audio with a model first, or generated=DIR.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "mode=imagehear images=DIR",
        "mode=imagehear generated=DIR",
        "mode=imagehear model=runs/base images=DIR per_class=8 out=quick",
    )

    mode: str = option("imagehear", "what is evaluated")
    generated: str | None = option(None, "folder of audio files named after the photographs: NAME_00.wav, ...")
    reference: str | None = option(None, "folder of real audio files; only the two sets are compared")
    model_dir: str | None = option(
        None,
        "model=DIR: instead of generated, a run, a folder written by convert or save_pretrained, starter or official; "
        "null without generated: starter",
    )
    per_class: int = option(120, "number of audio files for each class (120 in the paper)", minimum=1)


MODES = {"folders": EvaluateFolders, "model": EvaluateModel, "codec": EvaluateCodec, "imagehear": EvaluateImageHear}
