"""`python -m im2wav.train model=vqvae|low_prior|up_prior`: train one model on a pairs folder."""

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from im2wav.cli import CONF, instantiate, register_resolvers, run

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
        ValueError: the folder of this run already holds checkpoints, or `ckpt_path` does not exist.
    """
    from lightning.pytorch.utilities import rank_zero_only

    last = Path(cfg.paths.output) / "last.ckpt"
    if cfg.ckpt_path is None:
        if last.is_file() and getattr(rank_zero_only, "rank", 0) == 0 and not cfg.overwrite:
            raise ValueError(
                f"{last.parent} already holds a trained model: give ckpt_path=last to go on "
                "with it, run_name=NAME to keep it and train another, or overwrite=true to replace it"
            )
        return None
    path = last if cfg.ckpt_path == "last" else Path(cfg.ckpt_path)
    if not path.is_file():
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: {path} does not exist")
    return str(path)


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


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one model; everything that can be wrong with the configuration is refused before sounds are read.

    Returns:
        The final metrics, the path of the last checkpoint as `checkpoint`, and the trainer, module and data module.
    """
    import lightning.pytorch as pl

    from im2wav.training.priors import PriorModule

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are, and advertisements
    check_keys(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
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
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c]
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    trainer: pl.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    log.info(
        "%s: %.2f M parameters, %d pairs to train on",
        module.kind,
        sum(p.numel() for p in module.parameters()) / 1e6,
        len(datamodule.windows["train"]),
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    checkpoint = Path(cfg.paths.output) / "last.ckpt"
    log.info("done: %s", checkpoint)
    return {**metrics, "checkpoint": str(checkpoint), "trainer": trainer, "module": module, "datamodule": datamodule}


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
