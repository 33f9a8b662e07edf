"""Structured configs: one dataclass per command, with the type, range, unit and help text of each option.

Each primary config names its dataclass first in its defaults list (`- train_schema`), so that Hydra rejects unknown
keys and wrong types while it composes. `im2wav.options` checks ranges and writes `--help`. The options of config groups
(model, data, trainer, ...) belong to the classes that the groups name: their types are the annotations of those
classes, their help texts the comments in the files of `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from im2wav.config_inference import MODES, Sample, Web
from im2wav.config_tools import Bench, Licenses
from im2wav.options import device_option, group, option, seed_option


@dataclass
class Codes:
    """Options of the codes that the codec and both priors share."""

    size: int = option(2048, "codes in the codebook of each level", minimum=2)
    strides: list[list[int]] = option(
        [[2, 2, 2], [2, 2]],
        "strides of the encoders; the default gives hop lengths of 8 samples (up) and 32 samples (low)",
    )


@dataclass
class Train:
    """Train one model on a pairs folder: model=vqvae (the codec) first, then model=low_prior and model=up_prior.

    Checkpoints, logs, samples and the resolved config are written to runs/RUN_NAME/MODEL. The same command with
    resume=auto resumes an interrupted run.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "model=vqvae data.root=data/pairs",
        "model=low_prior init_from=starter data.root=data/mine run_name=mine",
        "experiment=official/up data=vggsound logger=wandb tags=[official] test=true",
    )

    run_name: str = option("base", "name shared by three models: runs/RUN_NAME/{vqvae,low_prior,up_prior}")
    task_name: str = option("train", "kind of run, as shown by the loggers")
    tags: list[str] = option([], "tags of the run, for W&B and the hyperparameters of the other loggers")
    seed: int = seed_option("initial weights, order of the data and dropout")
    resume: str | None = option(
        None,
        "auto: resume from the newest complete checkpoint of this run, or start a new run if there is none",
        choices=("auto",),
    )
    ckpt_path: str | None = option(
        None, "checkpoint to resume from (`last`: last.ckpt of this run), or .safetensors file of initial weights"
    )
    init_from: str | None = option(
        None,
        "model to begin with (fine-tuning): starter, official, a folder of a model or of runs, an id on the Hub, or a "
        "file; sizes, codec and encoder are those of the model, optimizer and schedule are new",
    )
    overwrite: bool = option(False, "replace a finished run of the same name")
    test: bool = option(False, "after training, evaluate best.ckpt (last.ckpt without validation) on the test split")
    codec: str | None = option(
        None,
        "checkpoint of the VQ-VAE whose codes a prior is trained on; null: that of init_from, else of the run name",
    )
    optimized_metric: str = option("valid/loss", "metric that a sweep optimises")
    compile: bool = option(
        False, "use torch.compile for training steps; compiling takes half a minute or more at the start"
    )
    codes: Codes = field(default_factory=Codes)
    sizes: Any = group()
    model: Any = group()
    data: Any = group()
    encoder: Any = group()
    callbacks: Any = group()
    logger: Any = group()
    trainer: Any = group()
    paths: Any = group()


@dataclass
class Embed:
    """Convert videos, or images and audio files, to a pairs folder: audio and image embeddings for training.

    An interrupted run resumes where it stopped; inputs that cannot be used are listed in skipped.csv.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "input=videos out=data/pairs",
        "input=clips data=vggsound trainer.devices=8",
        "input=videos out=data/pairs fps=8 loudness=-20 dry_run=true",
    )

    input: str | None = option(
        None,
        "a folder of videos, of images with audio files of the same name, or of images; or a manifest.csv with the "
        "columns id, image or video, and optionally audio, label, split and group; required except with data=demo",
    )
    out: str = option("${data.root}", "the pairs folder to write")
    dry_run: bool = option(False, "only print what would be done, with time and size estimated from a few inputs")
    dry_run_inputs: int = option(
        8, "with dry_run: number of inputs to measure, selected at random by `seed`", minimum=1
    )
    seed: int = seed_option("the selection of inputs that dry_run measures")
    fps: int | float = option(
        30,
        "frame rate at which videos are embedded (30 in Im2Wav; 8 takes less time and space)",
        unit="frames per second",
    )
    loudness: float | None = option(
        None, "RMS level that all audio is scaled to, with peaks below 1; null: unchanged", unit="dBFS", maximum=0
    )
    silence: float = option(0.001, "skip audio whose peak is lower (full scale is 1)", minimum=0, maximum=1)
    min_seconds: float = option(0.1, "skip shorter audio", unit="seconds", minimum=0)
    min_frame_change: float = option(
        0.25,
        "skip videos in which no frame differs from the first by more than this (mean absolute difference, levels of 0 "
        "to 255); 0: keep all",
        minimum=0,
        maximum=255,
    )
    max_failed: float = option(0.0, "exit code 1 if a larger fraction of the inputs was skipped", minimum=0, maximum=1)
    retry_skipped: bool = option(
        False, "retry inputs that an earlier run skipped; inputs that were missing or have changed are always retried"
    )
    compare: str = option(
        "time",
        "how changed input files are detected: by size and modification time (time), or by size and hash (hash)",
        choices=("time", "hash"),
    )
    prune: bool = option(False, "remove pairs whose input files were deleted; false: keep and list them")
    batch_size: int | None = option(None, "images per batch of the encoder; null: 256 on a GPU, 8 on a CPU", minimum=1)
    num_workers: int | None = option(
        None, "decoding processes per device; null: number of CPU cores divided by number of devices", minimum=1
    )
    threads: int | None = option(None, "CPU threads of the image encoder; null: all cores", minimum=1)
    timeout: float = option(
        120,
        "time without a message after which a decoding process is killed and its file skipped",
        unit="seconds",
        above=0,
    )
    shard: str = option(
        "0/1", "part of the inputs to embed, INDEX/COUNT: run 0/4 to 3/4 in parallel, or as an array job"
    )
    data: Any = group()
    source: Any = group()
    encoder: Any = group()
    trainer: Any = group()
    paths: Any = group()


@dataclass
class Shard:
    """Write a pairs folder as shards: a few large files, for network disks and object stores. train reads them with
    data=shards.

    Complete files of an earlier run are kept.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "data.root=data/pairs out=data/shards",
        "data.root=data/pairs out=data/shards chunk_mb=256 num_workers=16",
        "data.root=data/pairs dry_run=true",
    )

    out: str = option("data/shards", "folder of the shards")
    chunk_mb: float = option(64, "size of a shard file", unit="MiB")
    num_workers: int = option(4, "number of threads that read and write")
    dry_run: bool = option(False, "only print the number of files and their size")
    data: Any = group()


