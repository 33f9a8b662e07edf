"""`python -m im2wav.train model=vqvae|low_prior|up_prior`: train one model on a pairs folder."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from im2wav.cli import command, instantiate, run

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this is rank 0; known before a process group is."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def find_checkpoint(cfg: DictConfig) -> str | None:
    """Find the checkpoint to resume from; a finished run is never overwritten silently.

    Raises:
        ValueError: the folder of this run already holds another checkpoint, `ckpt_path` does not exist, or
            `resume=auto` finds none that is complete.
    """
    from im2wav.training.checkpoints import find_newest_checkpoint

    output = Path(cfg.paths.output)
    last = output / "last.ckpt"
    if cfg.resume == "auto" and not cfg.overwrite and not cfg.trainer.fast_dev_run:
        newest = find_newest_checkpoint(output)
        if newest is not None:
            log.info("resuming from %s", newest)
            return str(newest)
    path = last if cfg.ckpt_path == "last" else cfg.ckpt_path and Path(cfg.ckpt_path)
    if path and not path.is_file():
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: {path} does not exist")
    ours = path and path.resolve().is_relative_to(output.resolve())
    if last.is_file() and not (cfg.overwrite or cfg.trainer.fast_dev_run or ours) and is_first_process():
        raise ValueError(
            f"{last.parent} already holds a trained model: give resume=auto to "
            "resume it, run_name=NAME to keep it and train another, or overwrite=true to replace it"
        )
    return str(path) if path else None


def check_resume(path: str, module: Any, datamodule: Any) -> None:
    """Reject a checkpoint of another model, other codes or other embeddings.

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
    """Begin with the weights of a .safetensors file: no optimizer, no step count, as converted checkpoints have none.

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
    """Build module, data module and checkpoint path; incompatible ones are rejected before audio is read.

    Raises:
        ValueError: see the functions above.
    """
    from im2wav.training.priors import PriorModule

    resume = find_checkpoint(cfg)
    module = instantiate(cfg.model)
    module.config, module.seed = OmegaConf.to_container(cfg.model, resolve=True), cfg.seed
    module.configure_optimizers()  # an invalid schedule is rejected before a logger starts a run
    if resume is not None and resume.endswith(".safetensors"):
        start_from(resume, module)
        resume = None
    tokenizer = load_tokenizer(cfg, module) if isinstance(module, PriorModule) else None
    datamodule = instantiate(cfg.data)
    if tokenizer is not None:
        datamodule.folder.info.check_encoder(cfg.encoder.name, None, f"data.root={cfg.data.root}")
    if cfg.test and not len(datamodule.windows["test"]):
        raise ValueError(f"test=true: data.root={cfg.data.root} has no pair in the split `test`; give test=false")
    datamodule.tokenizer = tokenizer
    if isinstance(module, PriorModule):
        datamodule.levels = module.levels
    if resume is not None:
        check_resume(resume, module, datamodule)
    return module, datamodule, resume


def plugins() -> list[Any]:
    """Whole checkpoint files; and of SLURM only the ranks, since our own callback obeys its signals."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from im2wav.training.checkpoints import AtomicCheckpointIO

    return [AtomicCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])]


def half_weights(precision: str) -> Any:
    """The precision plugin for weights in bf16 or fp16; None where Lightning's own serve."""
    from im2wav.training.precision import HalfWeights

    return HalfWeights(precision) if precision in ("bf16-true", "16-true") else None  # type: ignore[arg-type]


@contextmanager
def explained(cfg: DictConfig) -> Iterator[None]:
    """Turn what ends a training into one line that names the options that help, and a signal into its exit code.

    Raises:
        ValueError: memory ran out.
        SystemExit: 143 after SIGTERM or SIGUSR1, with everything saved.
    """
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(143) from stop
    except RuntimeError as error:  # OutOfMemoryError of a GPU is one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        options = [f"data.batch_size={cfg.data.batch_size} lower (with trainer.accumulate_grad_batches higher)"]
        if "transformer" in cfg.model.net:
            options.append("model.net.transformer.checkpointing=true")
        options += ["trainer.precision=bf16-mixed", "trainer=fsdp"]
        raise ValueError(f"out of memory: try {'; '.join(options)}. ({str(error).splitlines()[0][:160]})") from error


