"""Options of the commands: declaration, checks after composition, and `--help`."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, ValueNode

SCALARS = (str, int, float, bool)
TYPE_NAMES: dict[type, str] = {bool: "true or false", int: "int", float: "float", str: "str"}
INDENT: Any = {"initial_indent": "  ", "subsequent_indent": "      ", "break_on_hyphens": False}


def option(default: Any, text: str, **limits: Any) -> Any:
    """An option of a command, as a field of its dataclass.

    Args:
        default: value; MISSING where the user must give one.
        text: what the option does.
        limits: `unit`; checks: `minimum`, `above` (exclusive), `maximum`, `choices`, `words` (instead of a number).
    """
    metadata = {"help": text, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(or_path: bool = False) -> Any:
    """The options of a config group, filled by the group's file; or_path: a path may be given instead."""
    return field(default=None, metadata={"group": True, "or_path": or_path})


def device_option(more: str = "") -> Any:
    """The device of a command that runs in one process."""
    return option("auto", f"auto, cpu, cuda (cuda:1 is the second GPU){more}")


def seed_option(what: str) -> Any:
    """The seed of a command."""
    return option(0, f"seed of {what}", minimum=0)


def schema_fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and dataclass field of each option, of nested dataclasses as well; without those of config groups."""
    hints = typing.get_type_hints(schema)
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from schema_fields(hints[item.name], f"{prefix}{item.name}.")
        elif not item.metadata.get("group"):
            yield prefix + item.name, item


def expected_type(schemas: Iterable[Any], path: str) -> str:
    """The type of an option in words, as in `int or null`; empty for options of config groups."""
    for schema in schemas:
        item = dict(schema_fields(schema)).get(path)
        if item is not None:
            return str(item.type).replace("bool", "true or false").replace("None", "null").replace(" | ", " or ")
    return ""


def is_text(schemas: Iterable[Any], path: str, value: str, conf: Path) -> bool:
    """Whether an option is a path or a text, to which `value` is given: never a number, a list or a mapping.

    Args:
        schemas: the dataclasses of a command.
        path: the option.
        value: as on the command line; null is no text for options that may be null.
        conf: the folder of the configs, whose files describe the options of config groups.
    """
    declared = expected_type(schemas, path)
    if declared:
        return declared == "str" or (declared == "str or null" and value != "null")
    if any(item.name == path and item.metadata.get("or_path") for schema in schemas for item in fields(schema)):
        return not (value[0] == "{" and value[-1] == "}")
    _, default, target = described_options(conf).get(path, ("", 0, None))
    if value == "null" or isinstance(default, bool | int | float | list | dict):
        return False
    hint = target_hints(target).get(path.rpartition(".")[2])
    if hint is None and str(default).startswith("${") and "/" not in str(default):
        return False  # computed from other options
    types_ = scalar_types(hint) if hint is not None else {str}
    only_text = {hint, *typing.get_args(hint)} - {str, Path, type(None)} <= ({hint} if typing.get_args(hint) else set())
    return types_ == {str} and (only_text or value[0] not in "[{")


# checks


def allowed(limits: Mapping[str, Any]) -> str:
    """The limits of an option in words; empty where there are none."""
    signs = {"minimum": ">=", "above": ">", "maximum": "<="}
    words = [f"{sign} {limits[name]}" for name, sign in signs.items() if name in limits]
    if "choices" in limits:
        words.append("one of " + ", ".join(shown(choice) for choice in limits["choices"]))
    return " or ".join([" and ".join(words), *limits.get("words", ())])


def in_range(value: Any, limits: Mapping[str, Any]) -> bool:
    """Whether a value is within the limits of its option."""
    if "words" in limits and isinstance(value, str):
        return value in limits["words"]
    return (
        ("minimum" not in limits or value >= limits["minimum"])
        and ("above" not in limits or value > limits["above"])
        and ("maximum" not in limits or value <= limits["maximum"])
        and ("choices" not in limits or value in limits["choices"])
    )


def check_config(cfg: Any, conf: Path) -> None:
    """Check a composed config before anything is loaded: unknown keys, ranges, and types in the config groups.

    Args:
        cfg: the config of a command.
        conf: the folder of the configs.

    Raises:
        ValueError: naming the option, the value and what is allowed.
    """
    schema = OmegaConf.get_type(cfg) if isinstance(cfg, DictConfig) else None
    if not is_dataclass(schema):
        return
    unknown = sorted({str(key) for key in cfg} - {item.name for item in fields(schema)})  # added with a +
    if unknown:
        raise ValueError(f"{unknown[0]}={cfg[unknown[0]]}: no such option; --help lists all")
    for path, item in schema_fields(schema):
        value = OmegaConf.select(cfg, path, throw_on_resolution_failure=False)
        if OmegaConf.is_missing(cfg, path):
            raise ValueError(f"{path}=... is required: {item.metadata['help']}")
        if isinstance(value, SCALARS) and not in_range(value, item.metadata):
            null = " (or null)" if item.default is None else ""
            raise ValueError(f"{path}={shown(value)}: must be {allowed(item.metadata)}{null}")
    known = described_options(conf)
    for item in fields(schema):
        if item.metadata.get("group") and isinstance(cfg[item.name], DictConfig):
            _check_types(cfg[item.name], f"{item.name}.", known)


def _check_types(
    node: DictConfig, prefix: str, known: Mapping[str, tuple[str, Any, str | None]], is_argument: bool = False
) -> None:
    """Compare keys and values in a config group with the class that takes them, else with the files of the group."""
    target = node.get("_target_")
    hints, arguments = target_hints(target), target_arguments(target)
    for key in (str(key) for key in node if not str(key).startswith("_")):
        path, raw = f"{prefix}{key}", node._get_node(key)
        # a mapping that is an argument of a class may have more keys than its file names
        unnamed = not target and not is_argument and isinstance(raw, ValueNode) and path not in known
        if (arguments and key not in arguments) or unnamed:
            raise ValueError(f"{path}={raw}: no such option; --help lists all")
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value, default = node[key], known.get(path, ("", None))[1]
        if isinstance(value, DictConfig):
            _check_types(value, f"{path}.", known, is_argument or bool(target))
        elif isinstance(value, SCALARS):
            types_ = scalar_types(hints[key]) if key in hints else set()
            if not types_ and isinstance(value, str) and isinstance(default, int | float):
                types_ = {type(default)}
            if types_ and not any(_fits(value, kind) for kind in types_):
                allowed_types = " or ".join(sorted(TYPE_NAMES[kind] for kind in types_))
                raise ValueError(f"{path}={shown(value)}: must be {allowed_types}")


def target_hints(target: str | None) -> dict[str, Any]:
    """Annotations of the arguments of a function or class, those of its base classes included."""
    from hydra.utils import get_object

    try:
        found = get_object(target) if target else None
        parts = [vars(base).get("__init__") for base in reversed(found.__mro__)] if inspect.isclass(found) else [found]
        return {key: hint for part in parts if part for key, hint in typing.get_type_hints(part).items()}
    except Exception:  # a class that cannot be imported is reported by whoever builds it
        return {}


def target_arguments(target: str | None) -> set[str]:
    """Names of the arguments of a function or class; empty where they are not known or others are allowed."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters.values() if target else ()
    except Exception:  # a class that cannot be imported is reported by whoever builds it
        return set()
    return set() if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def scalar_types(hint: Any) -> set[type]:
    """The scalar types that an annotation allows; empty where others could be given as a scalar as well (a path)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [scalar_types(part) for part in typing.get_args(hint) if part is not type(None)]
        return set().union(*parts)
    if typing.get_origin(hint) is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    return {str} if hint is Path else {hint} if hint in SCALARS else set()


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


# help


@functools.cache
def described_options(conf: Path) -> dict[str, tuple[str, Any, str | None]]:
    """Comment, value and the class that takes it of each key in the files of `conf`, by its path in the config.

    Each is found twice: for the choice of a group alone, as GROUP=CHOICE:PATH, and by PATH, from the first file
    that has a comment.
    """
    found: dict[str, tuple[str, Any, str | None]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        parts, text = path.relative_to(conf).with_suffix("").parts, path.read_text(encoding="utf-8")
        if parts[0] in ("hydra", "local", "debug", "mode"):
            continue
        header = re.search(r"^# @package (\S+)", text, re.MULTILINE)
        package = header[1] if header else parts[0] if len(parts) > 1 else "_global_"
        prefix = "" if package == "_global_" else f"{package}."
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        for key, comment in read_comments(text).items():
            *above, name = key.split(".")
            node: Any = functools.reduce(operator.getitem, above, values)  # type: ignore[arg-type]
            described = (comment, node[name], node.get("_target_"))
            found[f"{parts[0]}={'/'.join(parts[1:])}:{prefix}{key}"] = described
            if not found.get(prefix + key, ("",))[0]:
                found[prefix + key] = described
    return found


def read_comments(text: str) -> dict[str, str]:
    """The comment beside each key of a YAML file; lines that begin with a comment below it, in its column, go on."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    column = -1
    for line in text.splitlines():
        start = line.find("# ")
        match = re.match(r"( *)([\w-]+):(?=\s|$)", line)
        if match:
            above = [one for one in above if one[0] < len(match[1])] + [(len(match[1]), match[2])]
            key = ".".join(name for _, name in above)
            found[key], column = line[start + 2 :].strip() if start > 0 else "", start
        elif line.strip().startswith("#") and start == column > 0:
            found[key] += " " + line[start + 2 :].strip()
    return {key: comment for key, comment in found.items() if not key.startswith(("defaults", "hydra"))}


