"""Adapters (LoRA): small low-rank changes of the linear layers of a prior, whose own weights stay as they are.

Trained through the package peft; merged here, which needs no package. Source: Hu et al. 2021 (LoRA): a layer computes
`(W + alpha / rank * B A) x + b`, with A [rank, in] and B [out, rank].
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from im2wav.files import atomic_path, state_sha256
from im2wav.network import first_line

NAME = "default"  # of peft
DOWN, UP, BASE = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight", ".base_layer."


def insert_adapter(net: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Add a low-rank change to the linear layers whose names end with one of `targets`; all else is frozen.

    Raises:
        ValueError: peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"adapter=lora needs peft ({error}): pip install 'im2wav[adapters]'") from error
    try:
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
        with unset_fake_temporarily():  # peft converts weights in a way that fake tensors do not support
            inject_adapter_in_model(config, net, NAME)
    except ValueError as error:
        raise ValueError(f"adapter: {first_line(error)}") from error
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def scale_of(options: Mapping[str, Any]) -> float:
    """Factor of the changes of an adapter with these options."""
    return options["alpha"] / options["rank"]


def merged_state(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a network with an adapter as one without, whose weights include the changes."""
    plain = {name.replace(BASE, "."): value for name, value in state.items() if ".lora_" not in name}
    return add_changes(plain, adapter_state(state), scale_of(options))


def plain_copy(net: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """A copy of a network with an adapter as one without, whose weights include the changes."""
    copy = deepcopy(net)
    state = merged_state(copy.state_dict(), options)
    for name, part in list(copy.named_modules()):
        if hasattr(part, "base_layer"):
            above, _, own = name.rpartition(".")
            setattr(copy.get_submodule(above), own, part.base_layer)
    copy.load_state_dict(state)
    return copy


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors A and B of an adapter, by name of the layer with the suffix .A or .B."""
    suffixes = {DOWN: ".A", UP: ".B"}
    return {
        name.removesuffix(old) + new: value
        for name, value in state.items()
        for old, new in suffixes.items()
        if name.endswith(old)
    }


def add_changes(state: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights plus `scale` * B A.

    Raises:
        ValueError: the adapter has layers that the network does not have, or of other sizes.
    """
    result = dict(state)
    for name in sorted(key.removesuffix(".A") for key in adapter if key.endswith(".A")):
        key, down, up = f"{name}.weight", adapter[f"{name}.A"], adapter.get(f"{name}.B")
        if key not in result or up is None or result[key].shape != (len(up), down.shape[1]):
            raise ValueError(f"the network has no layer {name} of the size of the adapter's")
        change = scale * (up.double() @ down.double())
        result[key] = (result[key].double() + change).to(result[key].dtype)
    return result


def save_adapter(path: Path, state: Mapping[str, Tensor], kind: str, options: Mapping[str, Any]) -> Path:
    """Write the adapter of a network with this state dict as a safetensors file.

    Args:
        path: the file.
        state: of the network with its adapter.
        kind: of the network: low_prior or up_prior.
        options: of the adapter, with `base_sha256`, the hash of the network without it, and `base`, the name of the
            model that it belongs to.
    """
    tensors = {name: value.contiguous() for name, value in adapter_state(state).items()}
    about = {"kind": kind, "scale": scale_of(options), **{name: options.get(name) for name in ("base_sha256", "base")}}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"im2wav_adapter": json.dumps(about)})
    return path


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an adapter is of, and its tensors.

    Raises:
        ValueError: no such file, or not an adapter.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["im2wav_adapter"])
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # errors of files and of safetensors
        raise ValueError(f"adapter={path} is not an adapter of im2wav ({type(error).__name__})") from error


def apply_adapters(nets: Mapping[str, nn.Module], given: Sequence[str]) -> None:
    """Add the changes of adapters to networks, which must be those that they were trained on.

    Args:
        nets: priors by kind, low_prior and up_prior.
        given: files, each with or without a weight: `dogs.safetensors` or `dogs.safetensors@0.5`.

    Raises:
        ValueError: a file that is not an adapter, or of another network; or a weight that is no number.
    """
    hashes: dict[str, str] = {}  # of the networks before any change
    for text in given:
        name, _, weight = text.rpartition("@") if "@" in Path(text).name else (text, "", "1")
        about, tensors = read_adapter(Path(name))
        kind = str(about.get("kind"))
        if kind in nets and kind not in hashes:
            hashes[kind] = state_sha256(nets[kind].state_dict())
        if kind not in nets or about.get("base_sha256") != hashes[kind]:
            raise ValueError(
                f"adapter={name} was trained on another {kind} than that of this model: set the model "
                "that it was trained from (pretrained or run_name)"
            )
        try:
            scale = about["scale"] * float(weight)
        except ValueError:
            raise ValueError(f"adapter={text}: expected a number after @") from None
        with torch.no_grad():
            nets[kind].load_state_dict(add_changes(nets[kind].state_dict(), tensors, scale))
