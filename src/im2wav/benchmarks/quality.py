"""Quality of lower precisions: bits per code and greedy codes compared with fp32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from im2wav.benchmarks.machine import Row
from im2wav.checkpoint import KINDS, find_weights, load
from im2wav.data.datamodule import PairsDataModule
from im2wav.data.windows import collate
from im2wav.decoding import SamplingOptions, make_decoder
from im2wav.decoding.sampler import guide
from im2wav.prior import CodePrior, Conditions, Timing


@torch.inference_mode()
def _bits_and_greedy_codes(
    prior: CodePrior, conditions: Conditions, codes: Tensor, precision: str, compile: bool = False
) -> tuple[float, Tensor]:
    """Bits per code of given codes [B, n, ...], and the greedy guided code at each place."""
    options = SamplingOptions()
    logits = make_decoder(prior, precision, compile=compile).step_logits(conditions, codes, options)
    bits = prior.code_bits(logits[: len(codes)], codes).mean().item()
    return bits, (guide(logits, options.guidance_scale) if prior.can_be_guided else logits).argmax(-1)


def measure_quality(
    run: str,
    pairs: str,
    device: str = "cpu",
    precisions: Sequence[str] = ("bf16", "int8"),
    compile: bool = False,
    split: str = "train",
    items: int = 16,
) -> list[Row]:
    """Benchmark bits per code on real codes, and the fraction of greedy codes equal to fp32, for both levels.

    Args:
        run: model folder: runs, or written by `convert` or `save_pretrained`.
        pairs: a pairs folder.
        device: cpu or cuda.
        precisions: precisions to compare with fp32.
        compile: see `Decoder`; the fp32 baseline is never compiled.
        split: split of the pairs, train or valid.
        items: number of pairs.

    Raises:
        ValueError: a missing checkpoint or folder.
    """
    priors: dict[str, Any] = {
        name: load(path, KINDS[name]).net.to(device) for name, path in find_weights(Path(run)).items()
    }
    codec = priors.pop("codec")
    samples = priors["low"].context_length * codec.hop_lengths["low"]
    windows = PairsDataModule(pairs, int(samples), crop="start").windows[split]
    batch = collate([windows[(i, 0.0)] for i in range(min(items, len(windows.pairs)))])
    timing = Timing(**{name: value.to(device) for name, value in batch.timing.items()})
    with torch.inference_mode():
        codes = codec.encode(batch.wav.to(device))
    rows: list[Row] = []
    for level, prior in priors.items():
        given = Conditions(batch.clip.to(device), timing, codes["low"] if level == "up" else None)
        bits, greedy = _bits_and_greedy_codes(prior, given, codes[level], "fp32")
        rows.append(Row(f"{level}, fp32", bits, "bits per code", note=f"{codes[level].numel()} real codes"))
        for p in precisions:
            value, guesses = _bits_and_greedy_codes(prior, given, codes[level], p, compile)
            agree = (guesses == greedy).float().mean().item()
            p = f"{p}, compiled" if compile else p
            rows.append(Row(f"{level}, {p}", value, "bits per code", bits, "fp32", note=f"{value - bits:+.5f} bits"))
            rows.append(Row(f"{level}, {p}: greedy codes", 100 * agree, "% as in fp32"))
    return rows
