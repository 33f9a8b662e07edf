"""Writing the codes of whole clips once, for `data.codes=cache`."""

import logging
import time
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from im2wav.data.loader import share_memory
from im2wav.data.manifest import Manifest
from im2wav.data.pairs import PairsFolder, open_folder
from im2wav.data.windows import CodesFolder, extend_wav, usable_rows
from im2wav.files import parse_shard
from im2wav.system import hold_signals, leave_signals_to_parent, report_progress, track_progress

log = logging.getLogger(__name__)
PIECE = 2**20  # samples that are encoded at a time


def encode_clip(codec: Any, wav: Tensor, piece: int = PIECE) -> dict[str, Tensor]:
    """Codes [T] or [T, Q] by level of a whole clip [N], cut to a multiple of the hop of the low level.

    Long clips are encoded in pieces that overlap by more than the receptive field, so that memory stays bounded.
    """
    hop = max(codec.hop_lengths.values())
    margin = -(-codec.encoder_reach // hop) * hop
    length = len(wav) // hop * hop
    piece = max(piece // hop * hop, hop)
    device = next(codec.parameters()).device
    parts: dict[str, list[Tensor]] = {level: [] for level in codec.hop_lengths}
    for start in range(0, length, piece):
        end = min(start + piece, length)
        first, last = max(0, start - margin), min(length, end + margin)
        found = codec.encode(wav[None, None, first:last].to(device))
        for level, codes in found.items():
            here = codec.hop_lengths[level]
            parts[level].append(codes[0, (start - first) // here : (end - first) // here].cpu())
    return {level: torch.cat(pieces) for level, pieces in parts.items()}


class Clips:
    """Dataset of complete clips: (row, wav [N]), or (row, error message) if a clip cannot be read."""

    def __init__(self, folder: PairsFolder, pairs: Manifest, num_samples: int, short: str):
        self.folder, self.pairs, self.num_samples, self.short = folder, pairs, num_samples, short

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        try:
            wav = extend_wav(self.folder.read_wav(self.pairs[row]), self.num_samples, self.short)
            share_memory(wav)
            return row, wav
        except ValueError as error:
            return row, str(error)


def encode_all(codec: Any, clips: Clips, num_workers: int, cache: CodesFolder | None = None) -> Iterator[int]:
    """Encode clips and write their codes, if there is a cache; yields the number of samples of each.

    Raises:
        ValueError: a clip cannot be read, or codes cannot be written.
    """
    options: Any = {"batch_size": None, "num_workers": num_workers, "worker_init_fn": leave_signals_to_parent}
    loader: Any = DataLoader(clips, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        with hold_signals():  # starts the workers
            waves = iter(loader)
        for row, wav in waves:
            if isinstance(wav, str):
                raise ValueError(wav)
            codes = encode_clip(codec, wav)
            if cache is not None:
                cache.write(clips.pairs[row], codes)
            yield len(wav)


def estimate(codec: Any, clips: Clips, cache: CodesFolder) -> None:
    """Log the remaining work and estimate time and size from a few clips."""
    pairs = clips.pairs[:: max(1, len(clips) // 8)][:8]
    start = time.perf_counter()
    measured = sum(encode_all(codec, Clips(clips.folder, pairs, clips.num_samples, clips.short), 0))
    seconds = time.perf_counter() - start
    samples = int(clips.pairs.column("samples").clip(clips.num_samples).sum())
    per_sample = sum(prod(codec.code_shapes[level]) / hop for level, hop in cache.hops.items())
    size = samples * per_sample * cache.dtype.itemsize + 128 * len(cache.hops) * len(clips)
    log.info(
        "would write the codes of %d clips (%.1f h of audio) to %s: about %.2f GB, %.1f minutes",
        len(clips),
        samples / clips.folder.info.sample_rate / 3600,
        cache.root,
        size / 1e9,
        seconds * samples / max(measured, 1) / 60,
    )


def _progress(cache: CodesFolder, todo: Manifest) -> str:
    done = len(todo) - len(cache.missing(todo))
    return f"{done} of {len(todo)} clips are encoded in {cache.root}; the same command encodes the rest"


def write_codes(codec: Any, cfg: DictConfig) -> CodesFolder:
    """Write the codes of all clips of this process's shard that lack them, with an `AudioCodec` on its device.

    Raises:
        ValueError: no pairs, a cache with other settings, or a file that cannot be read or written.
    """
    shard, num_shards = parse_shard(cfg.shard)
    folder = open_folder(cfg.data.root, cfg.data.chunks)
    pairs = folder.pairs.take(usable_rows(folder.pairs, cfg.data.num_samples, cfg.data.short))
    cache = CodesFolder(folder.root, codec, cfg.data.num_samples, cfg.data.short)
    todo = pairs.take(np.array(cache.missing(pairs)[shard::num_shards], dtype=np.int64))
    clips = Clips(folder, todo, cfg.data.num_samples, cfg.data.short)
    if cfg.dry_run:
        estimate(codec, clips, cache)
        return cache
    cache.start()
    encoded = encode_all(codec, clips, min(cfg.data.num_workers, len(todo)), cache)
    with report_progress(lambda: _progress(cache, todo)):
        for _ in track_progress(encoded, desc="tokenize", unit="clip", total=len(todo)):
            pass
    log.info("%d of %d clips encoded now; use them with data.codes=cache: %s", len(todo), len(pairs), cache.root)
    return cache
