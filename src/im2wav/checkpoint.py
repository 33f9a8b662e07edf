"""Load and save single networks with their metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from im2wav.adapter import merged_state
from im2wav.codec import AudioCodec, ResidualCodec
from im2wav.codec.quantizer import STATISTICS
from im2wav.files import atomic_path, load_failure, state_sha256
from im2wav.prior import MaskedPrior, Prior

# networks that a checkpoint can name; names from files are never imported
NETS: dict[str, type[nn.Module]] = {
    "im2wav.codec.AudioCodec": AudioCodec,
    "im2wav.codec.ResidualCodec": ResidualCodec,
    "im2wav.prior.Prior": Prior,
    "im2wav.prior.MaskedPrior": MaskedPrior,
}

KINDS = {"codec": "vqvae", "low": "low_prior", "up": "up_prior"}
STARTER = Path(__file__).parent / "assets" / "starter"  # a small model that is part of the package
LOCAL = "a local model"  # base of a model that has no name for others
MAPPED_TOGETHER = 2**24  # bytes of tensors per memory mapping of a file


@dataclass(frozen=True)
class Loaded:
    """A network and its metadata."""

    net: nn.Module
    kind: str  # vqvae, low_prior or up_prior
    config: Mapping[str, Any]  # arguments of the network
    data: Mapping[str, Any] = field(default_factory=dict)  # identity of the training data
    codec_sha256: str | None = None  # hash of the codec of a prior
    bandwidth: Mapping[str, float] | None = None  # loss normalisation of a codec
    sampling: Mapping[str, Any] | None = None  # how codes of a prior are drawn where nothing is said
    codes_sha256: str | None = None  # hash of a codec with the same codes, of which this one is a copy or a variant
    training: Mapping[str, Any] | None = None  # for the model card: steps, pairs, base, adapters


def net_sha256(net: nn.Module) -> str:
    """Hash of the weights and buffers of a network."""
    return state_sha256(net.state_dict())


def load(path: str | Path, kind: str | None = None) -> Loaded:
    """Load a network in eval mode; uses the EMA weights of training checkpoints if available.

    Args:
        path: a .ckpt file of a training run or a .safetensors file.
        kind: expected kind: vqvae, low_prior or up_prior; None: any.

    Raises:
        ValueError: the file does not exist, is not a checkpoint of im2wav, or has another kind.
    """
    path = Path(path)
    expected = f"a {kind} checkpoint" if kind else "a checkpoint of im2wav"
    if not path.is_file():
        hint = f"; train one with `python -m im2wav.train model={kind}`, or set its path" if kind else ""
        raise ValueError(f"{path} does not exist, expected {expected}{hint}")
    try:
        about, state = (_read_safetensors if path.suffix == ".safetensors" else _read_training)(path)
        found, config = about["kind"], {k: v for k, v in about["config"].items() if not k.startswith("_")}
        build = NETS[about["config"]["_target_"]]
    except Exception as error:  # torch.load raises many types of errors for broken files
        raise ValueError(f"{path} is not {expected} ({load_failure(error)})") from error
    if kind and found != kind:
        raise ValueError(f"{path} holds a {found}, expected {expected}")
    with torch.device("meta"):
        net = build(**config)
    halves = (torch.float16, torch.bfloat16)  # small files, see `save`
    state = {name: value.float() if value.dtype in halves else value for name, value in state.items()}
    net.load_state_dict(state, assign=True)
    assert not any(buffer.is_meta for buffer in net.buffers()), "buffers that are not saved have no values here"
    rest = {k: about.get(k) for k in ("codec_sha256", "bandwidth", "sampling", "codes_sha256", "training")}
    return Loaded(net.eval().requires_grad_(False), found, config, about.get("data") or {}, **rest)


def training_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A training checkpoint, and the averaged weights of its network."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    prefix = "net."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return checkpoint, state


def _read_training(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint, state = training_state(path)
    config = checkpoint["config"]
    if config.get("adapter"):
        state = merged_state(state, config["adapter"])
    training = {"steps": checkpoint["global_step"], **checkpoint.get("training", {})}
    return {**checkpoint, "config": config["net"], "sampling": config.get("sampling"), "training": training}, state


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Memory-map the weights.

    A mapping is released after all its tensors are released. A new mapping every few tensors allows callers that
    release tensors one by one (`Decoder(consume=True)`) to free memory early.
    """
    with safe_open(path, "pt") as file:
        about, names = json.loads(file.metadata()["im2wav"]), list(file.keys())
    state: dict[str, Tensor] = {}
    while names:
        with safe_open(path, "pt") as file:
            remaining = MAPPED_TOGETHER
            while names and remaining > 0:
                name = names.pop()
                state[name] = file.get_tensor(name)
                remaining -= state[name].nbytes
    return about, state


