"""`python -m im2wav.sample input=photo.jpg|clip.mp4|FOLDER`: pictures and videos -> sounds."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run

if TYPE_CHECKING:
    from im2wav.api import Im2Wav
    from im2wav.inference.inputs import Input
    from im2wav.jobs import Work

log = logging.getLogger(__name__)


def find(cfg: DictConfig) -> list[Input]:
    """What is to be heard.

    Raises:
        ValueError: nothing, several ways of saying it at once, or see `im2wav.inference.inputs`.
    """
    from im2wav.inference import inputs

    if not isinstance(cfg.input, DictConfig):
        given = str(cfg.input)
        if given == "-" and _shared(cfg):
            raise ValueError("input=- is read by one process alone: give a folder, or trainer.devices=1")
        return inputs.list_inputs(sys.stdin) if given == "-" else inputs.find_inputs(Path(given))
    ways = [str(key) for key, value in cfg.input.items() if value is not None]
    if len(ways) != 1:
        raise ValueError(
            "give input=PATH (a photo, a video, a folder, a pairs folder, or - for a list on stdin), or "
            "input.timeline=[dog.jpg@0,car.jpg@3], or input.text='a dog barks'"
            + (f"; not {' and '.join(ways)} at once" if ways else "")
        )
    if cfg.input.timeline is not None:
        return [inputs.timeline_input(list(cfg.input.timeline))]
    return [inputs.text_input(str(cfg.input.text))]


def load_model(cfg: DictConfig) -> Im2Wav:
    """The models that a configuration names.

    Raises:
        ValueError: a wrong or missing checkpoint, or nets that do not belong together.
    """
    import torch

    from im2wav.api import Im2Wav
    from im2wav.checkpoint import load
    from im2wav.generation.precision import check_compile, pick_device, pick_precision
    from im2wav.pretrained import KINDS, find_folder, find_weights

    paths: dict[str, Any] = {"codec": cfg.codec, "low": cfg.low, "up": cfg.up}
    if cfg.pretrained:
        paths = dict(find_weights(find_folder(str(cfg.pretrained), Path(cfg.paths.cache))))

    def make_encoder() -> Any:
        model.info.check_encoder(cfg.encoder.name, None, f"the low prior {paths['low']}")  # before weights are fetched
        return instantiate(cfg.encoder)

    device = "cpu" if cfg.trainer.accelerator == "cpu" else pick_device(cfg.device)
    check_compile(cfg.compile, torch.device(device))
    loaded = {name: load(paths[name], kind) for name, kind in KINDS.items()}
    model = Im2Wav(
        **loaded,
        make_encoder=make_encoder,
        device="cpu" if _shared(cfg) else device,  # the Trainer gives each process its own
        precision=pick_precision(cfg.precision, torch.device(device)),
        consume=True,
        compile=cfg.compile,
    )
    return model


def _shared(cfg: DictConfig) -> bool:
    """Whether a Trainer shares the work out."""
    return cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1


def prepare(cfg: DictConfig) -> tuple[Work, list[Input], range]:
    """Load what is needed and check what is asked for.

    Raises:
        ValueError: options out of range, or see `find` and `load_model`.
    """
    from im2wav.inference.outputs import Outputs
    from im2wav.jobs import Work

    drafts = cfg.num_drafts is not None
    numbers = range(cfg.num_drafts if drafts else cfg.num_samples)
    if len(numbers) < 1 or (cfg.batch_size != "auto" and (not isinstance(cfg.batch_size, int) or cfg.batch_size < 1)):
        raise ValueError(
            f"num_samples={cfg.num_samples}, num_drafts={cfg.num_drafts}, batch_size={cfg.batch_size}: expected 1 or "
            "more (batch_size=auto: as many as fit)"
        )
    if drafts and (cfg.num_samples != 1 or not 1 <= cfg.keep <= cfg.num_drafts):
        raise ValueError(
            f"num_drafts={cfg.num_drafts}, keep={cfg.keep}, num_samples={cfg.num_samples}: expected to keep 1 to "
            "num_drafts of them, and num_samples left at 1"
        )
    if cfg.mux not in (True, False, "auto"):
        raise ValueError(f"mux={cfg.mux}: expected true, false or auto")
    sampling, items = instantiate(cfg.sampler), find(cfg)
    installed = importlib.util.find_spec("av") is not None
    if not installed and cfg.mux is True:
        raise ValueError("mux=true needs PyAV: pip install 'im2wav[video]'")
    outputs = Outputs(Path(cfg.out), cfg.format, installed if cfg.mux == "auto" else cfg.mux, cfg.overwrite)
    model = load_model(cfg)
    settings = model.settings(
        sampling,
        seconds=cfg.seconds,
        overlap=cfg.overlap,
        negative=cfg.negative.image,
        negative_text=cfg.negative.text,
        prefix=cfg.prefix,
        edit=cfg.edit,
        replace=cfg.replace,
    )
    leads, size = not int(os.environ.get("LOCAL_RANK", "0")), None if cfg.batch_size == "auto" else cfg.batch_size
    return Work(model, settings, outputs, cfg.seed, cfg.keep if drafts else None, size, leads), items, numbers


def sample(cfg: DictConfig) -> list[dict[str, Any]]:
    """Make sounds for each input and write them as out/up/NAME_K.wav (and the drafts, out/low/), with a manifest.csv.

    Finished sounds of an earlier run are kept.

    Returns:
        For each sound: what its .json says, with the paths of its files by level.

    Raises:
        ValueError: nothing could be generated, more inputs than `max_failed` could not be read, or bad options.
    """
    from im2wav.jobs import pack, plan

    if os.environ.get("LOCAL_RANK", "0") != "0":
        log.setLevel(logging.WARNING)  # the leading process speaks for all
    work, items, numbers = prepare(cfg)
    units, bad = plan(work, items, numbers, work.settings)
    sounds = sum(len(unit.numbers) for unit in units)
    seconds = sum(unit.seconds * len(unit.numbers) for unit in units)
    log.info(
        "%d inputs: %d sounds to make, %.1f s in all; %d are there already",
        len(items),
        sounds,
        seconds,
        (len(items) - bad) * len(numbers) - sounds,
    )
    if cfg.dry_run:
        for unit in units:
            log.info("%s: %d of %.3f s from %s", unit.item.name, len(unit.numbers), unit.seconds, unit.item.source)
        return []
    nets: list[Any] = [work.model.models.codec, work.model.models.low, work.model.models.up]
    if any(unit.item.pair is None for unit in units):
        nets.append(work.model.encoder)  # whatever is wrong with it is said before anything is made
    if _shared(cfg) and units:
        from im2wav.generation.memory import MOST_SIDE_BY_SIDE
        from im2wav.training.predict import share_out, waiting_strategy

        trainer = instantiate(cfg.trainer, **waiting_strategy(cfg.trainer))
        # equal in all processes, whatever memory their devices have; and so that every device has something to do
        size = min(work.batch_size or MOST_SIDE_BY_SIDE, -(-sounds // trainer.world_size))
        if not share_out(trainer, work.in_batches, pack(units, size), nets):
            return []
    else:
        work.in_batches(units)
    rows = work.outputs.write_manifest([(item.name, number) for item in items for number in numbers])
    missing = len(items) - len({row["name"] for row in rows})
    log.info("%d sounds in %s", len(rows), work.outputs.root / "up")
    if missing:
        message = f"{len(items) - missing or 'none'} of {len(items)} inputs could be read, see above"
        if missing > cfg.max_failed * len(items):
            raise ValueError(f"{message} (max_failed={cfg.max_failed})")
        log.warning(message)
    return rows


@command("sample")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(sample, cfg)


if __name__ == "__main__":
    main()
