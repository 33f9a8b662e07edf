"""Begin a training with the weights of another model: its sizes, its codec and its image encoder."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from im2wav.checkpoint import KINDS, NETS, Loaded, find_net, load
from im2wav.hub import find_folder

log = logging.getLogger(__name__)


def use_base(cfg: DictConfig, kind: str) -> Loaded:
    """Set the network, the codec, the window and the encoder of a configuration to those of `init_from`.

    Args:
        cfg: configuration of `im2wav.train`, with `init_from`.
        kind: of the network to train: vqvae, low_prior or up_prior.

    Returns:
        The network of the model.

    Raises:
        ValueError: no such model, or options that exclude each other.
    """
    if cfg.ckpt_path:
        raise ValueError(f"init_from={cfg.init_from} and ckpt_path={cfg.ckpt_path} both give weights: set one of them")
    given = Path(cfg.init_from)
    folder = given.parent if given.is_file() else find_folder(cfg.init_from, Path(cfg.paths.cache))
    path = given if given.is_file() else find_net(folder, kind)
    base = load(path, kind)
    target = next(name for name, net in NETS.items() if type(base.net) is net)
    if kind == KINDS["codec"] and cfg.model.net["_target_"] != target:  # the losses are those of a family
        family = "residual" if target.endswith("ResidualCodec") else "im2wav"
        raise ValueError(f"init_from={cfg.init_from} is a codec of another family: add family={family}")
    cfg.model.net = OmegaConf.create({"_target_": target, **base.config})
    if kind != KINDS["codec"]:
        _use_codec(cfg, base, folder)
        cfg.encoder.name = base.data["encoder"]
        if base.sampling is not None:
            cfg.model.sampling = dict(base.sampling)
    log.info("starting from %s", path)
    return base


def _use_codec(cfg: DictConfig, base: Loaded, folder: Path) -> None:
    """The codec of the base, unless another one is given, and the window of the prior in its samples."""
    cfg.codec = cfg.codec or str(find_net(folder, KINDS["codec"]))
    net: Any = base.net
    codec: Any = load(cfg.codec, KINDS["codec"]).net
    level = "low" if base.kind == KINDS["low"] else "up"
    cfg.data.num_samples = net.context_length * codec.hop_lengths[level]
