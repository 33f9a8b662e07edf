"""`python -m im2wav.evaluate generated=DIR reference=DIR` (or a model, a codec, ImageHear): metrics with intervals."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, compose_checked, instantiate, run


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate audio, a model or a codec; see `evaluate_audio`."""
    from im2wav.evaluation.scoring import evaluate_audio

    return evaluate_audio(cfg, partial(compose_checked, "sample"), instantiate)


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
