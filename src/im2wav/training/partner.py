"""A trained prior of the other level (partner), which completes the samples of the prior in training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from im2wav.checkpoint import Loaded, check_same_origin, load
from im2wav.decoding.decoder import Decoder, sample_codes
from im2wav.decoding.sampler import SamplingOptions, uniforms
from im2wav.hub import find_net
from im2wav.prior import Conditions, Prior

OPTION = "callbacks.dashboard.partner"
OTHER = {"low_prior": "up_prior", "up_prior": "low_prior"}


def load_partner(path: str, module: Any, codec: Any, identity: Mapping[str, Any]) -> Loaded:
    """Load the partner of a prior. Its weights are memory-mapped until they are used.

    Args:
        path: a model folder, a folder of runs, the folder of one run, or a .safetensors or .ckpt file.
        module: prior in training.
        codec: codec of its codes.
        identity: identity of the training data.

    Raises:
        ValueError: the module in training is not a prior, the file is missing, or the partner has the wrong level,
            other codes, other image embeddings or another window.
    """
    try:
        if module.kind not in OTHER:
            raise ValueError(f"a {module.kind} has no partner: set it to null; only low_prior and up_prior have one")
        own, found = Loaded(module.net, module.kind, {}, identity, module.codec_sha256), Path(path)
        if found.is_dir():
            last = found / "last.ckpt"  # folder of one run
            found = last if last.is_file() else find_net(found, OTHER[module.kind])
        loaded = load(found, OTHER[module.kind])
        sizes = [net.codebook_size for net in (loaded.net, module.net)]
        if sizes[0] != sizes[1]:  # the only check for files without a codec hash
            raise ValueError(f"its codebook has {sizes[0]} codes, but the {module.kind} in training has {sizes[1]}")
        pair = {own.kind: own, loaded.kind: loaded}
        check_same_origin(Loaded(codec, "vqvae", {}), pair["low_prior"], pair["up_prior"])
    except ValueError as error:
        raise ValueError(f"{OPTION}={path}: {error}") from error
    return loaded


def on_device(loaded: Loaded, device: torch.device) -> Prior:
    """Copy of the network on a device; on the CPU it shares the memory-mapped weights."""
    with torch.device("meta"):
        net = Prior(**loaded.config)
    net.load_state_dict({name: value.to(device) for name, value in loaded.net.state_dict().items()}, assign=True)
    return net.eval().requires_grad_(False)


def missing_column(level: str) -> str:
    """Note about the missing column of the other level."""
    other = "up" if level == "low" else "low"
    what = (
        "refines these low codes" if other == "up" else "samples low codes; here they are encoded from the real audio"
    )
    return f"No column {other}: set {OPTION}=FOLDER to a trained {other}_prior, which {what}."


def draw_columns(
    decoders: Mapping[str, Decoder],
    conditions: Conditions,
    seeds: Sequence[int],
    options: SamplingOptions,
    real_low: Tensor | None = None,
) -> dict[str, tuple[str, Tensor]]:
    """DashboardRow codes for B items like `generate`.

    Args:
        decoders: level -> decoder of its prior; one or both levels.
        conditions: image embeddings and timing.
        seeds: one per item.
        options: sampling options.
        real_low: low codes [B, n] of the real audio, which the up prior refines as well.

    Returns:
        Column -> level and codes [B, T]. `up` refines the codes of `low`, or of the real audio without a low prior.
    """

    def draw(level: str, codes_low: Tensor | None) -> Tensor:
        decoder, level_conditions = decoders[level], replace(conditions, codes_low=codes_low)
        uniform = uniforms(seeds, decoder.context_length, level, conditions.clip.device)
        return sample_codes(decoder, level_conditions, uniform, options)

    columns = {"low": ("low", draw("low", None))} if "low" in decoders else {}
    if "up" in decoders and "low" in columns:
        columns["up"] = ("up", draw("up", columns["low"][1]))
    if "up" in decoders and real_low is not None:
        columns["up (real codes)" if "up" in columns else "up"] = ("up", draw("up", real_low))
        columns["low (real codes)"] = ("low", real_low)
    return columns
