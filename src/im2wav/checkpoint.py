"""A path -> a bare net in eval mode, with what its file says of its origin."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from im2wav.codec import AudioCodec
from im2wav.files import atomic_path, state_sha256
from im2wav.prior import Prior

# the nets that a checkpoint may ask for: a name from a file is never imported
NETS: dict[str, type[nn.Module]] = {"im2wav.codec.AudioCodec": AudioCodec, "im2wav.prior.Prior": Prior}

MAPPED_TOGETHER = 2**24  # bytes of tensors that share a mapping of their file


@dataclass(frozen=True)
class Loaded:
    """A net and its origin."""

    net: nn.Module
    kind: str  # vqvae, low_prior or up_prior
    config: Mapping[str, Any]  # of the net: the arguments that build it
    data: Mapping[str, Any] = field(default_factory=dict)  # identity of the data set that it was trained on
    codec_sha256: str | None = None  # of a prior: the codec whose codes it speaks
    bandwidth: Mapping[str, float] | None = None  # of a codec: what its losses were divided by


def net_sha256(net: nn.Module) -> str:
    """Hash of a net's weights and buffers."""
    return state_sha256(net.state_dict())


def load(path: str | Path, kind: str | None = None) -> Loaded:
    """Load a net; of a training checkpoint the averaged weights (EMA) where the run kept them.

    Args:
        path: a .ckpt file of a training run or a .safetensors file.
        kind: vqvae, low_prior or up_prior, to refuse any other.

    Raises:
        ValueError: no such file, not a checkpoint of ours, or of another kind.
    """
    path = Path(path)
    expected = f"a {kind} checkpoint" if kind else "a checkpoint of im2wav"
    if not path.is_file():
        hint = f"; train one with `python -m im2wav.train model={kind}`, or give its path" if kind else ""
        raise ValueError(f"{path} does not exist, expected {expected}{hint}")
    try:
        about, state = (_read_safetensors if path.suffix == ".safetensors" else _read_training)(path)
        found, config = about["kind"], {k: v for k, v in about["config"].items() if not k.startswith("_")}
        build = NETS[about["config"]["_target_"]]
    except Exception as error:  # torch.load raises whatever the broken file provokes
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(f"{path} is not {expected} ({type(error).__name__}: {reason})") from error
    if kind and found != kind:
        raise ValueError(f"{path} holds a {found}, expected {expected}")
    with torch.device("meta"):
        net = build(**config)
    net.load_state_dict(state, assign=True)
    about = {k: about.get(k) for k in ("data", "codec_sha256", "bandwidth")}
    return Loaded(
        net.eval().requires_grad_(False), found, config, about["data"] or {}, about["codec_sha256"], about["bandwidth"]
    )


def _read_training(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    prefix = "net."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return {**checkpoint, "config": checkpoint["config"]["net"]}, state


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The weights are memory-mapped: read once, where they are used.

    A mapping lives as long as any of its tensors, and its pages count as memory in use; so the file is mapped anew
    every few tensors, and who lets go of tensors one after the other (`Decoder(consume=True)`) frees memory as fast.
    """
    with safe_open(path, "pt") as file:
        about, names = json.loads(file.metadata()["im2wav"]), list(file.keys())
    state: dict[str, Tensor] = {}
    while names:
        with safe_open(path, "pt") as file:
            room = MAPPED_TOGETHER
            while names and room > 0:
                name = names.pop()
                state[name] = file.get_tensor(name)
                room -= state[name].nbytes
    return about, state


def save(loaded: Loaded, path: Path) -> Path:
    """Write a net as one .safetensors file that says in its header what it is.

    Raises:
        ValueError: the file cannot be written.
    """
    target = next(name for name, kind in NETS.items() if isinstance(loaded.net, kind))
    about = {
        "kind": loaded.kind,
        "config": {"_target_": target, **loaded.config},
        "data": dict(loaded.data),
        "codec_sha256": loaded.codec_sha256,
        "bandwidth": loaded.bandwidth,
    }
    state = {name: value.contiguous() for name, value in loaded.net.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {"im2wav": json.dumps(about)})
    return path


def load_net(path: str | Path, kind: str | None = None) -> nn.Module:
    """The net of a checkpoint, bare, in eval mode. See `load`."""
    return load(path, kind).net


def check_same_origin(codec: Loaded, low: Loaded, up: Loaded) -> None:
    """Refuse nets that do not belong together.

    Raises:
        ValueError: a prior that speaks the codes of another codec, or priors of different image encoders.
    """
    sha256 = net_sha256(codec.net)
    for name, prior in (("low", low), ("up", up)):
        if prior.codec_sha256 not in (None, sha256):
            raise ValueError(
                f"the {name} prior was trained on the codes of another VQ-VAE (sha256 "
                f"{prior.codec_sha256[:12]}…, this one is {sha256[:12]}…): give the one of its own run"
            )
    for name in ("encoder", "weights_sha256", "fps"):
        one, other = (x.data.get(name) for x in (low, up))
        if one != other:
            raise ValueError(
                f"the low prior was trained with {name}={one}, the up prior with {name}={other}: "
                "both must see the same embeddings"
            )
    hops: Any = codec.net.hop_lengths
    windows = [x.net.context_length * hops[level] for x, level in ((low, "low"), (up, "up"))]
    if windows[0] != windows[1]:
        raise ValueError(
            f"the low prior's window is {windows[0]} samples, the up prior's {windows[1]}: they must be equal"
        )
