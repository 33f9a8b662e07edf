"""`python -m im2wav.train model=vqvae|low_prior|up_prior`: train one model on a pairs folder."""

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from im2wav.cli import CONF, instantiate, one_line, register_resolvers, run

log = logging.getLogger(__name__)
register_resolvers()


def check_keys(cfg: DictConfig) -> None:
    """Refuse keys at the top of the configuration that nobody reads; an experiment file may have brought them.

    Raises:
        ValueError: there are some.
    """
    known = set(OmegaConf.load(Path(CONF) / "train.yaml")) - {"defaults"}
    groups = {"model", "data", "encoder", "trainer", "callbacks", "logger", "paths"}
    unknown = {str(key) for key in cfg} - known - groups
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}: expected some of {sorted((known | groups) - {'hydra'})}")


def find_checkpoint(cfg: DictConfig) -> str | None:
    """The checkpoint to go on from, and no silent overwriting of a finished run.

    Raises:
        ValueError: the folder of this run already holds another checkpoint, or `ckpt_path` does not exist.
    """
    from lightning.pytorch.utilities import rank_zero_only

    last = Path(cfg.paths.output) / "last.ckpt"
    path = last if cfg.ckpt_path == "last" else cfg.ckpt_path and Path(cfg.ckpt_path)
    if path and not path.is_file():
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: {path} does not exist")
    kept = cfg.overwrite or cfg.trainer.fast_dev_run or (path and last.is_file() and path.samefile(last))
    if last.is_file() and not kept and getattr(rank_zero_only, "rank", 0) == 0:
        raise ValueError(
            f"{last.parent} already holds a trained model: give ckpt_path=last to go on "
            "with it, run_name=NAME to keep it and train another, or overwrite=true to replace it"
        )
    return str(path) if path else None


def check_resume(path: str, module: Any, datamodule: Any) -> None:
    """Refuse to go on from a checkpoint of another model, other codes or other embeddings.

    Raises:
        ValueError: it is one.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        kind, data = checkpoint["kind"], checkpoint["data"]
    except Exception as error:  # torch.load raises whatever the broken file provokes
        raise ValueError(f"ckpt_path={path} is not a checkpoint of a training run ({type(error).__name__})") from error
    if kind != module.kind:
        raise ValueError(f"ckpt_path={path} holds a {kind}, expected a {module.kind}")
    codec = getattr(module, "codec_sha256", None)
    if codec != checkpoint.get("codec_sha256"):
        raise ValueError(f"ckpt_path={path} was trained on the codes of another VQ-VAE: give that one as codec=PATH")
    now = datamodule.identity()
    for name in ("encoder", "weights_sha256", "fps") if codec else ():
        if data[name] != now[name]:
            raise ValueError(f"ckpt_path={path} was trained on data with {name}={data[name]}, not {now[name]}")


def start_from(weights: str, module: Any) -> None:
    """Begin with the weights of a .safetensors file: no optimiser, no step count, as converted checkpoints have none.

    Raises:
        ValueError: a file of another kind of model, or one that does not fit the configuration.
    """
    from im2wav.checkpoint import load

    loaded = load(weights, module.kind)
    try:
        module.net.load_state_dict(loaded.net.state_dict())
    except RuntimeError as error:
        raise ValueError(f"ckpt_path={weights} does not fit this configuration: {error}") from error
    if loaded.bandwidth is not None and getattr(module, "bandwidth", None) is None:
        module.set_bandwidth(loaded.bandwidth)


def load_tokenizer(cfg: DictConfig, module: Any) -> Any:
    """The frozen codec whose codes a prior learns; its identity goes into the prior's checkpoints.

    Raises:
        ValueError: no such file, not a VQ-VAE, or one whose codes do not fit the prior.
    """
    from im2wav.checkpoint import load, net_sha256

    codec = load(cfg.codec, "vqvae").net
    expected = int(cfg.data.num_samples) // codec.hop_lengths[module.level]  # type: ignore[index]
    for what, given, wanted in (
        ("codes.size", module.net.codebook_size, codec.codebook_size),
        ("context_length (data.num_samples / hop)", module.net.context_length, expected),
    ):
        if given != wanted:
            raise ValueError(f"{cfg.codec} does not fit this prior: its {what} is {wanted}, the prior's is {given}")
    module.codec_sha256 = net_sha256(codec)
    return codec


def build(cfg: DictConfig) -> tuple[Any, Any, str | None]:
    """Module, data module and the checkpoint to go on from; whatever does not fit is refused before sounds are read.

    Raises:
        ValueError: see the functions above.
    """
    from im2wav.training.priors import PriorModule

    check_keys(cfg)
    resume = find_checkpoint(cfg)
    module = instantiate(cfg.model)
    module.config = OmegaConf.to_container(cfg.model, resolve=True)
    if resume is not None and resume.endswith(".safetensors"):
        start_from(resume, module)
        resume = None
    tokenizer = load_tokenizer(cfg, module) if isinstance(module, PriorModule) else None
    datamodule = instantiate(cfg.data)
    if tokenizer is not None:
        datamodule.folder.info.check_encoder(cfg.encoder.name, None, f"data.root={cfg.data.root}")
    datamodule.tokenizer = tokenizer
    if resume is not None:
        check_resume(resume, module, datamodule)
    return module, datamodule, resume


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one model.

    Returns:
        The final metrics, the path of the last checkpoint as `checkpoint`, and the trainer, module and data module.

    Raises:
        ValueError: the configuration does not fit the data or the checkpoints, or no step could be made.
    """
    import lightning.pytorch as pl

    from im2wav.data.pairs import write_atomic

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are, and advertisements
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module, datamodule, resume = build(cfg)
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c]
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    trainer: pl.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    if not cfg.trainer.fast_dev_run:
        if trainer.is_global_zero:
            text = OmegaConf.to_yaml(cfg, resolve=True)
            write_atomic(Path(cfg.paths.output) / "config.yaml", text.encode())
        for logger in loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    rows = len(datamodule.windows["train"])
    millions = sum(p.numel() for p in module.parameters()) / 1e6
    log.info("%s: %.2f M parameters, %d pairs to train on", module.kind, millions, rows)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    if not trainer.global_step:
        raise ValueError(
            f"no step was made: data.batch_size={cfg.data.batch_size} on {trainer.world_size} devices leaves no whole "
            f"batch of {rows} pairs; lower it, or raise data.windows_per_epoch"
        )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    checkpoint = Path(cfg.paths.output) / "last.ckpt"
    log.info("done: %s", checkpoint if checkpoint.is_file() else "nothing was saved")
    return {**metrics, "checkpoint": str(checkpoint), "trainer": trainer, "module": module, "datamodule": datamodule}


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def hydra_main(cfg: DictConfig) -> float | None:
    """Returns the metric that sweeps optimise."""
    return run(train, cfg).get(cfg.optimized_metric)


def main() -> None:
    """Entry. An experiment may be given with a plus or without, as people are used to."""
    sys.argv = [a.removeprefix("+") if a.startswith("+experiment=") else a for a in sys.argv]
    hydra_main()


if __name__ == "__main__":
    main()