def leaves(node: Any, known: Mapping[str, tuple[str, Any, str | None]], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value, interpolations unresolved, of each option; a mapping that its file writes in one line is one."""
    plain: Any = OmegaConf.to_container(node, resolve=False)
    for key, value in plain.items():
        path = f"{prefix}{key}"
        in_one_line = path in known and isinstance(value, dict) and not any(f"{path}.{name}" in known for name in value)
        if isinstance(value, dict) and value and not in_one_line:
            yield from leaves(OmegaConf.create(value), known, f"{path}.")
        elif not str(key).startswith("_"):
            yield path, value


def explain(cfg: Any, choices: Mapping[str, str], conf: Path) -> list[tuple[str, Any, str]]:
    """Path, value and description of each option of a composed config; an empty description where there is none."""
    known = described_options(conf)
    declared = dict(schema_fields(OmegaConf.get_type(cfg)))
    rows = []
    for path, value in leaves(cfg, known):
        if path in declared:
            limits = declared[path].metadata
            notes = [limits.get("unit", ""), allowed(limits)]
            text = limits["help"] + "".join(f" [{note}]" for note in notes if note)
        else:
            chosen = [f"{name}={choice}:{path}" for name, choice in choices.items()]
            text = next((known[key][0] for key in [*chosen, path] if key in known and known[key][0]), "")
        rows.append((path, value, text))
    return rows


def shown(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    if isinstance(value, str):
        return "... (required)" if value == "???" else value or "''"
    return json.dumps(value)


def help_text(command: str, cfg: Any, groups: Mapping[str, tuple[str, list[str]]], conf: Path) -> str:
    """Return what `--help` prints: description, config groups, options and examples.

    Args:
        command: name of the command.
        cfg: its composed config.
        groups: config group -> its choice in `cfg`, and all choices.
        conf: the folder of the configs.
    """
    schema: Any = OmegaConf.get_type(cfg)
    lines = textwrap.wrap(" ".join(inspect.cleandoc(schema.__doc__).split()), 100)
    lines += ["", f"usage: python -m im2wav.{command} [GROUP=CHOICE ...] [OPTION=VALUE ...]"]
    lines += ["", "Config groups:"] * bool(groups)
    for name, (choice, found) in sorted(groups.items()):
        if found:
            lines += textwrap.wrap(f"{name}={choice}: {', '.join(found)}".replace("=None", "=null"), 100, **INDENT)
    lines += ["", "Options and their values:"]
    for path, value, text in explain(cfg, {name: choice for name, (choice, _) in groups.items()}, conf):
        lines += [f"  {path}={shown(value)}", *textwrap.wrap(text, 94, **INDENT | {"initial_indent": " " * 6})]
    lines += ["", "Examples:", *(f"  python -m im2wav.{command} {words}".rstrip() for words in schema.example_commands)]
    return "\n".join(lines)
