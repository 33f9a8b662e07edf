"""What the entries share: where the configs are, one clear line for an error, and the `im2wav` command."""

import functools
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

VERBS = {
    "embed": "videos, or images and audio files -> a pairs folder",
    "inspect": "statistics of a pairs folder: counts, lengths, loudness, duplicates, and a page",
    "shard": "a pairs folder -> a few large files, for network disks and object stores",
    "tokenize": "codes of whole clips, written once for training the priors",
    "train": "train model=vqvae, low_prior or up_prior on a pairs folder",
    "sample": "a photo, a video or a folder -> generated audio",
    "convert": "official Im2Wav checkpoints and CLIP pickles -> ours",
    "evaluate": "generated audio or a model -> metrics with intervals and baselines, and a page",
    "bench": "speed, as ratios to limits measured in the same run",
    "demo": "embed, train and evaluate end to end on the shipped pairs, with a page of the results",
}


def root() -> Path:
    """The folder that holds `conf/` and `experiments/`: inside the installed package, or the top of the repository."""
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parents[1]


CONF = str(root() / "conf")


def register_resolvers() -> None:
    """Make the functions known that the configs interpolate with. Called before Hydra composes."""
    from omegaconf import OmegaConf

    def codes_in(num_samples: int, strides: list[list[int]], level: str) -> int:
        groups = strides if level == "low" else strides[:1]
        return num_samples // prod(prod(group) for group in groups)

    OmegaConf.register_new_resolver("project_root", lambda: str(root()), replace=True)
    OmegaConf.register_new_resolver("codes_in", codes_in, replace=True)


def run(task: Callable[[Any], Any], config: Any, failure: type[Exception] | None = None) -> Any:
    """Run an entry's task; whatever the user can mend ends in one line on stderr and exit code 2.

    IM2WAV_TRACEBACK=1 shows where an error came from. In a launcher's worker, where somebody else writes the line, it
    becomes a `failure`.
    """
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    logging.captureWarnings(True)
    try:
        check_words(config)
        return task(config)
    except (ValueError, OSError, InstantiationException, OmegaConfBaseException) as error:
        if os.environ.get("IM2WAV_TRACEBACK"):
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        text = " ".join(str(cause).split())
        if "Could not load this library" in text:  # torchaudio's CUDA build beside a CPU-only torch
            text += ": install matching builds of torch and torchaudio, or run the repository's .ci/cpu_torch.py"
        if failure is not None:
            raise failure(text) from error
        sys.stderr.write(f"error: {text}\n")
        raise SystemExit(2) from error


# options that are a number or a word, and those that are a number or null
WORDS_TOO = ("trainer.devices", "callbacks.ema.decay", "batch_size", "data.batch_size")
NUMBERS_OR_NULL = ("seconds", "num_drafts", "threads", "num_workers", "data.global_batch_size")


def check_words(config: Any) -> None:
    """Refuse a word that the command line gives where the configs have a number, or true or false.

    Raises:
        ValueError: naming the option and what it usually is.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not (HydraConfig.initialized() and GlobalHydra.instance().is_initialized()):
        return  # the config comes from Python
    about = HydraConfig.get()
    given = {override.partition("=")[0].lstrip("+"): override for override in about.overrides.task}  # the last counts
    words = {
        key: override
        for key, override in given.items()
        if key not in WORDS_TOO
        and override != "compile=triton"
        and isinstance(OmegaConf.select(config, key, throw_on_resolution_failure=False), str)
    }
    if not words:
        return
    usual = hydra.compose(str(about.job.config_name), [override for key, override in given.items() if key not in words])
    for key, override in words.items():
        value = OmegaConf.select(usual, key, throw_on_resolution_failure=False)
        if isinstance(value, bool):
            raise ValueError(f"{override}: expected true or false")
        if key in NUMBERS_OR_NULL or isinstance(value, int | float):
            raise ValueError(f"{override}: expected a number, such as {key}={4 if value is None else value}")


def one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Around `hydra.main`: one line and exit code 2 also for what Hydra itself refuses.

    That is an unknown key, a missing choice, a run folder that cannot be made. HYDRA_FULL_ERROR=1 shows where it came
    from.
    """

    @functools.wraps(main)
    def entry() -> None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        asked = os.environ.get("HYDRA_FULL_ERROR")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints several lines and exits by itself
        try:
            main()
        except (HydraException, OmegaConfBaseException, OSError) as error:
            if asked:
                raise
            text = " ".join(str(error).partition("Config search path")[0].split())
            if getattr(error, "override", None):
                text = f"{error.override}: {text}"  # type: ignore[union-attr]
            sys.stderr.write(f"error: {text}\n")
            raise SystemExit(2) from error
        finally:
            if asked is None:
                del os.environ["HYDRA_FULL_ERROR"]

    return entry


def quoted(value: object) -> str:
    """A value as Hydra reads it literally, whatever characters are in it."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def verb(name: str, *arguments: str) -> None:
    """Run `python -m im2wav.NAME ...` and show it.

    Raises:
        ValueError: it failed.
    """
    logging.getLogger(__name__).info("\n$ python -m im2wav.%s %s", name, " ".join(arguments))
    if subprocess.run([sys.executable, "-m", f"im2wav.{name}", *arguments], check=False).returncode:
        raise ValueError(f"`python -m im2wav.{name} {' '.join(arguments)}` failed; see above")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build what a config node describes; containers reach it as plain lists and dicts."""
    import hydra

    return hydra.utils.instantiate(node, _convert_="all", **arguments)


def main() -> None:
    """`im2wav VERB ...` is `python -m im2wav.VERB ...`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in VERBS:
        lines = "\n".join(f"  {name:8} {what}" for name, what in VERBS.items())
        text = f"usage: im2wav VERB [key=value ...]\n\n{lines}\n\n`im2wav VERB --help` lists what can be set.\n"
        if verb in ("-h", "--help"):
            sys.stdout.write(text)
            return
        sys.exit(f"error: {verb!r} is no verb of im2wav\n{text}")
    sys.argv = [f"im2wav {verb}", *sys.argv[2:]]
    runpy.run_module(f"im2wav.{verb}", run_name="__main__", alter_sys=True)  # so that Lightning can start more of it


if __name__ == "__main__":
    main()
