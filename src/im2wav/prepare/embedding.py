"""Embed sources into a pairs folder, or estimate the cost in a dry run."""

import logging
import os
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from im2wav.data.manifest import Pair
from im2wav.data.pairs import DatasetInfo
from im2wav.distributed import interruptible, predict_trainer
from im2wav.files import npy_bytes, parse_shard
from im2wav.media.encoder import ImageEncoder
from im2wav.media.reading import RESAMPLER
from im2wav.prepare.clip_reader import ClipReader, Decoded, End, Failed
from im2wav.prepare.embedder import Embedder, PackedFrames
from im2wav.prepare.journal import Journal, State
from im2wav.prepare.pseudo_embeddings import PseudoEmbeddings, check_labels, read_classes
from im2wav.prepare.sources import Source, Sources
from im2wav.report.page import format_duration
from im2wav.system import num_cores, report_progress, track_progress

log = logging.getLogger(__name__)
SAMPLE_RATE = 16000  # Hz; the only one that the models support
Build = Callable[..., Any]  # a config node and options -> the object that it describes


def check_dataset(out: Path, info: DatasetInfo) -> None:
    """Raise ValueError for a pairs folder that was made with other settings."""
    if not (out / "dataset.json").is_file():
        return
    before = DatasetInfo.read(out)
    before.check_encoder(info.encoder, info.weights_sha256, f"out={out}")
    for name in ("fps", "sample_rate", "loudness", "list_sha256"):
        old, new = getattr(before, name), getattr(info, name)
        if old != new:
            raise ValueError(f"out={out} was made with {name}={old}, now {name}={new}: use the same, or another folder")


def find_todo(
    sources: Sequence[Source], state: State, out: Path, retry_skipped: bool, by_hash: bool = False
) -> dict[int, Source]:
    """Sources that are not complete or have changed, by their index in `sources`.

    A source whose files are gone keeps its pair; `prune` removes it.

    Raises:
        ValueError: the id of a source already belongs to another one.
    """
    # listing the folders is faster than a check per file
    files = {f"{kind}/{path.name}" for kind in ("wav", "clip") for path in (out / kind).glob("*")}
    todo = {}
    for number, source in enumerate(sources):
        row = state.rows.get(source.id)
        if row is not None and row["source"] != source.path:
            raise ValueError(
                f"out={out} already has a pair {source.id!r}, made from {row['source']}, not from {source.path}: "
                "rename one of them, or use another folder"
            )
        stamp = source.read_stamp(by_hash)
        complete = row is not None and all(row[kind] in files for kind in ("wav", "clip") if row[kind])
        if complete and bool(row["wav"]) == bool(source.audio or source.video):  # type: ignore[index]
            before = row.get("stamp") or stamp  # type: ignore[union-attr]
            if not stamp or before == stamp:
                continue
        if source.id in state.skipped and not (retry_skipped or _has_changed(source, state)):
            continue
        todo[number] = replace(source, stamp=stamp)
    return todo


def find_gone(sources: Sequence[Source], state: State) -> list[str]:
    """Ids of pairs whose source files no longer exist, or are no longer part of the input."""
    by_id = {source.id: source for source in sources}
    return sorted(name for name in state.rows if name not in by_id or not by_id[name].read_stamp())


def _has_changed(source: Source, state: State) -> bool:
    """Whether a skipped source was missing, or has changed since it was skipped."""
    if state.skipped[source.id][0] == "missing file":
        return True
    stamps = [os.stat(path) for path in (source.path, source.audio) if path and os.path.exists(path)]
    return any(max(stamp.st_mtime, stamp.st_ctime) > state.since for stamp in stamps)


