"""`python -m im2wav.embed input=FOLDER out=data/pairs`: videos, or pictures and sounds -> a pairs folder."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, instantiate, one_line, register_resolvers, run

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from im2wav.data.encoder import ImageEncoder
    from im2wav.data.journal import Journal, State
    from im2wav.data.pairs import DatasetInfo
    from im2wav.data.sources import Source, Sources

log = logging.getLogger(__name__)
SAMPLE_RATE = 16000  # Hz; the models know no other
register_resolvers()


def check_dataset(out: Path, info: DatasetInfo) -> None:
    """Refuse to go on with a pairs folder that was made in another way.

    Raises:
        ValueError: it was made by another encoder, at another rate or loudness, or from another published list.
    """
    from im2wav.data.pairs import DatasetInfo

    if not (out / "dataset.json").is_file():
        return
    before = DatasetInfo.read(out)
    before.check_encoder(info.encoder, info.weights_sha256, f"out={out}")
    for name in ("fps", "sample_rate", "loudness", "list_sha256"):
        old, new = getattr(before, name), getattr(info, name)
        if old != new:
            raise ValueError(
                f"out={out} has {name}={old}, now {name}={new} is asked for: use the same, or another folder"
            )


def find_todo(sources: Sources, state: State, out: Path, cfg: DictConfig) -> dict[int, Source]:
    """Sources that nothing is known of yet, by their number, in this job's share.

    Raises:
        ValueError: an id belongs to another source, or there is no such share.
    """
    index, of = cfg.share.index, cfg.share.of
    if not 0 <= index < of:
        raise ValueError(f"share.index={index} share.of={of}: expected 0 <= index < of")
    files = state.files(out)
    todo = {}
    for number in range(index, len(sources), of):
        source = sources[number]
        row = state.rows.get(source.id)
        if row is not None and row["source"] != source.path:
            raise ValueError(
                f"out={out} already has a pair {source.id!r}, made from {row['source']}, and now {source.path} is "
                "given: rename one of them, or use another folder"
            )
        whole = row is not None and all(row[kind] in files for kind in ("wav", "clip") if row[kind])
        if whole and bool(row["wav"]) == bool(source.audio or source.video):  # type: ignore[index]
            continue
        if source.id in state.skipped and not (cfg.retry_skipped or _worth_another_try(source, state)):
            continue
        todo[number] = source
    return todo


def _worth_another_try(source: Source, state: State) -> bool:
    """Whether a skipped source was missing, or has changed since."""
    if state.skipped[source.id][0] == "missing file":
        return True
    stamps = [os.stat(path) for path in (source.path, source.audio) if path and os.path.exists(path)]
    return any(max(stamp.st_mtime, stamp.st_ctime) > state.since for stamp in stamps)


def build_trainer(cfg: DictConfig, **overrides: Any) -> pl.Trainer:
    """The trainer that the config describes, for prediction alone."""
    import warnings
    from datetime import timedelta

    from lightning.pytorch.strategies import DDPStrategy

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # it decodes in workers of its own
    warnings.filterwarnings("ignore", message="predict returned None")  # clips are handed over, not returned
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = instantiate(cfg.trainer, **quiet, **overrides)
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = timedelta(days=30)  # the first device to end waits for the last
    return trainer


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def embed_sources(
    todo: dict[int, Source], cfg: DictConfig, encoder: ImageEncoder, journal: Journal, trainer: pl.Trainer
) -> float:
    """Embed sources, each device its part; returns the seconds that it took from the first batch on.

    A source belongs to a device by its number, so all devices agree without talking to each other.
    """
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from im2wav.data.decoding import Decoder
    from im2wav.data.packing import PackedFrames
    from im2wav.data.writing import PairWriter
    from im2wav.training.embedding import Embedder

    on_cpu = trainer.strategy.root_device.type == "cpu"
    rank, world = trainer.global_rank, trainer.world_size
    mine = {n: source for n, source in todo.items() if n // cfg.share.of % world == rank}
    decoder = Decoder(
        encoder.crop, encoder.size, cfg.fps, SAMPLE_RATE, cfg.silence, cfg.loudness, cfg.min_seconds, cfg.still
    )
    workers = cfg.workers if cfg.workers is not None else max(1, cores() // max(1, trainer.num_devices))
    frames = PackedFrames(mine, decoder, cfg.batch_size or (8 if on_cpu else 256), workers, cfg.timeout)
    with tqdm(total=len(mine), desc="embed", unit="item", disable=None if rank == 0 else True) as bar:
        finish = PairWriter(journal, mine, bar.update)
        model = Embedder(encoder, finish, journal.release, cfg.threads or cores())
        trainer.predict(model, DataLoader(frames, batch_size=None), return_predictions=False)
    return time.monotonic() - (model.began or time.monotonic())


def describe(sources: Sources, cfg: DictConfig, encoder: ImageEncoder | None = None) -> DatasetInfo:
    """What dataset.json says; without an encoder, which takes seconds to load, nothing of its weights."""
    from im2wav.data.media import RESAMPLER
    from im2wav.data.pairs import DatasetInfo

    fps = cfg.fps if any(source.video for source in sources) else None  # null for photos alone
    return DatasetInfo(
        cfg.encoder.name,
        cfg.encoder.dim,
        encoder.weights_sha256 if encoder else None,
        fps,
        SAMPLE_RATE,
        cfg.loudness,
        data=sources.name,
        list_sha256=sources.list_sha256,
        resampler=RESAMPLER,
    )


def dry_run(sources: Sources, todo: dict[int, Source], cfg: DictConfig) -> None:
    """Say what would be done; how long and how large is measured on a few inputs, in a folder that is removed again."""
    import random
    import tempfile

    from im2wav.clock import duration

    total = len(range(cfg.share.index, len(sources), cfg.share.of))
    log.info("%d of %d inputs are to do; nothing is written to %s", len(todo), total, cfg.out)
    if not todo:
        return
    from im2wav.data.journal import Journal

    chosen = sorted(random.Random(cfg.seed).sample(sorted(todo), min(cfg.dry_run_inputs, len(todo))))
    renumbered = {place * cfg.share.of: todo[number] for place, number in enumerate(chosen)}
    encoder = instantiate(cfg.encoder)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        journal = Journal(out)
        trainer = build_trainer(cfg, devices=1, num_nodes=1, strategy="auto")
        seconds = embed_sources(renumbered, cfg, encoder, journal, trainer) / len(chosen)
        state = journal.fold({})
        size = sum(file.stat().st_size for kind in ("wav", "clip") for file in (out / kind).glob("*")) / len(chosen)
    for name, (reason, detail) in sorted(state.skipped.items()):
        log.info("would be skipped: %s, %s (%s)", name, reason, detail)
    whole = f"{duration(seconds * len(todo))} on one device like this, {size * len(todo) / 1e9:.2f} GB"
    log.info("measured on %d inputs: %.2f s and %.2f MB each; for all: %s", len(chosen), seconds, size / 1e6, whole)


def summarise(sources: list[Source], state: State, out: Path) -> float:
    """Show what became of the inputs; returns the share that could not be used."""
    mine = {source.id for source in sources}
    good = mine & state.rows.keys()
    reasons = Counter(reason for name, (reason, _) in state.skipped.items() if name in mine)
    notes = Counter(
        note.split(":")[0] for name in good for note in (state.rows[name].get("note") or "").split("; ") if note
    )
    bad = sum(reasons.values())
    mended = [(f"of these {what}", n) for what, n in notes.most_common()]
    for what, count in (("embedded", len(good)), *mended, *reasons.most_common()):
        log.info("%10s  %6.2f %%  %s", f"{count:,}", 100 * count / len(mine), what)
    lost = f"; skipped {bad} (see {out / 'skipped.csv'})" if bad else "; nothing skipped"
    log.info("%d of %d embedded in %s%s", len(good), len(mine), out, lost)
    return bad / len(mine)


def embed(cfg: DictConfig) -> float:
    """Embed all inputs; what an earlier run finished is kept.

    Returns:
        The share of inputs that could not be used; skipped.csv lists them.
    """
    from im2wav.data.journal import Journal, State

    sources, out = instantiate(cfg.source), Path(cfg.out)
    check_dataset(out, describe(sources, cfg))
    state = State.read(out)
    todo = find_todo(sources, state, out, cfg)
    if cfg.dry_run:
        dry_run(sources, todo, cfg)
        return 0.0
    journal = None
    if todo:
        encoder = instantiate(cfg.encoder)
        info = describe(sources, cfg, encoder)
        check_dataset(out, info)
        trainer = build_trainer(cfg)
        journal = Journal(out)
        journal.write("dataset.json", info.content())
        embed_sources(todo, cfg, encoder, journal, trainer)
        if trainer.global_rank:
            return 0.0
    if todo or not state.settled(out, sources):
        state = (journal or Journal(out)).fold({source.id: source for source in sources})
    return summarise(sources[cfg.share.index :: cfg.share.of], state, out)


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="embed")
def main(cfg: DictConfig) -> None:
    """Entry; exit code 1 where more than `max_bad` of the inputs had to be skipped."""
    if run(embed, cfg) > cfg.max_bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
