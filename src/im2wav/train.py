"""`python -m im2wav.train model=vqvae|low_prior|up_prior`: train one model on a pairs folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from im2wav.cli import command, instantiate, run


def launcher_of_worker() -> str | None:
    """Return the name of the Hydra launcher that started this process as a worker; None otherwise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    name = str(HydraConfig.get().launcher.get("_target_", "")).rsplit(".", 1)[-1]
    return None if name == "BasicLauncher" else name


def start_files(cfg: DictConfig) -> dict[Path, str]:
    """Return path and content of the files in `.hydra/`, as Hydra writes them."""
    from hydra.core.hydra_config import HydraConfig

    about = HydraConfig.get()
    files = {"config": cfg, "hydra": HydraConfig.instance().cfg, "overrides": about.overrides.task}
    folder = Path(about.runtime.output_dir) / ".hydra"
    return {folder / f"{name}.yaml": OmegaConf.to_yaml(node) for name, node in files.items()}


def train(cfg: DictConfig, files: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """Train one model; see `run_training`."""
    from im2wav.training.run import run_training

    return run_training(cfg, instantiate, launcher_of_worker(), files)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run the command and return the metric that sweeps optimise."""
    from hydra.errors import HydraException

    # raise in a worker: one that exits looks like a crash, after which ray would restart the run three times
    failure = HydraException if launcher_of_worker() else None
    return run(lambda config: train(config, start_files(config)), cfg, failure).get(cfg.optimized_metric)


if __name__ == "__main__":
    main()