def build_predict_trainer(cfg: DictConfig, build: Build, **overrides: Any) -> pl.Trainer:
    """The trainer of the config, for prediction only."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # PackedFrames has its own
    warnings.filterwarnings("ignore", message="predict returned None")  # results are passed to `finish`, not returned
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return predict_trainer(cfg.trainer, build, **quiet, **overrides)


def write_pair(
    journal: Journal, source: Source, end: End, embeddings: np.ndarray | None, pseudo: PseudoEmbeddings | None = None
) -> None:
    """Write a pair whose embeddings are float16 [F, D] (of audio alone made by `pseudo`), or why there is none.

    Raises:
        ValueError: the folder cannot be written.
    """
    if embeddings is None and pseudo is not None and isinstance(end, Decoded) and source.is_audio:
        embeddings = pseudo(source.label, source.id).half().numpy()
    if isinstance(end, Failed) or embeddings is None:
        journal.add({"id": source.id, **vars(end)})
        return
    wav, clip = f"wav/{source.id}.wav" if end.wav else "", f"clip/{source.id}.npy"
    if wav:
        journal.write(wav, end.wav)
    journal.write(clip, npy_bytes(embeddings))
    texts = (source.id, source.label, source.split, source.group, wav, clip)
    pair = Pair(*texts, end.samples, len(embeddings), source.path, end.sound, end.note, source.stamp)
    journal.add(vars(pair))  # at last, so that the files that it names exist


def make_pseudo_embeddings(encoder: ImageEncoder) -> PseudoEmbeddings | None:
    """What makes embeddings for audio alone, if the encoder has a file of classes."""
    path = encoder.pseudo_embeddings
    return PseudoEmbeddings(encoder, read_classes(path)) if path else None


def embed_sources(
    todo: dict[int, Source],
    cfg: DictConfig,
    encoder: ImageEncoder,
    journal: Journal,
    trainer: pl.Trainer,
    pseudo: PseudoEmbeddings | None,
) -> float:
    """Embed sources, divided among the devices; returns the seconds since the first batch.

    The number of a source decides its device, so the devices need no communication.
    """
    device, rank = trainer.strategy.root_device.type, trainer.global_rank
    mine = {number: source for number, source in todo.items() if number % trainer.world_size == rank}
    limits = (cfg.silence, cfg.loudness, cfg.min_seconds, cfg.min_frame_change)
    reader = ClipReader(encoder.crop, encoder.size, cfg.fps, SAMPLE_RATE, *limits)
    num_workers = cfg.num_workers if cfg.num_workers is not None else max(1, num_cores() // trainer.num_devices)
    batch_size = cfg.batch_size or (8 if device == "cpu" else 256)
    frames = PackedFrames(mine, reader, batch_size, num_workers, cfg.timeout, pinned=device == "cuda")
    with track_progress(desc="embed", unit="item", total=len(mine), hidden=True if rank else None) as bar:

        def finish(number: int, end: End, embeddings: np.ndarray | None) -> None:
            write_pair(journal, mine[number], end, embeddings, pseudo)
            bar.update()

        model = Embedder(encoder, finish, journal.release, cfg.threads or num_cores(), partial(bar.update, 0))
        with interruptible(trainer):
            trainer.predict(model, DataLoader(frames, batch_size=None), return_predictions=False)
    return time.monotonic() - (model.began or time.monotonic())


def dataset_info(sources: Sources, cfg: DictConfig, encoder: ImageEncoder | None = None) -> DatasetInfo:
    """Content of dataset.json; without `encoder` (slow to load), the hash of its weights is omitted."""
    return DatasetInfo(
        cfg.encoder.name,
        cfg.encoder.dim,
        encoder.weights_sha256 if encoder else None,
        fps=cfg.fps if any(source.video for source in sources) else None,
        sample_rate=SAMPLE_RATE,
        loudness=cfg.loudness,
        data=sources.name,
        list_sha256=sources.list_sha256,
        resampler=RESAMPLER,
    )


def dry_run(total: int, todo: dict[int, Source], cfg: DictConfig, build: Build) -> None:
    """Log the remaining work, and estimate time and size by embedding a few sources into a temporary folder."""
    log.info("%d of %d inputs remain; nothing is written to %s", len(todo), total, cfg.out)
    if not todo:
        return
    numbers = sorted(random.Random(cfg.seed).sample(sorted(todo), min(cfg.dry_run_inputs, len(todo))))
    chosen = dict(enumerate(todo[number] for number in numbers))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        trainer = build_predict_trainer(cfg, build, devices=1, num_nodes=1, strategy="auto")
        encoder = build(cfg.encoder)
        pseudo = make_pseudo_embeddings(encoder)
        seconds = embed_sources(chosen, cfg, encoder, journal, trainer, pseudo) / len(chosen)
        state = journal.fold({})
        size = sum(file.stat().st_size for file in Path(folder).glob("*/*")) / len(chosen)
    for name, (reason, detail) in sorted(state.skipped.items()):
        log.info("would be skipped: %s, %s (%s)", name, reason, detail)
    each, total_time = f"{seconds:.2f} s and {size / 1e6:.2f} MB each", format_duration(seconds * len(todo))
    total_size = f"{size * len(todo) / 1e9:.2f} GB"
    log.info(
        "measured on %d inputs: %s; for all: %s on one device like this, %s", len(chosen), each, total_time, total_size
    )


def _progress(todo: dict[int, Source], out: Path) -> str:
    state = State.read(out)
    done = sum(source.id in state.rows or source.id in state.skipped for source in todo.values())
    return f"{done} of {len(todo)} inputs are finished in {out}; the same command does the rest"


def log_summary(sources: Sequence[Source], state: State, out: Path) -> float:
    """Log a table of embedded, corrected and skipped inputs; returns the fraction of skipped sources."""
    mine = {source.id for source in sources}
    good = mine & state.rows.keys()
    reasons = Counter(reason for name, (reason, _) in state.skipped.items() if name in mine)
    texts = ((state.rows[name].get("note") or "").split("; ") for name in good)
    notes = Counter(note.split(":")[0] for text in texts for note in text if note)
    failed = sum(reasons.values())
    corrected = [(f"of these {what}", n) for what, n in notes.most_common()]
    for what, count in (("embedded", len(good)), *corrected, *reasons.most_common()):
        log.info("%10s  %6.2f %%  %s", f"{count:,}", 100 * count / max(len(mine), 1), what)
    lost = f"; skipped {failed} (see {out / 'skipped.csv'})" if failed else "; nothing skipped"
    log.info("%d of %d embedded in %s%s", len(good), len(mine), out, lost)
    return failed / max(len(mine), 1)


def embed_pairs(cfg: DictConfig, build: Build) -> float:
    """Embed all sources of this process's shard; what an earlier run finished is kept.

    Args:
        cfg: the configuration of `embed`.
        build: a config node -> the object that it describes; for the sources, the encoder and the trainer.

    Returns:
        The fraction of the sources that was skipped.

    Raises:
        ValueError: sources, encoder or folder do not fit the options, or the folder cannot be written.
    """
    shard, num_shards = parse_shard(cfg.shard)
    if cfg.input is None and "${input}" in OmegaConf.to_container(cfg.source).values():  # type: ignore[union-attr]
        raise ValueError("input=... is required: a folder of videos, images, or both with audio, or a manifest.csv")
    sources, out = build(cfg.source), Path(cfg.out)
    for line in sources.ignored:
        log.info(line)
    if cfg.encoder.get("pseudo_embeddings"):
        check_labels(sources, read_classes(cfg.encoder.pseudo_embeddings), cfg.encoder.pseudo_embeddings)
    check_dataset(out, dataset_info(sources, cfg))
    state, mine = State.read(out), sources[shard::num_shards]
    todo = find_todo(mine, state, out, cfg.retry_skipped, cfg.compare == "hash")
    if cfg.dry_run:
        dry_run(len(mine), todo, cfg, build)
        return 0.0
    journal, gone = None, find_gone(sources, state)
    if todo:
        encoder = build(cfg.encoder)
        info = dataset_info(sources, cfg, encoder)
        check_dataset(out, info)
        trainer = build_predict_trainer(cfg, build)
        journal, pseudo = Journal(out), make_pseudo_embeddings(encoder)
        info.write(out, journal.part)
        if pseudo is not None and not trainer.global_rank:
            pseudo.write(out)
        with report_progress(lambda: _progress(todo, out)):
            embed_sources(todo, cfg, encoder, journal, trainer, pseudo)
        if trainer.global_rank:
            return 0.0
    pruned = gone if cfg.prune else []
    if todo or pruned or not state.settled(out, sources):
        state = (journal or Journal(out)).fold({source.id: source for source in sources}, pruned)
    if gone:
        what = "removed" if pruned else "kept (prune=true removes them)"
        log.info("%d pairs whose source files are gone: %s, %s", len(gone), ", ".join(gone[:3]), what)
    return log_summary(mine, state, out)
