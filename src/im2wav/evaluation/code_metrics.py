"""Reconstruction quality of a codec and bits per code of its priors on a pairs folder."""

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
    """A batch with the image embeddings of other items for the shuffled baseline."""

    batch: Batch
    other_clip: Tensor | None  # [B, F, D]; None if there is only one item


def batches(folder: PairsFolder, split: str, num_samples: int, size: int) -> Iterator[EvaluationBatch]:
    """Yield batches of the first window of each pair with audio, in manifest order; short audio is repeated.

    Raises:
        ValueError: no pair of the split has audio.
    """
    wanted = folder.pairs.where("split", lambda there: split in ("all", there))
    pairs = folder.pairs.take(wanted & (folder.pairs.column("samples") > 0))
    if not len(pairs):
        raise ValueError(
            f"{folder.root}: no pair with split={split} has audio; its splits are "
            f"{sorted(set(folder.pairs.strings('split')))} (split=all uses every pair)"
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
    """By level: SI-SDR and log-STFT distance of the reconstruction, fraction of codes used, perplexity."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {}
    usage: dict[str, CodeUsage] = {}
    for batch, _ in data:
        items += batch.id
        wav = batch.wav.to(device)
        for level, codes in codec.encode(wav).items():
            decoded = codec.decode(codes, level)
            found = values.setdefault(level, {"si_sdr_db": [], "log_stft_db": []})
            found["si_sdr_db"].append(SiSdr().values(wav[:, 0], decoded[:, 0]).cpu())
            found["log_stft_db"].append(LogStftDistance().values(wav[:, 0], decoded[:, 0]).cpu())
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
    """By level: bits per code with the correct image, with another image, and unconditional if available."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {level: {} for level in priors}
    for batch, other_clip in data:
        items += batch.id
        codes = codec.encode(batch.wav.to(device))
        timing = Timing(**{name: value.to(device) for name, value in batch.timing.items()})
        for level, prior in priors.items():
            conditions = Conditions(batch.clip.to(device), timing, codes["low"] if level == "up" else None)
            variants = {"condition": conditions}
            if other_clip is not None:
                variants["shuffled"] = replace(conditions, clip=other_clip.to(device))
            if prior.can_be_guided:
                variants["none"] = conditions.null_like()
            for variant, variant_conditions in variants.items():
                bits = BitsPerCode().values(prior(codes[level], variant_conditions), codes[level])
                values[level].setdefault(variant, []).append(bits.cpu())
    figures: dict[str, dict[str, Any]] = {}
    for level, found in values.items():
        whole = {variant: torch.cat(parts) for variant, parts in found.items()}
        row: dict[str, Figure] = {variant: mean_figure(bits, items, plan) for variant, bits in whole.items()}
        for variant in ("shuffled", "none"):
            if variant in row:  # bits saved by the correct image
                row[f"gain_over_{variant}"] = mean_figure(whole[variant] - whole["condition"], items, plan)
        figures[level] = {name: figure.to_dict() for name, figure in row.items()}
    return figures
