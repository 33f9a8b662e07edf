"""`python -m im2wav.evaluate generated=DIR reference=DIR` (or a model, a codec, ImageHear): metrics with intervals."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import CONF, command, instantiate, one_line, rewrite, run
from im2wav.options import check_config


def sample_config(options: Sequence[str]) -> DictConfig:
    """Compose and check the config of `sample` with these options.

    Raises:
        ValueError: an option that `sample` does not have or that is out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    is_ready = GlobalHydra.instance().is_initialized()  # by `hydra.main`, with the same folder
    try:
        with nullcontext() if is_ready else initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("sample", rewrite("sample", list(options)))
    except HydraException as error:
        raise ValueError(f"sample: {one_line(error, 'sample')}") from error
    check_config(cfg, Path(CONF))
    return cfg


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate audio, a model or a codec; see `evaluate_audio`."""
    from im2wav.evaluation.scoring import evaluate_audio

    return evaluate_audio(cfg, sample_config, instantiate)


def _evaluate_job(cfg: DictConfig) -> None:
    """One job of a multirun, named by the options that the command line gives several values."""
    from hydra.core.hydra_config import HydraConfig

    from im2wav.evaluation.scoring import evaluate_setting

    about = HydraConfig.get()
    swept = {x.split("=")[0] for x in sys.argv[1:] if "=" in x and "," in x and "=[" not in x}
    setting = " ".join(x for x in about.overrides.task if x.split("=")[0] in swept) or str(about.job.num)
    evaluate_setting(evaluate, cfg, Path(about.sweep.dir), int(about.job.num), setting)


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command, or one job of a multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    run(_evaluate_job if HydraConfig.get().mode == RunMode.MULTIRUN else evaluate, cfg)


if __name__ == "__main__":
    main()
