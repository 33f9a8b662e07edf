"""A training run: module, data, trainer, callbacks and loggers from the configuration; training; the test split."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from im2wav.adapter import insert_adapter, save_adapter
from im2wav.checkpoint import Loaded, base_name, load, net_sha256, training_state
from im2wav.distributed import ignore_slurm_without_srun, interruptible, starts_processes
from im2wav.system import report_progress
from im2wav.training.base_model import use_base
from im2wav.training.checkpoints import AtomicCheckpointIO, check_resume, find_checkpoint, is_first_process
from im2wav.training.dashboard import Dashboard
from im2wav.training.hardware import HalfWeights, configure_precision, size_batch
from im2wav.training.loggers import WANDB_ID, finish_wandb_run
from im2wav.training.module import NetModule
from im2wav.training.monitor import run_provenance
from im2wav.training.priors import LowPrior, PriorModule, UpPrior
from im2wav.training.run_folder import accept_run, lock_run
from im2wav.training.signals import BEFORE
from im2wav.training.vqvae import VQVAE

log = logging.getLogger(__name__)
MODULES: dict[str, type[NetModule]] = {module.__name__: module for module in (VQVAE, LowPrior, UpPrior)}


def run_training(
    cfg: DictConfig,
    instantiate: Callable[..., Any],
    launcher: str | None = None,
    start_files: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """Train one model.

    Args:
        cfg: configuration of `im2wav.train`; `auto` values are replaced by those of this machine.
        instantiate: builds what a config node describes.
        launcher: name of the launcher whose worker this process is; None in the user's own process.
        start_files: path and content of files that describe this start, written when it is not rejected.

    Returns:
        The final metrics, the path of the last checkpoint as `checkpoint`, and the trainer, module and data module.

    Raises:
        ValueError: the configuration does not fit the machine, the data or the checkpoints, another training uses the
            folder, or no step could be made.
    """
    lock = nullcontext() if cfg.trainer.fast_dev_run else lock_run(Path(cfg.paths.output))
    with lock, report_progress(lambda: BEFORE):
        return _train(cfg, instantiate, launcher, start_files or {})


def _train(
    cfg: DictConfig, instantiate: Callable[..., Any], launcher: str | None, start_files: Mapping[Path, str]
) -> dict[str, Any]:
    warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer`")  # priors sample dropout there
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are, and advertisements
    output = Path(cfg.paths.output)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    configure_precision(cfg)
    module, datamodule, resume, base = _build(cfg, instantiate)
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node]
    for callback in callbacks:
        if isinstance(callback, Dashboard):
            callback.find_partner(module, datamodule)
            callback.base = base
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=False, **_trainer_options(cfg))
    if cfg.trainer.fast_dev_run:
        trainer.loggers = [DummyLogger()]  # callbacks want one
    _check_launcher(trainer, launcher)
    size_batch(cfg, trainer, datamodule, lambda: _untrained(cfg, instantiate))
    if not cfg.trainer.fast_dev_run:
        resolved = {output / "config.yaml": OmegaConf.to_yaml(cfg, resolve=True)}
        accept_run({**start_files, **resolved})
        trainer.loggers = _start_loggers(cfg, instantiate, is_new=resume is None)
    rows = len(datamodule.windows["train"])
    log.info("%s: %d pairs to train on", module.kind, rows)
    for part in module.regions() if cfg.compile else ():
        part.compile(dynamic=False)  # training batches have one size
    with finish_wandb_run(), _explained(cfg):
        with interruptible(trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if cfg.test and trainer.global_step and not cfg.trainer.fast_dev_run:
            metrics |= _evaluate_test_split(trainer, module, datamodule, output)
    if not trainer.global_step:
        raise ValueError(
            f"no step was made: data.batch_size={cfg.data.batch_size} on {trainer.world_size} devices leaves no whole "
            f"batch of {rows} pairs; lower it, or raise data.windows_per_epoch"
        )
    checkpoint = output / "last.ckpt"
    if module.adapter is not None and trainer.is_global_zero:
        _save_adapters(output, module)
    log.info("done: %s", checkpoint if checkpoint.is_file() else "nothing was saved")
    return {**metrics, "checkpoint": str(checkpoint), "trainer": trainer, "module": module, "datamodule": datamodule}


def _untrained(cfg: DictConfig, instantiate: Callable[..., Any]) -> Any:
    """Another module of this configuration, whose memory is counted."""
    module = instantiate(cfg.model)
    if module.adapter is not None:
        insert_adapter(module.net, **module.adapter)
    return module


def _start_loggers(cfg: DictConfig, instantiate: Callable[..., Any], is_new: bool) -> list[Any]:
    """The loggers, with the configuration and the inputs of this run; a new run is another one in W&B."""
    if is_new and is_first_process():
        (Path(cfg.paths.output) / WANDB_ID).unlink(missing_ok=True)  # of a run that this one replaces
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    facts = {"config": OmegaConf.to_container(cfg, resolve=True), **run_provenance(cfg.data.root)}
    for logger in loggers:
        logger.log_hyperparams(facts)
    return loggers


def _build(cfg: DictConfig, instantiate: Callable[..., Any]) -> tuple[Any, Any, str | None, Loaded | None]:
    """Build module, data module, checkpoint path and the network of `init_from`.

    Incompatible ones are rejected before audio is read.
    """
    if cfg.encoder.name == "auto" and not cfg.init_from:
        raise ValueError("encoder=auto is for sample: set the encoder that the data were embedded with")
    resume = find_checkpoint(cfg)
    kind = MODULES[cfg.model["_target_"].rpartition(".")[2]].kind
    base = None
    if cfg.init_from:
        base = use_base(cfg, kind)
    elif resume is not None and resume.endswith(".safetensors"):
        base, resume = load(resume, kind), None
    if cfg.codec is None:
        cfg.codec = f"{cfg.paths.runs}/{cfg.run_name}/vqvae/last.ckpt"
    module = instantiate(cfg.model)
    module.config, module.seed = OmegaConf.to_container(cfg.model, resolve=True), cfg.seed
    module.configure_optimizers()  # an invalid schedule is rejected before a logger starts a run
    if base is not None:
        module.base = base_name(cfg.init_from or cfg.ckpt_path, base)
    if base is not None and resume is None:
        _start_from(base, cfg.init_from or cfg.ckpt_path, module)
    if module.adapter is not None:
        _insert_adapter(cfg, module, base)
    tokenizer = _load_tokenizer(cfg, module) if isinstance(module, PriorModule) else None
    datamodule = instantiate(cfg.data)
    if cfg.test and not len(datamodule.windows["test"]):
        raise ValueError(f"test=true: data.root={cfg.data.root} has no pair in the split `test`; give test=false")
    if isinstance(module, PriorModule):
        datamodule.folder.info.check_encoder(cfg.encoder.name, None, f"data.root={cfg.data.root}")
        datamodule.tokenizer, datamodule.levels = tokenizer, module.levels
    if resume is not None:
        module.resumed_config = check_resume(resume, module, datamodule)
    return module, datamodule, resume, base if cfg.init_from else None


def _start_from(loaded: Loaded, source: str, module: Any) -> None:
    """Begin with the weights of another network, without its optimizer state and its step count."""
    try:
        module.net.load_state_dict(loaded.net.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit this configuration: {error}") from error
    if isinstance(module, VQVAE):
        module.codes_sha256 = loaded.codes_sha256 or net_sha256(loaded.net)
        if loaded.bandwidth is not None and module.bandwidth is None:
            module.set_bandwidth(loaded.bandwidth)


def _insert_adapter(cfg: DictConfig, module: Any, base: Loaded | None) -> None:
    """Add an adapter to the network, and the hash of its own weights to the configuration in the checkpoints."""
    if module.kind == "vqvae":
        raise ValueError(
            f"adapter=lora is for priors, and model={module.kind}: train parts of a codec with model.freeze"
        )
    if base is None or not cfg.init_from:
        raise ValueError("adapter=lora trains changes of a model: name it with init_from, such as init_from=runs/base")
    module.config["adapter"] |= {"base_sha256": net_sha256(base.net), "base": module.base}
    insert_adapter(module.net, **module.adapter)


def _load_tokenizer(cfg: DictConfig, module: PriorModule) -> Any:
    """The frozen codec whose codes a prior learns; its identity goes into the prior's checkpoints."""
    loaded = load(cfg.codec, "vqvae")
    codec: Any = loaded.net
    expected = int(cfg.data.num_samples) // codec.hop_lengths[module.level]
    for what, given, wanted in (
        ("number of codebooks", list(module.net.code_shape), list(codec.code_shapes[module.level])),
        ("codes.size", module.net.codebook_size, codec.codebook_size),
        ("context_length (data.num_samples / hop)", module.net.context_length, expected),
    ):
        if given != wanted:
            raise ValueError(f"{cfg.codec} does not fit this prior: its {what} is {wanted}, the prior's is {given}")
    module.codec_sha256 = loaded.codes_sha256 or net_sha256(codec)
    return codec


