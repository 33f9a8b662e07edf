"""Shared by all commands: location of the configs, one-line errors, `--help`, and the `im2wav` command."""

import functools
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from im2wav import __version__
from im2wav.config import COMMANDS, register_schemas
from im2wav.config_inference import MODES
from im2wav.options import check_config, expected_type, help_text, is_text
from im2wav.system import Interrupted, configure_threads, stop_on_signals

SUMMARIES = {  # of the commands
    "embed": "convert videos, or images and audio files, to a pairs folder",
    "inspect": "print statistics of a pairs folder, and write a page with examples",
    "shard": "write a pairs folder as a few large files, for network disks and object stores",
    "tokenize": "encode whole clips once, so that training of priors can read the codes",
    "train": "train a model (vqvae, low_prior or up_prior) on a pairs folder",
    "sample": "generate audio for a photo, a video or a folder",
    "web": "start a web page that generates audio for photos and videos",
    "convert": "convert official Im2Wav checkpoints and CLIP pickles to the formats of im2wav",
    "evaluate": "evaluate generated audio or a model: metrics with intervals and baselines, and a page",
    "bench": "measure speed, memory and quality, and compare them with limits measured in the same run",
    "demo": "embed, train and evaluate end to end on the shipped pairs, with a page of the results",
    "licenses": "list the licences of im2wav, of the files that it ships and of the packages that it needs",
}


def root() -> Path:
    """The folder that holds `conf/` and `experiments/`: inside the installed package, or the top of the repository."""
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parents[1]


CONF = str(root() / "conf")


def register_resolvers() -> None:
    """Register the OmegaConf resolvers and the schemas that the configs use. Called before composition."""

    def codes_in(num_samples: int, strides: list[list[int]], level: str) -> int:
        groups = strides if level == "low" else strides[:1]
        return num_samples // prod(prod(group) for group in groups)

    def output_dir(runs: str) -> str:
        from hydra.core.hydra_config import HydraConfig

        return HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else f"{runs}/notebook"

    OmegaConf.register_new_resolver("output_dir", output_dir, replace=True)
    OmegaConf.register_new_resolver("project_root", lambda: str(root()), replace=True)
    OmegaConf.register_new_resolver("codes_in", codes_in, replace=True)
    register_schemas()


def run(task: Callable[[Any], Any], config: Any, failure: type[Exception] | None = None) -> Any:
    """Run a command's task; an error that the user can correct is one line on stderr and exit code 2.

    IM2WAV_TRACEBACK=1 shows the traceback. With `failure`, the error is raised as this exception instead; the worker
    of a Hydra launcher needs it, because the launcher writes the line.
    """
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    logging.captureWarnings(True)
    try:
        check_config(config, Path(CONF))
        with stop_on_signals():
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


def quoted(value: object) -> str:
    """Quote a value, so that Hydra reads it literally, whatever characters it contains."""
    # backslashes are doubled only where a quote follows them
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value)) + "'"


def schemas_of(command: str) -> list[type]:
    """The dataclass of a command; those of all modes of `evaluate`."""
    return [COMMANDS[command]] if command in COMMANDS else list(MODES.values())


def rewrite(command: str, arguments: list[str]) -> list[str]:
    """Translate arguments to what Hydra accepts. All exceptions to its grammar are here.

    - The value of an option that is a path or a text is taken literally; see `literal`.
    - `+experiment=NAME` becomes `experiment=NAME`: Hydra rejects the + if the defaults list holds the
      group, and requires it otherwise. Both spellings are common.
    - `model=DIR` and `data=DIR` of `evaluate` become `model_dir=DIR` and `data_dir=DIR`: the folder of configs has
      groups of these names, and Hydra would look for a config called DIR.
    - `adapter=FILE,FILE` of `sample` and `web` becomes the list `adapters`, for the same reason.
    - `evaluate` without `mode=` gets the mode of the first of these options that is given.
    """
    arguments = [word.removeprefix("+") if word.startswith("+experiment=") else word for word in arguments]
    split = [word.partition("=") for word in arguments]
    if command == "evaluate":
        names = {"model": "model_dir", "data": "data_dir"}
        split = [(names.get(key, key) if equals else key, equals, value) for key, equals, value in split]
    if command in ("sample", "web"):
        split = [("adapters", "=", _list(word[2])) if word[0] == "adapter" else word for word in split]
    is_multirun = bool({"-m", "--multirun"} & set(arguments))
    arguments = [key + equals + literal(command, key, value, is_multirun) for key, equals, value in split]
    given = {key for key, equals, _ in split if equals}
    modes = {"codec": "codec", "model_dir": "model", "generated": "folders", "data_dir": "model"}
    mode = next((mode for key, mode in modes.items() if key in given), None)
    return arguments if command != "evaluate" or "mode" in given or mode is None else [*arguments, f"mode={mode}"]


def _list(text: str) -> str:
    """Paths separated by commas, in brackets or not, as a list for Hydra."""
    paths = [path.strip() for path in text.removeprefix("[").removesuffix("]").split(",")]
    return f"[{','.join(quoted(os.path.expanduser(path)) for path in paths if path)}]"


def literal(command: str, key: str, value: str, is_multirun: bool = False) -> str:
    """Quote the value of an option that is a path or a text, so that Hydra does not interpret it; expand `~/`.

    Not quoted are: values that the user has quoted for Hydra; `null` for options that may be null; and in a multirun
    sweeps, unless a file has this name. Interpolations `${...}` still work.
    """
    if not value or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    if re.fullmatch(r"[A-Za-z/.][\w./-]*", value, re.ASCII) and not re.fullmatch(
        "true|false|null|nan|inf", value.lower()
    ):
        return value  # Hydra reads it literally; most values end here, before anything is imported
    if not is_text(schemas_of(command), key.lstrip("+"), value, Path(CONF)):
        return value
    if is_multirun and not Path(value).exists():
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        with suppress(HydraException):
            if OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override():
                return value
    return quoted(os.path.expanduser(value) if value == "~" or value.startswith("~/") else value)


