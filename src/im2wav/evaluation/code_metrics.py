"""How good a codec is, and how many bits the priors need for its codes, on any pairs folder."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import Batch, WindowDataset, collate
from im2wav.evaluation.figures import Figure, Plan, mean_figure
from im2wav.evaluation.metrics import BitsPerCode, CodeUsage, LogStftDistance, SiSdr
from im2wav.prior import Conditions, Timing


class EvaluationBatch(NamedTuple):
    """A batch, and for each of its items the picture of the item before it."""

    batch: Batch
    other_clip: Tensor | None  # [B, F, D]; None where there is one item in all


def batches(folder: PairsFolder, split: str, num_samples: int, size: int) -> Iterator[EvaluationBatch]:
    """The first window of each pair with a sound, in the order of the manifest; short sounds are repeated.

    Raises:
        ValueError: no pair of the split has a sound.
    """
    wanted = folder.pairs.where("split", lambda there: split in ("all", there))
    pairs = folder.pairs.take(wanted & (folder.pairs.column("samples") > 0))
    if not len(pairs):
        raise ValueError(
            f"{folder.root}: no pair with split={split} has a sound; its splits are "
            f"{sorted(set(folder.pairs.strings('split')))} (split=all takes every pair)"
        )
    windows = WindowDataset(folder, pairs, num_samples, "loop")
    for start in range(0, len(pairs), size):
        rows = range(start, min(start + size, len(pairs)))
        others = [windows[((row - 1) % len(pairs), 0.0)].clip for row in rows]
        yield EvaluationBatch(
            collate([windows[(row, 0.0)] for row in rows]), torch.stack(others) if len(pairs) > 1 else None
        )


@torch.inference_mode()
def codec_figures(codec: Any, data: Iterable[EvaluationBatch], plan: Plan) -> dict[str, dict[str, Any]]:
    """By level: SI-SDR and log-STFT distance of what comes back, share of the codebook in use, perplexity."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {}
    usage: dict[str, CodeUsage] = {}
    for batch, _ in data:
        items += batch.id
        wav = batch.wav.to(device)
        for level, codes in codec.encode(wav).items():
            back = codec.decode(codes, level)
            found = values.setdefault(level, {"si_sdr_db": [], "log_stft_db": []})
            found["si_sdr_db"].append(SiSdr().values(wav[:, 0], back[:, 0]).cpu())
            found["log_stft_db"].append(LogStftDistance().values(wav[:, 0], back[:, 0]).cpu())
            usage.setdefault(level, CodeUsage(codec.codebook_size)).update(codes.cpu())
    return {
        level: {
            **{name: mean_figure(torch.cat(parts), items, plan).to_dict() for name, parts in found.items()},
            **{f"codes_{name}": value.item() for name, value in usage[level].compute().items()},
            "codebook_size": codec.codebook_size,
            "codes": int(usage[level].counts.sum()),
        }
        for level, found in values.items()
    }


@torch.inference_mode()
def prior_figures(
    codec: Any, priors: Mapping[str, Any], data: Iterable[EvaluationBatch], plan: Plan
) -> dict[str, dict[str, Any]]:
    """By level: bits per code with the right condition, with another item's picture, with none (where learnt)."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {level: {} for level in priors}
    for batch, other_clip in data:
        items += batch.id
        codes = codec.encode(batch.wav.to(device))
        timing = Timing(**{name: value.to(device) for name, value in batch.timing.items()})
        for level, prior in priors.items():
            conditions = Conditions(batch.clip.to(device), timing, codes["low"] if level == "up" else None)
            ways = {"condition": conditions}
            if other_clip is not None:
                ways["shuffled"] = replace(conditions, clip=other_clip.to(device))
            if prior.can_be_guided:
                ways["none"] = conditions.null_like()
            for way, told in ways.items():
                bits = BitsPerCode().values(prior(codes[level], told), codes[level])
                values[level].setdefault(way, []).append(bits.cpu())
    figures: dict[str, dict[str, Any]] = {}
    for level, found in values.items():
        whole = {way: torch.cat(parts) for way, parts in found.items()}
        row: dict[str, Figure] = {way: mean_figure(bits, items, plan) for way, bits in whole.items()}
        for way in ("shuffled", "none"):
            if way in row:  # bits that the picture saves
                row[f"gain_over_{way}"] = mean_figure(whole[way] - whole["condition"], items, plan)
        figures[level] = {name: figure.to_dict() for name, figure in row.items()}
    return figures
