"""The command `sample`: options -> model, inputs and runner -> files.

The files are out/up/NAME_00.wav, the draft out/low/NAME_00.wav, and a .json beside each. The .json of the draft is
written last: if it exists, the other files do.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.adapter import apply_adapters
from im2wav.checkpoint import KINDS, find_weights, load
from im2wav.decoding.decoder import MAX_BATCH_SIZE
from im2wav.decoding.sampler import SamplingOptions, given_sampling, item_seed
from im2wav.files import flatten, path_inside, table_bytes, write_atomic
from im2wav.hub import find_adapters, find_folder
from im2wav.inference.api import Im2Wav, Runner, make_batches
from im2wav.inference.generate import FORMATS, GeneratedAudio, write_about, write_audio, write_video
from im2wav.inference.jobs import Job
from im2wav.inference.request import Request, make_request
from im2wav.media.loudness import SHORTEST, check_loudness_options, normalise_loudness
from im2wav.media.playing import play
from im2wav.media.reading import MediaError
from im2wav.system import report_progress

log = logging.getLogger(__name__)
Build = Callable[..., Any]
SHOWN = 12  # most audio files that are listed, and played, one by one
MANIFEST = ("name", "number", "input", "seed", "seconds", "rank", "gap", "up", "low", "video")


@dataclass(frozen=True)
class Outputs:
    """A folder of generated audio.

    Attributes:
        root: the folder.
        format: one of `FORMATS`.
        videos: kinds of inputs, video or photo, of which NAME_00.mp4 with the audio is written too.
        overwrite: generate existing files again.
        loudness: of the files in LUFS, and the limit of their peaks in dBFS; None: as generated.
    """

    root: Path
    format: str = "wav"
    videos: tuple[str, ...] = ()
    overwrite: bool = False
    loudness: tuple[float, float] | None = None

    def path(self, level: str, name: str, number: int, suffix: str | None = None) -> Path:
        """Path of a file.

        Raises:
            ValueError: the name, which may be an id of any manifest, is not a valid file name.
        """
        return path_inside(self.root / level, name, "name of an input", f"_{number:02d}.{suffix or self.format}")

    def read(self, name: str, number: int) -> dict[str, Any] | None:
        """The .json of a finished audio; None if it is not finished."""
        path = self.path("low", name, number, "json")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            files = [path_inside(self.root, file, f"{path}: file", nested=True) for file in about["files"].values()]
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return about if all(file.is_file() for file in files) else None

    def finished(self, request: Request, identity: Callable[[], Mapping[str, Any]]) -> bool:
        """Whether an earlier run generated this audio.

        Raises:
            ValueError: it did, with other settings.
        """
        name, number = request.input.name, request.number
        about = None if self.overwrite else self.read(name, number)
        if about is None:
            return False
        now, before = (flatten(x) for x in ({**identity(), **self.identity}, about.get("identity", {})))
        changed = sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k))
        if changed:
            key = changed[0]
            raise ValueError(
                f"{self.path('up', name, number)} already exists, generated with {key}={before.get(key)}; now "
                f"{key}={now.get(key)}. Use another folder (out=), or overwrite=true"
            )
        files = about["files"]
        return files.get("low", "").endswith(self.format) and (
            "video" in files or not self._wants_video(request, files)
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What the files depend on beside the generated audio."""
        return dict(zip(("loudness", "peak_limit"), self.loudness or (), strict=False))

    def _wants_video(self, request: Request, files: Mapping[str, str]) -> bool:
        return request.input.kind in self.videos and "up" in files

    def write(self, audio: GeneratedAudio) -> None:
        """Write the files of one audio; only those of `low` for a draft that was not refined."""
        request, wav, about = audio.request, dict(audio.waveforms), dict(audio.about)
        name, number = request.input.name, request.number
        for suffix in ("json", *FORMATS, "mp4"):  # of an earlier run, first the .json that marks it as finished
            for level in ("low", "up"):
                old = self.path(level, name, number, suffix)
                if old.is_file():
                    old.unlink()
        if self.loudness is not None:
            about["identity"] = {**about["identity"], **self.identity}
            for level in sorted(wav):  # low, then up, whose gain is noted
                wav[level], about["normalised"] = normalise_loudness(wav[level], audio.sample_rate, *self.loudness)
        paths = {level: self.path(level, name, number) for level in wav}
        files = {level: str(path.relative_to(self.root)) for level, path in paths.items()}
        if self._wants_video(request, files):
            target = self.path("up", name, number, "mp4")
            try:
                write_video(request.input, wav["up"], audio.sample_rate, target)
                files["video"] = str(target.relative_to(self.root))
            except MediaError as error:
                log.warning("%s; the audio is in %s", error, paths["up"])
        about |= {"name": name, "number": number, "files": files}
        for level in sorted(wav, reverse=True):  # up, then low, whose .json marks it as finished
            write_audio(paths[level], wav[level], audio.sample_rate)
            write_about(paths[level], {"level": level, **about})

    def write_manifest(self, files: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Write manifest.csv with the finished ones of these (name, number), in the order given.

        Returns:
            The content of their .json files, with the paths of their files by level.
        """
        finished = [about for name, number in files if (about := self.read(name, number)) is not None]
        rows = [{**about, **about["files"]} for about in finished]
        write_atomic(self.root / "manifest.csv", table_bytes(MANIFEST, rows))
        return [{**about, **{k: str(self.root / file) for k, file in about["files"].items()}} for about in finished]


def is_distributed(cfg: DictConfig) -> bool:
    """Whether several processes generate."""
    return cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1


def load_model(cfg: DictConfig, build: Build, device: str) -> Im2Wav:
    """The model that the options name, on a device."""
    if cfg.pretrained and cfg.run_name:
        raise ValueError(f"pretrained={cfg.pretrained} and run_name={cfg.run_name}: set one of the two")
    own = Path(cfg.paths.runs) / cfg.run_name if cfg.run_name else None
    folder = own or find_folder(str(cfg.pretrained or "starter"), Path(cfg.paths.cache))
    paths = find_weights(folder, {name: cfg[name] for name in KINDS})

    def make_encoder() -> Any:
        if cfg.encoder.name == "auto":
            return build({**cfg.encoder, "name": model.info.encoder})
        model.info.check_encoder(cfg.encoder.name, None, f"the low prior {paths['low']}")  # before fetching weights
        return build(cfg.encoder)

    loaded: dict[str, Any] = {name: load(paths[name], kind) for name, kind in KINDS.items()}
    if cfg.adapters:
        apply_adapters({loaded[name].kind: loaded[name].net for name in ("low", "up")}, find_adapters(cfg.adapters))
    options = {"precision": cfg.precision, "compile": cfg.compile, "consume": True}
    model = Im2Wav(**loaded, make_encoder=make_encoder, device=device, **options)
    return model


def read_numbers(cfg: DictConfig) -> range:
    """Numbers of the audio files of each input."""
    if cfg.num_drafts is not None and (cfg.num_samples != 1 or not 1 <= cfg.keep <= cfg.num_drafts):
        raise ValueError(
            f"num_drafts={cfg.num_drafts}, keep={cfg.keep}, num_samples={cfg.num_samples}: expected keep from 1 to "
            "num_drafts, and num_samples=1"
        )
    return range(cfg.num_drafts or cfg.num_samples)


def sampling_options(cfg: DictConfig) -> dict[str, Any]:
    """The values of `SamplingOptions` in the config; None leaves a value to the model."""
    return {**given_sampling(cfg.sampler), "overlap": cfg.overlap}


def make_template(cfg: DictConfig, model: Im2Wav, job: Job) -> Request:
    """The request that all inputs of a job share."""
    sampling = model.sampling({**sampling_options(cfg), **job.sampling})
    options = {name: cfg[name] for name in ("seconds", "continue_from", "inpaint", "inpaint_interval")}
    options |= {"negative": cfg.negative.image, "negative_text": cfg.negative.text, **job.options}
    seed = options.pop("seed", cfg.seed)
    return replace(make_request(model, job.inputs[0], sampling, **options), seed=seed)


def plan_requests(runner: Runner, template: Request, job: Job, outputs: Outputs) -> tuple[list[list[Request]], int]:
    """Requests that are not finished yet, by input, and the number of unreadable inputs."""
    groups, failed, numbers = [], 0, job.numbers
    for item in job.inputs:
        try:
            first = template.resolve(runner.model.networks.window, input=item)
            group = [replace(first, seed=item_seed(template.seed, item.name, n), number=n) for n in numbers]
            todo = [r for r in group if not outputs.finished(r, partial(runner.identity, r, len(numbers)))]
        except MediaError as error:
            failed, todo = failed + 1, []
            log.warning("skipped: %s", error)
        if todo:
            groups.append(group if runner.keep is not None else todo)
    return groups, failed


def generate_batches(runner: Runner, outputs: Outputs, groups: Sequence[Sequence[Request]]) -> None:
    """Generate and write audio files; skip inputs that cannot be read with a warning."""
    for batch in make_batches(groups, runner.fit_batch(any(group[0].negative is not None for group in groups))):
        buffers = []
        for group in batch:
            try:
                buffers.append(runner.buffers(group))
            except MediaError as error:
                log.warning("skipped: %s", error)
        results = runner.generate(buffers) if buffers else []
        for audio in (audio for drafts in results for audio in drafts):
            outputs.write(audio)


def generate_files(cfg: DictConfig, build: Build, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Generate audio for each input: out/up/NAME_K.wav, drafts in out/low/, and manifest.csv.

    Files of an earlier run are kept. With several devices, each process of a Trainer has the model on its own.

    Args:
        cfg: options of conf/sample.yaml.
        build: instantiates a config node.
        jobs: what to generate.

    Returns:
        The content of the .json of each audio file, with paths by level.

    Raises:
        ValueError: options out of range, or more than `max_failed` of the inputs cannot be read.
    """
    SamplingOptions().updated(sampling_options(cfg))  # rejects wrong values before anything is loaded
    audio, with_photos = ("wav", True) if cfg.format == "mp4" else (cfg.format, cfg.mux is True)
    videos = ("video", "photo") if with_photos else ("video",) if cfg.mux else ()
    loudness = None if cfg.loudness is None else (cfg.loudness, cfg.peak_limit)
    outputs = Outputs(Path(cfg.out), audio, videos, cfg.overwrite, loudness)
    trainer, device, is_leader = None, "cpu" if cfg.trainer.accelerator == "cpu" else cfg.device, True
    if is_distributed(cfg):
        from im2wav.distributed import predict_trainer

        trainer = predict_trainer(cfg.trainer, build)
        device, is_leader = str(trainer.strategy.root_device), trainer.is_global_zero
    if not is_leader:
        log.setLevel(logging.WARNING)
    model = load_model(cfg, build, device)
    keep, size = None if cfg.num_drafts is None else cfg.keep, None if cfg.batch_size == "auto" else cfg.batch_size
    runner = Runner(model, keep, size, None if is_leader else True)
    groups, finished = [], 0
    for job in jobs:
        planned, failed = plan_requests(runner, make_template(cfg, model, job), job, outputs)
        groups += planned
        finished += (len(job.inputs) - failed) * len(job.numbers) - sum(map(len, planned))
    groups.sort(key=lambda group: group[0].samples or 0)  # batches of similar length
    requests = [request for group in groups for request in group]
    names = [(item.name, number) for job in jobs for item in job.inputs for number in job.numbers]
    log.info(
        "%d inputs: %d audio files to generate, %.1f s in total; %d exist already",
        *(len({name for name, _ in names}), len(requests), sum(request.seconds for request in requests), finished),
    )
    if cfg.dry_run:
        for first, *rest in groups:
            log.info("%s: %d x %.3f s from %s", first.input.name, 1 + len(rest), first.seconds, first.input.source)
        return []
    _check_before_generation(model, requests, outputs)
    with report_progress(lambda: _progress(outputs, names)):
        _generate(runner, outputs, groups, size, trainer)
    return _write_manifest(cfg, outputs, names) if is_leader else []


def _check_before_generation(model: Im2Wav, requests: Sequence[Request], outputs: Outputs) -> None:
    """Raise errors of the encoder, of texts and of loudness before anything is generated."""
    if any(request.input.pair is None or request.input.prompt for request in requests):
        _ = model.encoder
    items = (item for request in requests for item in (request.input, request.negative) if item is not None)
    texts = {item.prompt[0] if item.prompt else item.text for item in items} - {""}
    if texts:
        model.encoder.encode_text(sorted(texts))  # which keeps them
    if outputs.loudness is not None:
        check_loudness_options(min((request.seconds for request in requests), default=SHORTEST))


def _generate(
    runner: Runner, outputs: Outputs, groups: list[list[Request]], size: int | None, trainer: Any | None
) -> None:
    if groups and trainer is not None:
        # the same in all processes, whatever the memory of their devices, and small enough to give every device work
        from im2wav.distributed import distribute

        size = min(size or MAX_BATCH_SIZE, -(-sum(map(len, groups)) // trainer.world_size))
        distribute(trainer, partial(generate_batches, runner, outputs), make_batches(groups, size))
    elif groups:
        generate_batches(runner, outputs, groups)


def _progress(outputs: Outputs, names: Sequence[tuple[str, int]]) -> str:
    done = sum(outputs.read(*name) is not None for name in names)
    rest = "overwrite=true generates all again" if outputs.overwrite else "the same command generates the rest"
    return f"{done} of {len(names)} audio files are finished in {outputs.root / 'up'}; {rest}"


def _write_manifest(cfg: DictConfig, outputs: Outputs, names: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = outputs.write_manifest(names)
    count = len({name for name, _ in names})
    missing = count - len({row["name"] for row in rows})
    for row in rows if len(rows) <= SHOWN else []:
        sound = row.get("up", row["low"])
        where = row.get("video") or sound
        log.info("%s: %.2f s of audio in %s (seed %d)", row["input"], row["seconds"], where, row["seed"])
        if cfg.play:
            play(Path(sound))
    log.info("%d audio files in %s", len(rows), outputs.root / "up")
    if missing:
        message = f"{count - missing or 'none'} of {count} inputs could be read, see above"
        if missing > cfg.max_failed * count:
            raise ValueError(f"{message} (max_failed={cfg.max_failed})")
        log.warning(message)
    return rows
