"""`python -m im2wav.tokenize data.root=... codec=...`: write the codes of whole clips once, for `data.codes=cache`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, register_resolvers, run

if TYPE_CHECKING:
    from torch import Tensor

    from im2wav.data.codes import CodesFolder
    from im2wav.data.pairs import PairsFolder

log = logging.getLogger(__name__)
register_resolvers()

PIECE = 2**20  # samples that are encoded at a time


def receptive_radius(codec: Any) -> int:
    """How many samples to each side of a code's own a code can depend on, at most, over all levels."""
    from torch import nn

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
    """Codes [T] by level of a whole clip [N]; what is left after the last whole code of the low level is dropped.

    Long clips are encoded in pieces that overlap by more than a code can see, so that memory stays bounded.
    """
    import torch

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


def parse_part(text: str) -> tuple[int, int]:
    """`2/8` is the part number 2 of 8, counted from 0.

    Raises:
        ValueError: it is nothing of that kind.
    """
    number, _, count = str(text).partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"part={text}: expected NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 0/4")
    return int(number), int(count)


class Clips:
    """Whole clips by row, as a data set for workers; a clip that cannot be read is an error to hand on."""

    def __init__(self, folder: PairsFolder, pairs: Any, rows: list[int], num_samples: int, short: str):
        self.folder, self.pairs, self.rows, self.num_samples, self.short = folder, pairs, rows, num_samples, short

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        from im2wav.data.windows import filled_up

        row = self.rows[index]
        try:
            wav = self.folder.read_wav(self.pairs[row])
        except ValueError as error:
            return row, str(error)
        return row, filled_up(wav, self.num_samples, self.short)


def _as_it_is(item: Any) -> Any:
    return item


def encode_all(codec: Any, clips: Clips, cache: CodesFolder, workers: int, write: bool = True) -> Iterator[int]:
    """Encode and write clips one after the other; gives the samples of each.

    Raises:
        ValueError: a clip cannot be read, or codes cannot be written.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(clips, batch_size=None, num_workers=workers, collate_fn=_as_it_is)  # type: ignore[arg-type]
    with torch.inference_mode():
        for row, wav in loader:
            if isinstance(wav, str):
                raise ValueError(wav)
            codes = encode_clip(codec, wav)
            if write:
                cache.write(clips.pairs[row], codes)
            yield len(wav)


def estimate(codec: Any, clips: Clips, cache: CodesFolder) -> None:
    """Say what would be done, how long it would take and how large it would be, from a measured sample."""
    import copy

    few = copy.copy(clips)
    few.rows = clips.rows[:: max(1, len(clips.rows) // 8)][:8]
    start = time.perf_counter()
    measured = sum(encode_all(codec, few, cache, 0, write=False)) if few.rows else 0
    seconds = time.perf_counter() - start
    samples = int(clips.pairs.column("samples")[clips.rows].clip(clips.num_samples).sum())
    width = 2 if cache.info.codebook_size <= 2**15 else 4
    size = sum(samples / hop * width + 128 for hop in cache.info.hops.values())
    log.info(
        "would write the codes of %d clips (%.1f h of sound) to %s: about %.2f GB, %.1f minutes",
        len(clips),
        samples / clips.folder.info.sample_rate / 3600,
        cache.root,
        size / 1e9,
        seconds * samples / max(measured, 1) / 60,
    )


def edge_differences(codec: Any, clips: Clips, windows: int) -> dict[str, list[tuple[int, float]]]:
    """How often codes of whole clips differ from those of windows encoded alone.

    Args:
        codec: the codec.
        clips: where the windows are taken, from the middle of clips that are longer than a window.
        windows: how many, at most.

    Returns:
        By level (distance from the nearer edge in samples, share that differs) for distances that double; the last
        one is for all codes that are further away.
    """
    import torch

    hop, size = max(codec.hop_lengths.values()), clips.num_samples
    device = next(codec.parameters()).device
    differs: dict[str, list[Tensor]] = {level: [] for level in codec.hop_lengths}
    lengths = clips.pairs.column("samples")
    for row in [row for row in range(len(clips.pairs)) if lengths[row] > size + 2 * hop][:windows]:
        wav = clips.folder.read_wav(clips.pairs[row])
        start = (len(wav) - size) // 2 // hop * hop
        whole = encode_clip(codec, wav)
        fresh = codec.encode(wav[None, None, start : start + size].to(device))
        for level, here in codec.hop_lengths.items():
            cached = whole[level][start // here : (start + size) // here]
            differs[level].append(cached != fresh[level][0].cpu())
    found: dict[str, list[tuple[int, float]]] = {}
    for level, parts in differs.items():
        if not parts:
            continue
        share, here = torch.stack(parts).float().mean(0), codec.hop_lengths[level]
        index = torch.arange(len(share))
        distance = torch.minimum(index, index.flip(0)) * here
        borders = [0, hop]
        while borders[-1] <= receptive_radius(codec):
            borders.append(borders[-1] * 2)
        spans = zip(borders, [*borders[1:], size], strict=True)
        means = [(low, share[(distance >= low) & (distance < high)]) for low, high in spans]
        found[level] = [(low, values.mean().item()) for low, values in means if len(values)]
        found[level].append((-1, share.mean().item()))
    return found


def report(found: dict[str, list[tuple[int, float]]], rate: int) -> None:
    """Print what `edge_differences` found."""
    if not found:
        log.info("no clip is longer than a window: cached codes are those of the windows")
    for level, rows in found.items():
        log.info("level %s: share of cached codes that differ from fresh ones", level)
        for low, share in rows:
            where = f"from {low} samples ({low / rate * 1000:.0f} ms) of the edge on" if low >= 0 else "of all"
            log.info("  %-45s %6.2f %%", where, 100 * share)


def tokenize(cfg: DictConfig) -> CodesFolder:
    """Write the codes of all clips that lack them.

    Raises:
        ValueError: no codec, no pairs, a cache of another kind, or a file that cannot be read or written.
    """
    import torch
    from tqdm.auto import tqdm

    from im2wav.checkpoint import load
    from im2wav.data.codes import codes_folder
    from im2wav.data.shards import open_folder
    from im2wav.generation.precision import pick_device

    number, count = parse_part(cfg.part)
    codec: Any = load(cfg.codec, "vqvae").net.to(pick_device(cfg.device, mps=False))
    folder = open_folder(cfg.data.root, cfg.data.chunks)
    samples = folder.pairs.column("samples")
    usable = (samples > 0) & ((samples >= cfg.data.num_samples) | (cfg.data.short != "drop"))
    pairs = folder.pairs.take(usable)
    cache = codes_folder(folder.root, codec, cfg.data.num_samples, cfg.data.short)
    todo = cache.missing(pairs)[number::count]
    clips = Clips(folder, pairs, todo, cfg.data.num_samples, cfg.data.short)
    if cfg.compare:
        with torch.inference_mode():
            report(edge_differences(codec, clips, cfg.compare), folder.info.sample_rate)
        return cache
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


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="tokenize")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(tokenize, cfg)


if __name__ == "__main__":
    main()
