"""The command `sample`: options -> model, inputs and runner -> files."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from im2wav.checkpoint import load
from im2wav.decoding.batch_size import MAX_BATCH_SIZE
from im2wav.decoding.linear import check_compile, pick_device, resolve_precision
from im2wav.hub import KINDS, find_folder, find_weights
from im2wav.inference.api import Im2Wav
from im2wav.inference.inputs import Input, find_inputs, list_inputs, text_input, timeline_input
from im2wav.inference.outputs import Outputs
from im2wav.inference.request import Request, make_request
from im2wav.inference.runner import Runner, make_batches

log = logging.getLogger(__name__)
Build = Callable[..., Any]


def read_inputs(cfg: DictConfig) -> list[Input]:
    """The inputs that `input` names.

    Raises:
        ValueError: not exactly one way to name inputs, or an error of `im2wav.inference.inputs`.
    """
    if not isinstance(cfg.input, DictConfig):
        path = str(cfg.input)
        if path == "-" and _is_distributed(cfg):
            raise ValueError("input=- works with one process only: set a folder, or trainer.devices=1")
        return list_inputs(sys.stdin) if path == "-" else find_inputs(Path(path))
    keys = [str(key) for key, value in cfg.input.items() if value is not None]
    if len(keys) != 1:
        raise ValueError(
            "set input=PATH (a photo, a video, a folder, a pairs folder, or - for a list on stdin), or "
            "input.timeline=[dog.jpg@0,car.jpg@3], or input.text='a dog barks'"
            + (f"; not {' and '.join(keys)} together" if keys else "")
        )
    return [text_input(str(cfg.input.text)) if cfg.input.timeline is None else timeline_input(list(cfg.input.timeline))]


def load_model(cfg: DictConfig, build: Build) -> Im2Wav:
    """The model that the options name.

    Raises:
        ValueError: a wrong or missing checkpoint, or networks of different origin.
    """
    paths: dict[str, Any] = {"codec": cfg.codec, "low": cfg.low, "up": cfg.up}
    if cfg.pretrained:
        paths = dict(find_weights(find_folder(str(cfg.pretrained), Path(cfg.paths.cache))))

    def make_encoder() -> Any:
        model.info.check_encoder(cfg.encoder.name, None, f"the low prior {paths['low']}")  # before fetching weights
        return build(cfg.encoder)

    device = "cpu" if cfg.trainer.accelerator == "cpu" else pick_device(cfg.device)
    check_compile(cfg.compile, torch.device(device))
    loaded: dict[str, Any] = {name: load(paths[name], kind) for name, kind in KINDS.items()}
    precision = resolve_precision(cfg.precision, torch.device(device))
    # the Trainer moves the networks from the CPU to the device of each process
    model = Im2Wav(**loaded, make_encoder=make_encoder, device="cpu" if _is_distributed(cfg) else device, consume=True)
    model.networks = replace(model.networks, precision=precision, compile=cfg.compile)
    return model


def _is_distributed(cfg: DictConfig) -> bool:
    return cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1


def read_numbers(cfg: DictConfig) -> range:
    """Numbers of the audio files of each input.

    Raises:
        ValueError: keep out of range, or num_samples with num_drafts.
    """
    numbers = range(cfg.num_samples if cfg.num_drafts is None else cfg.num_drafts)
    if cfg.num_drafts is not None and (cfg.num_samples != 1 or not 1 <= cfg.keep <= cfg.num_drafts):
        raise ValueError(
            f"num_drafts={cfg.num_drafts}, keep={cfg.keep}, num_samples={cfg.num_samples}: expected keep from 1 to "
            "num_drafts, and num_samples=1"
        )
    return numbers


def make_outputs(cfg: DictConfig) -> Outputs:
    """The folder of generated audio.

    Raises:
        ValueError: another format, or PyAV is not installed.
    """
    installed = importlib.util.find_spec("av") is not None
    if not installed and cfg.mux is True:
        raise ValueError("mux=true needs PyAV: pip install 'im2wav[video]'")
    return Outputs(Path(cfg.out), cfg.format, installed if cfg.mux == "auto" else cfg.mux, cfg.overwrite)


def make_template(cfg: DictConfig, model: Im2Wav, item: Input, sampling: Any) -> Request:
    """The request that all inputs share, with the seed of the run."""
    request = make_request(
        model.networks,
        item,
        sampling,
        sample_rate=model.sample_rate,
        recording=model.recording,
        seconds=cfg.seconds,
        overlap=cfg.overlap,
        negative=cfg.negative.image,
        negative_text=cfg.negative.text,
        continue_from=cfg.continue_from,
        inpaint=cfg.inpaint,
        inpaint_interval=cfg.inpaint_interval,
    )
    return replace(request, seed=cfg.seed)


def run_sample(cfg: DictConfig, build: Build) -> list[dict[str, Any]]:
    """Generate audio for each input of the options; see `generate_files`."""
    return generate_files(cfg, build, [(read_inputs(cfg), read_numbers(cfg))])


def generate_files(
    cfg: DictConfig, build: Build, jobs: Sequence[tuple[Sequence[Input], range]]
) -> list[dict[str, Any]]:
    """Generate audio for each input: out/up/NAME_K.wav, drafts in out/low/, and manifest.csv.

    Files of an earlier run are kept.

    Args:
        cfg: options of conf/sample.yaml.
        build: instantiates a config node.
        jobs: inputs, and the numbers K of the audio files of each.

    Returns:
        The content of the .json of each audio file, with paths by level; nothing in a process that does not write
        manifest.csv.

    Raises:
        ValueError: options out of range, or more than `max_failed` of the inputs cannot be read.
    """
    is_leader = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_leader:
        log.setLevel(logging.WARNING)
    sampling, outputs = build(cfg.sampler), make_outputs(cfg)
    model = load_model(cfg, build)
    template = make_template(cfg, model, jobs[0][0][0], sampling)
    keep, size = None if cfg.num_drafts is None else cfg.keep, None if cfg.batch_size == "auto" else cfg.batch_size
    runner = Runner(model, keep, size, None if is_leader else True)
    groups, finished = [], 0
    for items, numbers in jobs:
        planned, failed = runner.plan(template, items, numbers, outputs)
        groups += planned
        finished += (len(items) - failed) * len(numbers) - sum(map(len, planned))
    requests = [request for group in groups for request in group]
    names = [(item.name, number) for items, numbers in jobs for item in items for number in numbers]
    count = len({name for name, _ in names})
    log.info(
        "%d inputs: %d audio files to generate, %.1f s in total; %d exist already",
        count,
        len(requests),
        sum(map(_seconds, requests)),
        finished,
    )
    if cfg.dry_run:
        for first, *rest in groups:
            log.info("%s: %d x %.3f s from %s", first.input.name, 1 + len(rest), _seconds(first), first.input.source)
        return []
    if groups and not _generate(cfg, build, runner, outputs, groups):
        return []
    rows = outputs.write_manifest(names)
    missing = count - len({row["name"] for row in rows})
    log.info("%d audio files in %s", len(rows), outputs.root / "up")
    if missing:
        message = f"{count - missing or 'none'} of {count} inputs could be read, see above"
        if missing > cfg.max_failed * count:
            raise ValueError(f"{message} (max_failed={cfg.max_failed})")
        log.warning(message)
    return rows


def _seconds(request: Request) -> float:
    return (request.samples or 0) / request.sample_rate


def _generate(cfg: DictConfig, build: Build, runner: Runner, outputs: Outputs, groups: list[list[Request]]) -> bool:
    """Generate, on the devices of a Trainer if there are several. Returns whether this process writes the manifest."""
    networks: list[Any] = [runner.model.networks.codec, runner.model.networks.low, runner.model.networks.up]
    if any(group[0].input.pair is None for group in groups):
        networks.append(runner.model.encoder)  # so that its errors come before generation
    if not _is_distributed(cfg):
        runner.write(outputs, groups)
        return True
    from im2wav.inference.devices import distribute, waiting_strategy

    trainer = build(cfg.trainer, **waiting_strategy(cfg.trainer))
    # the same in all processes, whatever the memory of their devices, and small enough to give every device work
    size = min(runner.batch_size or MAX_BATCH_SIZE, -(-sum(map(len, groups)) // trainer.world_size))
    return distribute(trainer, partial(runner.write, outputs), make_batches(groups, size), networks)
