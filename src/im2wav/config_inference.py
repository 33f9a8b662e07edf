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
    text: str | None = option(None, "a text that guidance moves away from, with CLIP alone")


@dataclass
class Sample:
    """Generate audio for input=PATH: a photo, a video, a folder of them, a pairs folder, or - for a list on stdin.

    Existing audio of the same settings is kept. Instead of a path: input.timeline or input.text.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "input=photo.jpg",
        "input=clip.mp4 num_samples=4 seed=1 sampler.guidance_scale=5",
        "pretrained=official input=photos out=sounds trainer.devices=8",
    )

    input: Any = group(or_path=True)
    out: str = option("samples", "folder of the generated audio")
    run_name: str = option("base", "run of the models: runs/RUN_NAME/{vqvae,low_prior,up_prior}/last.ckpt")
    pretrained: str | None = option(
        None, "instead of a run: a folder from convert or save_pretrained, or `official` for the authors' weights"
    )
    codec: str = option("${paths.runs}/${run_name}/vqvae/last.ckpt", "checkpoint of the VQ-VAE")
    low: str = option("${paths.runs}/${run_name}/low_prior/last.ckpt", "checkpoint of the low prior")
    up: str = option("${paths.runs}/${run_name}/up_prior/last.ckpt", "checkpoint of the up prior")
    seconds: float | None = option(
        None, "length of the audio; null: that of a video, else one window of the priors", unit="seconds", above=0
    )
    overlap: float = option(
        0.5, "fraction of a window that repeats the one before, for audio longer than a window", minimum=0
    )
    seed: int = seed_option("the audio: each file depends on the seed, its input's name and its number only")
    num_samples: int = option(1, "audio files for each input", minimum=1)
    num_drafts: int | None = option(
        None, "drafts for each input, of which the `keep` that the image explains best are refined", minimum=1
    )
    keep: int = option(1, "with num_drafts: drafts that are refined", minimum=1)
    negative: Negative = field(default_factory=Negative)
    continue_from: str | None = option(None, "audio prompt: an audio file to continue")
    inpaint: str | None = option(None, "inpainting: an audio file, of which inpaint_interval is generated again")
    inpaint_interval: list[float] | None = option(None, "with inpaint: [from, to]", unit="seconds")
    format: str = option("wav", "format of the audio files", choices=("wav", "flac"))
    mux: bool | str = option(
        "auto", "also write NAME_00.mp4 for videos; auto is the same as true", choices=(True, False, "auto")
    )
    overwrite: bool = option(False, "generate existing files again")
    max_failed: float = option(
        0.0, "exit code 2 if a larger fraction of the inputs cannot be read", minimum=0, maximum=1
    )
    dry_run: bool = option(False, "list the audio files to generate, and stop")
    batch_size: int | str = option(
        "auto", "audio files in a batch; auto: as many as fit into free memory", minimum=1, words=("auto",)
    )
    device: str = device_option(" or mps (Apple silicon)")
    precision: str = option(
        "auto",
        "of the priors: fp32, bf16, fp16 (GPUs), int8 (CPUs); auto: fp32 on a CPU and MPS, bf16 (before Ampere fp16) "
        "on CUDA",
    )
    compile: bool | str = option(
        False,
        "true: compiled steps, on CUDA (needs Triton) or a CPU (needs g++; batch_size=auto is then 1 or 2); triton: "
        "fused kernels on CUDA",
        choices=(True, False, "triton"),
    )
    encoder: Any = group()
    sampler: Any = group()
    trainer: Any = group()
    paths: Any = group()


@dataclass
class Evaluate:
    """What all modes of `evaluate` share."""

    mode: str = option(MISSING, "what is evaluated; chosen by the config group of this name")
    suite: str = option(
        "offline",
        "networks: offline (YAMNet, ships with im2wav), paper (VGGish, PaSST, CLIP, Wav2CLIP) or all",
        choices=("offline", "paper", "all"),
    )
    weights_dir: str | None = option(None, "for suite=paper: a folder of the networks' files, see docs/evaluation.md")
    check_weights: bool = option(
        True, "false: also accept files whose sha256 is not the published one; the report names it"
    )
    out: str = option(
        "evaluation", "folder of report.json, report.html, report.md, items.csv, times.json and generated audio"
    )
    seed: int = seed_option("generation, resamples and random halves")
    resample: bool = option(False, "true: sample rates may differ, all are resampled to the lowest")
    seconds: float | None = option(
        None,
        "length that is evaluated; null: of the shortest generated file, with codec 4.096",
        unit="seconds",
        above=0,
    )
    loudness: float | None = option(
        -20, "RMS level that all audio is normalised to; null: unchanged", unit="dBFS", maximum=0
    )
    resamples: int = option(1000, "resamples of the bootstrap", minimum=2)
    resamples_fd: int = option(20, "resamples for Fréchet distances, which are expensive", minimum=2)
    examples: int = option(6, "number of best and of worst files on the page", minimum=0)
    device: str = device_option()
    paired: bool = option(True, "false: no file has a reference of its own; only the sets are compared")
    max_retrieval: int = option(
        500, "maximum number of training recordings that retrieval searches; with more it is off", minimum=0
    )
    sampler: Any = group()
    paths: Any = group()


@dataclass
class EvaluateAudio(Evaluate):
    """Options of the modes that evaluate audio files, given or generated."""

    missing: str = option(
        "error", "names without a counterpart: error, or skip (the report lists them)", choices=("error", "skip")
    )
    images: str | None = option(None, "a folder of images of the same names")
    labels: str | None = option(None, "a csv file with the columns id and label: VGGSound, AudioSet or ImageHear names")
    export: str | None = option(
        None, "av-benchmark: write the folders that it expects to out, evaluate nothing", choices=("av-benchmark",)
    )


@dataclass
class Generation:
    """Options of the modes that can generate audio first."""

    batch_size: int = option(16, "audio files generated at once", minimum=1)
    sample: list[str] = option([], "further options of im2wav.sample, such as ['encoder.weights=ViT-B-32.pt']")
    reconstruction: bool = option(True, "also evaluate the codec reconstruction of the references, an upper bound")


@dataclass
class EvaluateFolders(EvaluateAudio):
    """Compute metrics with confidence intervals and baselines for a folder of audio files, and write a page.

    mode=folders compares generated=DIR with reference=DIR, or with the audio of a pairs folder, data=PAIRS.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "generated=DIR reference=DIR",
        "generated=DIR reference=DIR images=DIR suite=paper weights_dir=DIR",
        "generated=DIR data=data/pairs split=test",
    )

    mode: str = option("folders", "chosen by the config group of this name")
    generated: str = option(MISSING, "a folder of audio files: NAME.wav, or NAME_00.wav, NAME_01.wav, ...")
    reference: str | None = option(None, "a folder of real audio files, NAME.wav")
    data_dir: str | None = option(None, "data=DIR, instead of reference: a pairs folder")
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))
    num_samples: int = option(1, "with data: audio files for each image", minimum=1)


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

    mode: str = option("model", "chosen by the config group of this name")
    model_dir: str = option(MISSING, "model=DIR: a folder of vqvae, low_prior and up_prior: a run, or from convert")
    data_dir: str = option(MISSING, "data=DIR: a pairs folder, whose images are the input and whose audio is real")
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))
    num_samples: int = option(1, "audio files for each image", minimum=1)


