"""Writing the codes of whole clips once, for `data.codes=cache`."""

import copy
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from im2wav.data.manifest import Manifest
from im2wav.data.pairs import PairsFolder, open_folder
from im2wav.data.windows import CodesFolder, extend_wav
from im2wav.files import parse_shard

log = logging.getLogger(__name__)
PIECE = 2**20  # samples that are encoded at a time


def receptive_radius(codec: Any) -> int:
    """Maximum distance in samples that a code depends on, over all levels."""
    radii = []
    for encoder in codec.encoders.values():
        radius, jump = 0, 1
        for conv in encoder.modules():
            if isinstance(conv, nn.Conv1d):
                radius += conv.dilation[0] * (conv.kernel_size[0] - 1) * jump
                jump *= conv.stride[0]
        radii.append(radius // 2 + jump)
    return max(radii)


def encode_clip(codec: Any, wav: Tensor, piece: int = PIECE) -> dict[str, Tensor]:
    """Codes [T] by level of a whole clip [N], cut to a multiple of the hop of the low level.

    Long clips are encoded in pieces that overlap by more than the receptive field, so that memory stays bounded.
    """
    hop = max(codec.hop_lengths.values())
    margin = -(-receptive_radius(codec) // hop) * hop
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

    def __init__(self, folder: PairsFolder, pairs: Manifest, rows: list[int], num_samples: int, short: str):
        self.folder, self.pairs, self.rows, self.num_samples, self.short = folder, pairs, rows, num_samples, short

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        row = self.rows[index]
        try:
            wav = self.folder.read_wav(self.pairs[row])
        except ValueError as error:
            return row, str(error)
        return row, extend_wav(wav, self.num_samples, self.short)


def encode_all(codec: Any, clips: Clips, cache: CodesFolder, num_workers: int, write: bool = True) -> Iterator[int]:
    """Encode and write the codes of clips; yields the number of samples of each.

    Raises:
        ValueError: a clip cannot be read, or codes cannot be written.
    """
    loader: Any = DataLoader(clips, batch_size=None, num_workers=num_workers)  # type: ignore[arg-type]
    with torch.inference_mode():
        for row, wav in loader:
            if isinstance(wav, str):
                raise ValueError(wav)
            codes = encode_clip(codec, wav)
            if write:
                cache.write(clips.pairs[row], codes)
            yield len(wav)


def estimate(codec: Any, clips: Clips, cache: CodesFolder) -> None:
    """Log the remaining work and estimate time and size from a few clips."""
    sample = copy.copy(clips)
    sample.rows = clips.rows[:: max(1, len(clips.rows) // 8)][:8]
    start = time.perf_counter()
    measured = sum(encode_all(codec, sample, cache, 0, write=False)) if sample.rows else 0
    seconds = time.perf_counter() - start
    samples = int(clips.pairs.column("samples")[clips.rows].clip(clips.num_samples).sum())
    size = sum(samples / hop * cache.dtype.itemsize + 128 for hop in cache.hops.values())
    log.info(
        "would write the codes of %d clips (%.1f h of audio) to %s: about %.2f GB, %.1f minutes",
        len(clips),
        samples / clips.folder.info.sample_rate / 3600,
        cache.root,
        size / 1e9,
        seconds * samples / max(measured, 1) / 60,
    )


def write_codes(codec: Any, cfg: DictConfig) -> CodesFolder:
    """Write the codes of all clips of this process's shard that lack them, with an `AudioCodec` on its device.

    Raises:
        ValueError: no pairs, a cache with other settings, or a file that cannot be read or written.
    """
    shard, num_shards = parse_shard(cfg.shard)
    folder = open_folder(cfg.data.root, cfg.data.chunks)
    samples = folder.pairs.column("samples")
    usable = (samples > 0) & ((samples >= cfg.data.num_samples) | (cfg.data.short != "drop"))
    pairs = folder.pairs.take(usable)
    cache = CodesFolder(folder.root, codec, cfg.data.num_samples, cfg.data.short)
    todo = cache.missing(pairs)[shard::num_shards]
    clips = Clips(folder, pairs, todo, cfg.data.num_samples, cfg.data.short)
    if cfg.dry_run:
        estimate(codec, clips, cache)
        return cache
    cache.start()
    progress = tqdm(desc="tokenize", total=len(todo), unit="clip", disable=None)
    for _ in encode_all(codec, clips, cache, min(cfg.data.num_workers, len(todo))):
        progress.update()
    progress.close()
    log.info("%d of %d clips encoded now; use them with data.codes=cache: %s", len(todo), len(pairs), cache.root)
    return cache
