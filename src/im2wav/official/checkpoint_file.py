"""Read an official checkpoint without executing code, and check that it is complete."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2wav.files import load_failure

# `hps.bandwidth` contains numpy scalars. Only these, tensors and plain containers are unpickled. Their pickled names
# depend on the numpy version.
_make_scalar = np.float64(0).__reduce__()[0]
_SCALARS: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
_SCALARS += [(_make_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

# types of the `hps` that the networks are built from; those of other networks are None
_WHOLE = ("levels", "level", "width", "depth", "emb_width", "l_bins", "dilation_growth_rate", "sample_length", "sr")
_WHOLE_PRIOR = ("t_bins", "n_ctx", "prior_width", "prior_depth", "heads", "blocks")
_WHOLE_UP = ("cond_width", "cond_depth", "cond_dilation_growth_rate", "cond_dilation_cycle")
_NUMBERS = ("m_conv", "l_mu", "revival_threshold", "m_attn", "m_mlp", "init_scale", "cond_m_conv")
_NUMBERS_PRIOR = ("class_free_guidance_prob", "min_duration", "max_duration")
_LISTS = ("downs_t", "strides_t")  # of whole numbers
_LOSSES = ("l1", "l2", "spec")  # numbers in `bandwidth`


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as a zip archive or a pickle does, the formats of torch.save; it may be incomplete."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def damaged_member(path: Path) -> str | None:
    """The first part of a zip archive whose checksum is wrong. torch.load does not compare them.

    Raises:
        zipfile.BadZipFile: the archive is incomplete.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def read(path: str | Path) -> dict[str, Any]:
    """Read an official file without executing code.

    Raises:
        ValueError: not an official file, damaged, or it contains types other than tensors, plain containers and numpy
            scalars.
    """
    path = Path(path)
    try:
        damaged = damaged_member(path)
        with torch.serialization.safe_globals(_SCALARS):
            content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is incomplete or damaged ({error}): download it again, or remove it") from error
    except Exception as error:  # torch.load raises many types of errors for broken files
        raise ValueError(f"{path} is not an official Im2Wav checkpoint: {load_failure(error)}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: wrong checksum of {damaged}; download it again, or remove it")
    if not isinstance(content, dict) or {"hps", "model"} - set(content):
        lacks = sorted({"hps", "model"} - set(content)) if isinstance(content, dict) else ["hps", "model"]
        raise ValueError(f"{path} is not an official Im2Wav checkpoint: it lacks {lacks}")
    if wrong := _wrong_types(content):
        raise ValueError(f"{path} is not an official Im2Wav checkpoint: {wrong}")
    return content


def _wrong_types(content: Mapping[str, Any]) -> str | None:
    """What of the content has another type than in official files; None if nothing has."""
    hps, model = content["hps"], content["model"]
    for name, value in (("hps", hps), ("model", model)):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return f"{name} is a {type(value).__name__}, expected a dict with texts as keys"
    for key, value in model.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return f"model has {key}={str(value)[:60]!r}, expected a tensor of floating-point numbers"
    losses = hps.get("bandwidth") or {}
    if not isinstance(losses, Mapping):
        return f"hps has bandwidth={str(losses)[:60]!r}, expected a dict of numbers"
    number: tuple[type, ...] = (int, float, np.number)
    expected = dict.fromkeys((*_WHOLE, *_WHOLE_PRIOR, *_WHOLE_UP), (int,)) | dict.fromkeys(
        (*_NUMBERS, *_NUMBERS_PRIOR), number
    )
    values = [(name, hps[name], types) for name, types in expected.items() if hps.get(name) is not None]
    values += [(f"bandwidth.{name}", losses[name], number) for name in _LOSSES if name in losses]
    values += [("step", content["step"], (int,))] if content.get("step") is not None else []
    for name in (name for name in _LISTS if name in hps):
        if not isinstance(hps[name], list | tuple):
            return f"hps has {name}={str(hps[name])[:60]!r}, expected a list of whole numbers"
        values += [(name, value, (int,)) for value in hps[name]]
    for name, value, types in values:
        if isinstance(value, bool) or not isinstance(value, types):
            return f"hps has {name}={str(value)[:60]!r}, expected a {'whole ' if types == (int,) else ''}number"
    return None