@dataclass
class EvaluateCodec(Evaluate):
    """Evaluate a VQ-VAE alone: its reconstructions of the audio of a pairs folder."""

    example_commands: ClassVar[tuple[str, ...]] = (
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs",
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs split=all",
        "mode=codec codec=runs/base/vqvae/last.ckpt data=data/pairs seconds=2",
    )

    mode: str = option("codec", "chosen by the config group of this name")
    codec: str = option(MISSING, "a VQ-VAE: last.ckpt of its run, or a .safetensors file")
    data_dir: str = option(MISSING, "data=DIR: a pairs folder, whose audio is reconstructed")
    split: str = option("valid", "split of data: train, valid, test or all", choices=("train", "valid", "test", "all"))


@dataclass
class EvaluateImageHear(EvaluateAudio, Generation):
    """Evaluate on ImageHear, the benchmark of Im2Wav: 101 photographs of 30 classes.

    Give model=DIR and images=DIR to generate the audio first, or generated=DIR.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "mode=imagehear model=runs/base images=DIR",
        "mode=imagehear generated=DIR",
        "mode=imagehear model=runs/base images=DIR per_class=8 out=quick",
    )

    mode: str = option("imagehear", "chosen by the config group of this name")
    generated: str | None = option(None, "a folder of audio files named after the photographs: NAME_00.wav, ...")
    reference: str | None = option(None, "a folder of real audio; only the sets are compared")
    model_dir: str | None = option(None, "model=DIR, instead of generated: a folder of vqvae, low_prior and up_prior")
    per_class: int = option(120, "audio files for each class (120 in the paper)", minimum=1)


MODES = {"folders": EvaluateFolders, "model": EvaluateModel, "codec": EvaluateCodec, "imagehear": EvaluateImageHear}