def group_choices(group: str) -> list[str]:
    """The choices of a config group; none for those that other groups choose."""
    if group == "network":  # of a model and a family
        return []
    folders = [Path(CONF) / group, root() / "experiments" / group]
    files = [path.relative_to(folder) for folder in folders for path in folder.rglob("*.yaml")]
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] != "shared")


def compose_for_help(command: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The config of a command with these overrides, and the choice of each of its config groups."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(CONF, version_base="1.3"):
        try:
            cfg = compose(command, list(overrides), return_hydra_config=True)
        except HydraException:
            if command != "train":
                raise
            cfg = compose(command, ["model=vqvae", *overrides], return_hydra_config=True)  # model has no default
    chosen = {str(name): str(choice) for name, choice in cfg.hydra.runtime.choices.items()}
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, {name: choice for name, choice in chosen.items() if not name.startswith("hydra/") and "@" not in name}


def show_help(command: str, overrides: list[str]) -> None:
    """Print the help of a command; overrides choose the config groups that it shows."""
    cfg, chosen = compose_for_help(command, overrides)
    groups = {name: (choice, group_choices(name)) for name, choice in chosen.items()}
    sys.stdout.write(help_text(command, cfg, groups, Path(CONF)) + "\n")


def one_line(error: Exception, command: str) -> str:
    """Format an error of Hydra or OmegaConf as one line: what was given and what is allowed."""
    text = " ".join(str(error).partition("Config search path")[0].split())
    cause = " ".join(str(error.__cause__ or "").partition("\n")[0].split())
    if text.startswith("Error merging override "):
        given = text.removeprefix("Error merging override ")
        expected = expected_type(schemas_of(command), given.partition("=")[0].lstrip("+"))
        return f"{given}: must be {expected}" if expected else f"{given}: {cause}"
    if "To append to your config use +" in text:
        return f"{text.partition('use +')[2]}: no such option; --help lists all"
    return f"{error.override}: {text}" if getattr(error, "override", None) else text  # type: ignore[attr-defined]


def command(name: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Decorate a function of a config as the command `name`: `hydra.main` with our `--help` and one-line errors.

    An error of Hydra is one line on stderr and exit code 2. HYDRA_FULL_ERROR=1 shows the traceback.
    """
    import hydra

    register_resolvers()

    def decorate(task: Callable[[Any], Any]) -> Callable[[], None]:
        composed = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(task)

        @functools.wraps(task)
        @stop_on_signals()
        def entry() -> None:
            from hydra.errors import HydraException
            from omegaconf.errors import OmegaConfBaseException

            asked, given = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints several lines and exits by itself
            sys.argv = [given[0], *rewrite(name, given[1:])]
            try:
                if {"-h", "--help"} & set(sys.argv):
                    show_help(name, [word for word in sys.argv[1:] if not word.startswith("-")])
                else:
                    configure_threads()
                    composed()
            except (HydraException, OmegaConfBaseException, OSError) as error:
                if asked:
                    raise
                sys.stderr.write(f"error: {one_line(error, name)}\n")
                raise SystemExit(2) from error
            finally:
                sys.argv = given
                if asked is None:
                    del os.environ["HYDRA_FULL_ERROR"]

        return entry

    return decorate


def run_command(name: str, *arguments: str) -> None:
    """Log and run `python -m im2wav.NAME ...` in a new process.

    Raises:
        ValueError: the command failed.
    """
    logging.getLogger(__name__).info("\n$ python -m im2wav.%s %s", name, " ".join(arguments))
    with subprocess.Popen([sys.executable, "-m", f"im2wav.{name}", *arguments]) as process:
        try:
            process.wait()
        except Interrupted:
            process.terminate()
            raise
    if process.returncode:
        raise ValueError(f"`python -m im2wav.{name} {' '.join(arguments)}` failed; see above")


def compose_checked(name: str, options: Sequence[str]) -> DictConfig:
    """Compose and check the config of a command with these options.

    Raises:
        ValueError: an option that the command does not have or that is out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    is_ready = GlobalHydra.instance().is_initialized()  # by `hydra.main`, with the same folder
    try:
        with nullcontext() if is_ready else initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose(name, rewrite(name, list(options)))
    except HydraException as error:
        raise ValueError(f"{name}: {one_line(error, name)}") from error
    check_config(cfg, Path(CONF))
    return cfg


def instantiate(node: Any, **arguments: Any) -> Any:
    """Instantiate a config node; its containers are passed as plain lists and dicts."""
    import hydra

    return hydra.utils.instantiate(node, _convert_="all", **arguments)


def main() -> None:
    """`im2wav COMMAND ...` is `python -m im2wav.COMMAND ...`; `im2wav --version` prints the version."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        sys.stdout.write(f"im2wav {__version__}\n")
        return
    if name not in SUMMARIES:
        lines = "\n".join(f"  {known:8} {summary}" for known, summary in SUMMARIES.items())
        end = "`im2wav COMMAND --help` lists all options, `im2wav --version` prints the version."
        text = f"usage: im2wav COMMAND [OPTION=VALUE ...]\n\n{lines}\n\n{end}\n"
        if name in ("-h", "--help"):
            sys.stdout.write(text)
            return
        sys.exit(f"error: im2wav has no command {name!r}\n{text}")
    sys.argv = [f"im2wav {name}", *sys.argv[2:]]
    # as a module, so that Lightning can start further processes with the same command
    runpy.run_module(f"im2wav.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