def _trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of the Trainer besides those of the configuration."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    ignore_slurm_without_srun(cfg.trainer.num_nodes)
    if SLURMEnvironment.detect():  # of SLURM only the ranks, since our own callback obeys its signals
        try:
            plugins.append(SLURMEnvironment(auto_requeue=False))
        except RuntimeError as error:  # of --ntasks without --ntasks-per-node
            raise ValueError(str(error)) from error
    options: dict[str, Any] = {"plugins": plugins}
    if cfg.trainer.precision in ("bf16-true", "16-true"):
        plugins.append(HalfWeights(cfg.trainer.precision))
        options["precision"] = None  # the plugin sets it
    if not cfg.callbacks.get("progress"):  # Lightning would add a bar of its own, which synchronises with the GPU
        options["enable_progress_bar"] = False
    return options


def _check_launcher(trainer: Any, name: str | None) -> None:
    """Reject several devices inside a launcher's worker.

    Lightning starts the processes of further devices by running the command again. Inside a worker of joblib, submitit
    or ray this is not the user's command.
    """
    if name and starts_processes(trainer) and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise ValueError(
            f"trainer.devices={trainer.num_devices} inside {name}, whose workers cannot start "
            "further processes. Give trainer.devices=1 for each run, or hydra/launcher=basic for one run after the "
            "other on all devices, or hydra/launcher=slurm, where SLURM starts them"
        )