@dataclass
class Tokenize:
    """Encode whole clips once, so that the training of priors can read the cached codes with data.codes=cache.

    An interrupted run resumes where it stopped.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "data.root=data/pairs codec=runs/base/vqvae/last.ckpt",
        "data.root=data/pairs run_name=wide device=cuda:1 shard=1/4",
        "data.root=data/pairs dry_run=true",
    )

    run_name: str = option("base", "run name of the VQ-VAE that encodes the clips")
    codec: str = option("${paths.runs}/${run_name}/vqvae/last.ckpt", "checkpoint of the VQ-VAE that encodes the clips")
    device: str = device_option()
    shard: str = option(
        "0/1", "part of the missing codes to write, INDEX/COUNT: run 0/4 to 3/4 in parallel on four devices"
    )
    dry_run: bool = option(False, "only print what would be done, with time and size estimated from a few clips")
    data: Any = group()
    paths: Any = group()


@dataclass
class Inspect:
    """Print statistics of a pairs folder (counts, lengths, loudness, duplicates), and write a page with examples."""

    example_commands: ClassVar[tuple[str, ...]] = (
        "data.root=data/pairs",
        "data.root=data/pairs full=true out=null",
        "data=vggsound data.split=group cards=100",
    )

    out: str | None = option("${data.root}/inspect.html", "path of the HTML page; null: no page")
    cards: int = option(24, "number of pairs on the page", minimum=0)
    num_measured: int = option(500, "number of recordings whose loudness is measured", minimum=0)
    full: bool = option(False, "measure the loudness of all recordings")
    seed: int = seed_option("the random selection of pairs and recordings")
    data: Any = group()


@dataclass
class Convert:
    """Convert models to folders of safetensors that can be shared, and official CLIP pickles to a pairs folder.

    Give the models as official=DIR (official Im2Wav checkpoints) or run=DIR (models trained here).
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "official=checkpoints out=models/official",
        "pickles=video_CLIP wavs=audio out=data/official",
        "run=runs/base out=models/base dtype=fp16",
    )

    official: str | None = option(
        None, "a folder with the official checkpoints of vqvae, low and up, with any file names"
    )
    run: str | None = option(None, "a folder of runs, with vqvae, low_prior and up_prior, or of a model")
    dtype: str = option(
        "fp32", "with run: type of the weights in the files; fp16 halves their size", choices=("fp32", "fp16")
    )
    license: str | None = option(
        None, "with run: licence of the model in its card, as an identifier of the Hugging Face Hub, such as cc-by-4.0"
    )
    figures: str | None = option(None, "with run: folder that evaluate wrote; the model card shows its table")
    datasets: list[str] = option([], "with run: names of the training data in the model card, or ids on the Hub")
    pickles: str | None = option(
        None, "a folder of official video_CLIP/*.pickle files, or an official CLIP.pickle of images"
    )
    wavs: str | None = option(
        None, "with pickles: the folder of the audio files, NAME.wav for each NAME in the pickles"
    )
    fps: int | float = option(30, "with pickles of videos: frame rate of the embeddings", unit="frames per second")
    out: str = option(MISSING, "output folder")


@dataclass
class DemoStages:
    """Options of the stages of the demo."""

    images: str | None = option(
        None, "folder of your own images, to generate audio for them too, with the starter model"
    )
    family: str = option("residual", "family of the three models", choices=("residual", "im2wav"))
    overrides: list[str] = option([], "options of all three training runs, such as ['trainer.max_steps=20']")


@dataclass
class Demo:
    """Generate audio for photos with the starter model; then embed, train and evaluate on the shipped pairs.

    The page is runs/demo/index.html. The demo takes about 5 minutes on two CPU cores.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "",
        "demo.images=photos",
        "\"demo.overrides=['trainer.max_steps=20']\" paths.runs=runs/quick",
    )

    demo: DemoStages = field(default_factory=DemoStages)
    seed: int = seed_option("all stages")
    encoder: Any = group()
    sampler: Any = group()
    paths: Any = group()


COMMANDS = {
    "train": Train,
    "embed": Embed,
    "shard": Shard,
    "tokenize": Tokenize,
    "inspect": Inspect,
    "sample": Sample,
    "web": Web,
    "convert": Convert,
    "bench": Bench,
    "demo": Demo,
    "licenses": Licenses,
}


def register_schemas() -> None:
    """Make the dataclasses known to Hydra under the names that the defaults lists use."""
    store = ConfigStore.instance()
    for name, schema in COMMANDS.items():
        store.store(name=f"{name}_schema", node=schema)
    for name, schema in MODES.items():
        store.store(name=f"evaluate_{name}_schema", node=schema)
