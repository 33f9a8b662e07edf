"""A trained prior of the other level beside the one in training, so that its samples are heard as whole sounds."""

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
    """The prior that completes the one in training. Its weights stay in their file until they are used.

    Args:
        path: a folder of models or of runs, the folder of one run, or a .safetensors or .ckpt file.
        module: the prior in training.
        codec: the codec whose codes it learns.
        identity: of the data that it learns from.

    Raises:
        ValueError: nothing is trained that could have a partner, no such file, a prior of the wrong level, of other
            codes, of other image embeddings or of another window.
    """
    try:
        if module.kind not in OTHER:
            raise ValueError(f"a {module.kind} has no partner: leave it null, it completes a low_prior or an up_prior")
        own, found = Loaded(module.net, module.kind, {}, identity, module.codec_sha256), Path(path)
        if found.is_dir():
            last = found / "last.ckpt"  # of the one run that the folder is of
            found = last if last.is_file() else find_net(found, OTHER[module.kind])
        loaded = load(found, OTHER[module.kind])
        sizes = [net.codebook_size for net in (loaded.net, module.net)]
        if sizes[0] != sizes[1]:  # files without a codec's hash say no more of their codes
            raise ValueError(f"its codebook has {sizes[0]} codes, that of the {module.kind} in training {sizes[1]}")
        pair = {own.kind: own, loaded.kind: loaded}
        check_same_origin(Loaded(codec, "vqvae", {}), pair["low_prior"], pair["up_prior"])
    except ValueError as error:
        raise ValueError(f"{OPTION}={path}: {error}") from error
    return loaded


def on_device(loaded: Loaded, device: torch.device) -> Prior:
    """The net on a device, for as long as the caller holds it; on the CPU it shares the weights of its file."""
    with torch.device("meta"):
        net = Prior(**loaded.config)
    net.load_state_dict({name: value.to(device) for name, value in loaded.net.state_dict().items()}, assign=True)
    return net.eval().requires_grad_(False)


def missing_column(level: str) -> str:
    """What a table without the other level says of it."""
    other = "up" if level == "low" else "low"
    what = "refines these low codes" if other == "up" else "draws low codes; here they are those of the real sound"
    return f"No column {other}: {OPTION}=FOLDER names a trained {other}_prior, which {what}."


def draw_columns(
    decoders: Mapping[str, Decoder],
    conditions: Conditions,
    seeds: Sequence[int],
    options: SamplingOptions,
    real_low: Tensor | None = None,
) -> dict[str, tuple[str, Tensor]]:
    """Codes for B pictures and seeds, as `generate` draws them.

    Args:
        decoders: level -> its prior, ready to draw; one or both.
        conditions: picture and time.
        seeds: one for each picture.
        options: how codes are drawn.
        real_low: the low codes [B, n] of the real sounds, to be refined too.

    Returns:
        Column -> level and codes [B, T]. `up` refines what stands in `low`; without a prior of the low level it refines
        the codes of the real sound.
    """

    def draw(level: str, codes_low: Tensor | None) -> Tensor:
        decoder, told = decoders[level], replace(conditions, codes_low=codes_low)
        uniform = uniforms(seeds, decoder.context_length, level, told.clip.device)
        return sample_codes(decoder, told, uniform, options)

    columns = {"low": ("low", draw("low", None))} if "low" in decoders else {}
    if "up" in decoders and "low" in columns:
        columns["up"] = ("up", draw("up", columns["low"][1]))
    if "up" in decoders and real_low is not None:
        columns["up (real codes)" if "up" in columns else "up"] = ("up", draw("up", real_low))
        columns["low (real codes)"] = ("low", real_low)
    return columns