@contextmanager
def _explained(cfg: DictConfig) -> Iterator[None]:
    """Turn what ends a training into one line that names the options that help."""
    try:
        yield
    except RuntimeError as error:  # OutOfMemoryError of a GPU is one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        options = [f"data.batch_size={cfg.data.batch_size} lower (with trainer.accumulate_grad_batches higher)"]
        if "transformer" in cfg.model.net:
            options.append("model.net.transformer.checkpointing=true")
        options += ["trainer.precision=bf16-mixed", "trainer=fsdp"]
        raise ValueError(f"out of memory: try {'; '.join(options)}. ({str(error).splitlines()[0][:160]})") from error


def _save_adapters(output: Path, module: Any) -> None:
    """Write the adapter of last.ckpt, and that of best.ckpt if a validation chose one."""
    for checkpoint, name in (("last.ckpt", "adapter.safetensors"), ("best.ckpt", "adapter_best.safetensors")):
        if (output / checkpoint).is_file():
            found, state = training_state(output / checkpoint)
            path = save_adapter(output / name, state, module.kind, module.config["adapter"])
            log.info("adapter after %d steps (%.1f MB): %s", found["global_step"], path.stat().st_size / 1e6, path)


def _evaluate_test_split(trainer: Any, module: Any, datamodule: Any, output: Path) -> dict[str, float]:
    """Log and return the metrics `test/*` of best.ckpt, or of last.ckpt where no validation chose a best one."""
    names = [name for name in ("best.ckpt", "last.ckpt") if (output / name).is_file()]
    path = str(output / names[0]) if names else None
    log.info("testing %s", path or "the weights at the end of training")
    stopped = f"the training is finished ({path}), but not test=true: the same command with resume=auto repeats it"
    with report_progress(lambda: stopped), interruptible(trainer):
        (metrics,) = trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
    for name, value in metrics.items():
        log.info("%s: %.4f", name, value)
    return dict(metrics)