def save(loaded: Loaded, path: Path, dtype: str = "fp32") -> Path:
    """Save a network as a .safetensors file with its metadata in the header.

    Args:
        loaded: the network.
        path: the file.
        dtype: of the weights in the file, fp32 or fp16. In fp16 the sums of codebooks, which training can compute
            again, are left out, and a codec names the one that it was rounded from.

    Raises:
        ValueError: an unknown dtype, or the file cannot be written.
    """
    if dtype not in ("fp32", "fp16"):
        raise ValueError(f"dtype={dtype}: expected fp32 or fp16")
    target = next(name for name, kind in NETS.items() if isinstance(loaded.net, kind))
    about = {
        "kind": loaded.kind,
        "config": {"_target_": target, **loaded.config},
        "data": dict(loaded.data),
        "codec_sha256": loaded.codec_sha256,
        "bandwidth": loaded.bandwidth,
        "sampling": loaded.sampling,
        "codes_sha256": loaded.codes_sha256,
        "training": loaded.training,
    }
    state = {name: value.contiguous() for name, value in loaded.net.state_dict().items()}
    if dtype == "fp16":
        if loaded.kind == KINDS["codec"] and loaded.codes_sha256 is None:
            about["codes_sha256"] = net_sha256(loaded.net)
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items() if not k.endswith(STATISTICS)}
    try:
        with atomic_path(path) as temporary:
            save_file(state, temporary, {"im2wav": json.dumps(about)})
    except SafetensorError as error:  # a full disk
        raise ValueError(f"cannot write {path}: {error}; free space, or choose another folder") from error
    return path


def load_net(path: str | Path, kind: str | None = None) -> nn.Module:
    """Load the network of a checkpoint in eval mode, see `load`."""
    return load(path, kind).net


def base_name(given: str, base: Loaded) -> str:
    """The name of a base in model cards: as it is given; of local files, which others cannot find, that of their base.

    Args:
        given: official, an id on the Hub, a folder or a file.
        base: a network of it.
    """
    return given if not Path(given).exists() else (base.training or {}).get("base") or LOCAL


def check_same_origin(codec: Loaded, low: Loaded, up: Loaded) -> None:
    """Check that codec and priors are compatible.

    Raises:
        ValueError: a prior was trained with another codec, or the priors with different image encoders.
    """
    sha256 = net_sha256(codec.net)
    for name, prior in (("low", low), ("up", up)):
        if prior.codec_sha256 not in (None, sha256, codec.codes_sha256):
            raise ValueError(
                f"the {name} prior was trained on the codes of another VQ-VAE (sha256 "
                f"{prior.codec_sha256[:12]}…, this one is {sha256[:12]}…): use the VQ-VAE of its run"
            )
    for name in ("encoder", "weights_sha256", "fps"):
        one, other = (x.data.get(name) for x in (low, up))
        if one != other:
            raise ValueError(
                f"the low prior was trained with {name}={one}, the up prior with {name}={other}: "
                "both priors must use the same embeddings"
            )
    hops: Any = codec.net.hop_lengths
    windows = [x.net.context_length * hops[level] for x, level in ((low, "low"), (up, "up"))]
    if windows[0] != windows[1]:
        raise ValueError(
            f"the low prior has windows of {windows[0]} samples, the up prior of {windows[1]}: they must be equal"
        )


def find_net(folder: Path, kind: str) -> Path:
    """The checkpoint of one network in a folder of `save_pretrained`, of `convert`, or of training runs.

    Raises:
        ValueError: it is missing.
    """
    places = [folder / f"{kind}.safetensors", folder / kind / "last.ckpt"]
    for path in places:
        if path.is_file():
            return path
    raise ValueError(
        f"{folder} holds no {kind}: expected {places[0].name} (from save_pretrained or `python -m im2wav.convert`) or "
        f"{kind}/last.ckpt (of a run; train one with `python -m im2wav.train model={kind}`)"
    )


def find_weights(folder: Path, given: Mapping[str, str | None] | None = None) -> dict[str, Path]:
    """The checkpoints of the three networks in a folder, by name; those that are given replace them.

    Raises:
        ValueError: one is missing.
    """
    own = {name: Path(path) for name, path in (given or {}).items() if path}
    return {name: own.get(name) or find_net(folder, kind) for name, kind in KINDS.items()}