def worker_of() -> str | None:
    """The launcher whose worker this process is; None in the user's own process."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    name = str(HydraConfig.get().launcher.get("_target_", "")).rsplit(".", 1)[-1]
    return None if name == "BasicLauncher" else name


def check_launcher(trainer: Any) -> None:
    """Reject several devices inside a launcher's worker.

    Lightning starts the processes of further devices by running the command again. Inside a worker of joblib, submitit
    or ray this is not the user's command.

    Raises:
        ValueError: several devices inside such a launcher.
    """
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    starts_more = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.num_devices > 1
    name = worker_of()
    if name and starts_more and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise ValueError(
            f"trainer.devices={trainer.num_devices} inside {name}, whose workers cannot start "
            "further processes. Give trainer.devices=1 for each run, or hydra/launcher=basic for one run after the "
            "other on all devices, or hydra/launcher=slurm, where SLURM starts them"
        )


def build_trainer(cfg: DictConfig, **options: Any) -> Any:
    """The Trainer that the configuration describes.

    Raises:
        ValueError: see `check_launcher`.
    """
    half = half_weights(cfg.trainer.precision)
    more: dict[str, Any] = {"precision": None, "plugins": [*plugins(), half]} if half else {"plugins": plugins()}
    if not cfg.callbacks.get("progress"):  # Lightning would add a bar of its own, which synchronises with the GPU
        more["enable_progress_bar"] = False
    trainer = instantiate(cfg.trainer, **options, **more)
    check_launcher(trainer)
    return trainer


def evaluate_test_split(trainer: Any, module: Any, datamodule: Any, output: Path) -> dict[str, float]:
    """Log and return the metrics `test/*` of best.ckpt, or of last.ckpt where no validation chose a best one."""
    names = [name for name in ("best.ckpt", "last.ckpt") if (output / name).is_file()]
    path = str(output / names[0]) if names else None
    log.info("testing %s", path or "the weights at the end of training")
    (metrics,) = trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
    for name, value in metrics.items():
        log.info("%s: %.4f", name, value)
    return dict(metrics)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one model.

    Returns:
        The final metrics, the path of the last checkpoint as `checkpoint`, and the trainer, module and data module.

    Raises:
        ValueError: the configuration does not fit the data or the checkpoints, or no step could be made.
    """
    import lightning.pytorch as pl

    from im2wav.files import write_atomic
    from im2wav.training.dashboard import Dashboard
    from im2wav.training.facts import run_provenance
    from im2wav.training.hardware import configure_precision, size_batch
    from im2wav.training.loggers import WANDB_ID, finish_wandb_run

    warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer`")  # priors sample dropout there
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are, and advertisements
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    configure_precision(cfg)
    module, datamodule, resume = build(cfg)
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c]
    for callback in callbacks:
        if isinstance(callback, Dashboard):
            callback.find_partner(module, datamodule)
    if resume is None and not cfg.trainer.fast_dev_run and is_first_process():
        (Path(cfg.paths.output) / WANDB_ID).unlink(missing_ok=True)  # of a run that this one replaces
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    trainer: pl.Trainer = build_trainer(cfg, callbacks=callbacks, logger=loggers)
    size_batch(cfg, trainer, datamodule, lambda: instantiate(cfg.model))
    if not cfg.trainer.fast_dev_run:
        if trainer.is_global_zero:
            text = OmegaConf.to_yaml(cfg, resolve=True)
            write_atomic(Path(cfg.paths.output) / "config.yaml", text.encode())
        facts = {"config": OmegaConf.to_container(cfg, resolve=True), **run_provenance(cfg.data.root)}
        for logger in loggers:
            logger.log_hyperparams(facts)
    rows = len(datamodule.windows["train"])
    log.info("%s: %d pairs to train on", module.kind, rows)
    for part in module.regions() if cfg.compile else ():
        part.compile(dynamic=False)  # training batches have one size
    with finish_wandb_run(), explained(cfg):
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if cfg.test and trainer.global_step and not cfg.trainer.fast_dev_run:
            metrics |= evaluate_test_split(trainer, module, datamodule, Path(cfg.paths.output))
    if not trainer.global_step:
        raise ValueError(
            f"no step was made: data.batch_size={cfg.data.batch_size} on {trainer.world_size} devices leaves no whole "
            f"batch of {rows} pairs; lower it, or raise data.windows_per_epoch"
        )
    checkpoint = Path(cfg.paths.output) / "last.ckpt"
    log.info("done: %s", checkpoint if checkpoint.is_file() else "nothing was saved")
    return {**metrics, "checkpoint": str(checkpoint), "trainer": trainer, "module": module, "datamodule": datamodule}


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run the command; returns the metric that sweeps optimise."""
    from hydra.errors import HydraException

    # a worker that exits looks like one that crashed: ray would start the run again, thrice
    failure = HydraException if worker_of() else None
    return run(train, cfg, failure).get(cfg.optimized_metric)


if __name__ == "__main__":
    main()
