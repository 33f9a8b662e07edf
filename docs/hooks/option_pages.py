"""Pages with all options of the commands, from the config dataclasses and the files of `conf/`.

Each command is composed with every choice of its config groups, so that options of all choices are listed.
"""

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from im2wav.cli import CONF, SUMMARIES, compose_for_help, group_choices, register_resolvers, schemas_of
from im2wav.options import (
    TYPE_NAMES,
    allowed,
    described_options,
    expected_type,
    explain,
    schema_fields,
    shown,
    target_hints,
)

FOLDER = "reference"  # of the pages
NOT_COMPOSED = {"experiment", "sweep", "local"}  # their files set options of the other groups
DECLARED = ""  # section of the options of the dataclass
PAIRED = ("model", "family")  # groups of `train` whose combinations choose the network
SIZED = "model=low_prior family=residual"  # what the sizes are composed with


@dataclass
class Described:
    """An option: what is the same for all choices of the groups, and its value for each (group, choice)."""

    path: str
    text: str
    kind: str
    limits: str
    unit: str
    section: str
    values: dict[tuple[str, str], Any] = field(default_factory=dict)


def variants(command: str) -> Iterator[tuple[str, str, list[str]]]:
    """Group, choice and overrides of each composition of a command; the first is the default, of the group ''."""
    needed = ["model=low_prior"] if command == "train" else []
    special = {*NOT_COMPOSED, "size"} | (set(PAIRED) if needed else set())
    yield "", "", needed
    if needed:
        for model, family in product(group_choices("model"), group_choices("family")):
            yield " ".join(PAIRED), f"model={model} family={family}", [f"model={model}", f"family={family}"]
        for choice in group_choices("size"):  # of the networks of one family
            yield "size", choice, [*SIZED.split(), f"size={choice}"]
    for group in sorted(set(compose_for_help(command, needed)[1]) - special):
        for choice in group_choices(group):
            yield group, choice, [*needed, f"{group}={choice}"]


def type_words(hint: Any) -> str:
    """An annotation in words; empty where it says nothing to somebody who sets the option."""
    origin = typing.get_origin(hint)
    if hint in TYPE_NAMES or hint in (Path, type(None)):
        return TYPE_NAMES.get(hint) or ("path" if hint is Path else "null")
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(type_words(part) for part in typing.get_args(hint)))
        return " or ".join(words) if all(words) else ""
    if origin is typing.Literal:
        return "one of " + ", ".join(shown(value) for value in typing.get_args(hint))
    name = getattr(origin or hint, "__name__", "")
    return {"Mapping": "mapping", "dict": "mapping", "Sequence": "list", "list": "list", "tuple": "list"}.get(name, "")


def type_of(cfg: Any, path: str, value: Any) -> str:
    """The type of an option of a config group: of the argument that takes it, else of its value."""
    above, _, name = path.rpartition(".")
    node = OmegaConf.select(cfg, above) if above else cfg
    words = type_words(target_hints(node.get("_target_")).get(name))
    if not words and isinstance(value, str) and value.startswith("${"):
        value = OmegaConf.select(cfg, path, throw_on_resolution_failure=False)
    kinds = {**TYPE_NAMES, list: "list", dict: "mapping"}
    return words or next((word for kind, word in kinds.items() if type(value) is kind), "")


def options_of(command: str) -> tuple[dict[str, Described], dict[str, list[str]], dict[str, str]]:
    """All options of a command by path, the choices that were composed of each group, and the default choices."""
    register_resolvers()
    found: dict[str, Described] = {}
    composed: dict[str, list[str]] = {}
    defaults: dict[str, str] = {}
    schemas = schemas_of(command)
    for group, choice, overrides in variants(command):
        try:
            cfg, chosen = compose_for_help(command, overrides)
        except MissingConfigException:  # a choice of another command, as data=shards of embed
            continue
        defaults = defaults or chosen
        composed.setdefault(group, []).append(choice)
        declared = dict(schema_fields(OmegaConf.get_type(cfg)))
        for path, value, text in explain(cfg, chosen, Path(CONF)):
            if path not in found:
                item = declared.get(path)
                limits = {} if item is None else item.metadata
                kind = expected_type(schemas, path) or type_of(cfg, path, value)
                section = DECLARED if item is not None else path.partition(".")[0]
                words = allowed(limits) if limits else ""
                found[path] = Described(
                    path, limits.get("help", text), kind, words, limits.get("unit", ""), section, values={}
                )
            found[path].values[group, choice] = value
    for item in fields(schemas[0]):
        if item.metadata.get("or_path"):  # the group itself takes a path
            text = described_options(Path(CONF))[item.name][0]
            found = {item.name: Described(item.name, text, "path", "", "", item.name, {("", ""): "???"}), **found}
    return found, composed, defaults


def label(group: str, choices: Iterable[str], every: Iterable[str]) -> str:
    """Choices of a group as on the command line; of combinations, the single choices that stand for several first."""
    left, every = set(choices), list(every)
    if " " not in group:
        words = [f"{group}={choice}" for choice in every if choice in left]
    else:
        words = []
        for word in dict.fromkeys(word for choice in every for word in choice.split()):
            having = {choice for choice in every if word in choice.split()}
            if having <= left:
                words, left = [*words, word], left - having
        words += [choice for choice in every if choice in left]
    return ", ".join(f"<code>{escape(word)}</code>" for word in words)


def conditions(option: Described, composed: Mapping[str, list[str]], defaults: Mapping[str, str]) -> str:
    """Which choices of which groups have the option; empty where all have it."""
    parts = []
    for group, choices in composed.items():
        having = [choice for choice in choices if (group, choice) in option.values]
        is_optional = defaults.get(group) == "None"  # the default is none of the choices
        if is_optional and ("", "") in option.values:
            continue
        if having and (is_optional or len(having) < len(choices)):
            parts.append(label(group, having, choices))
    return " and ".join(parts)


def default_words(option: Described, composed: Mapping[str, list[str]]) -> str:
    """The value of an option where nothing is given, by the choices of the groups on which it depends."""
    default = option.values.get(("", ""), next(iter(option.values.values())))
    parts = [f"default <code>{escape(shown(default))}</code>"]
    for group, choices in composed.items():
        others: dict[str, list[str]] = {}
        usual = option.values.get((" ".join(PAIRED), SIZED), default) if group == "size" else default
        for choice in choices:
            value = option.values.get((group, choice), usual)
            if value != usual:
                others.setdefault(shown(value), []).append(choice)
        parts += [
            f"<code>{escape(value)}</code> with {label(group, having, choices)}" for value, having in others.items()
        ]
    return "; ".join(parts).replace("default <code>... (required)</code>", "required")


def prose(text: str) -> str:
    """A description as HTML: code between backticks, everything else literally."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def definition(command: str, option: Described, composed: Mapping[str, list[str]]) -> str:
    """An option as an entry of a definition list."""
    notes = [option.kind, option.unit, option.limits]
    facts = [escape(note, quote=False) for note in notes if note] + [default_words(option, composed)]
    return (
        f'<dt id="{command}.{option.path}"><code>{escape(option.path)}</code></dt>\n'
        f'<dd>{prose(option.text)}<span class="option-facts">{" · ".join(facts)}</span></dd>'
    )


def summary_of(group: str, choice: str) -> str:
    """The comment at the beginning of the file of a choice."""
    path = Path(CONF) / group / f"{choice}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    comments: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments += [] if line.startswith("# @package") else [line.removeprefix("#").strip()]
    return " ".join(comments)


def group_table(defaults: Mapping[str, str], composed: Mapping[str, list[str]]) -> Iterator[str]:
    """A table of the config groups of a command: choices with their descriptions, and the default."""
    names = sorted({*defaults, *composed} - {"local", "", " ".join(PAIRED)})
    rows = [(name, choices) for name in names if (choices := composed.get(name) or group_choices(name))]
    if rows:
        yield "## Config groups\n\nA group is a set of options that are chosen together: `GROUP=CHOICE`.\n"
        yield "| group | default | choices |\n|---|---|---|"
    for name, choices in rows:
        described = [f"`{choice}`" + (f": {text}" if (text := summary_of(name, choice)) else "") for choice in choices]
        default = {"None": "none", "???": "required"}.get(defaults.get(name, "None"), f"`{defaults.get(name)}`")
        if name == "model":
            default = "required"
        yield f"| `{name}` | {default} | {'<br>'.join(described).replace('|', chr(92) + '|')} |"


def mode_of(schema: type) -> str:
    """The mode of a command with several dataclasses, before the description of one; else nothing."""
    return f"**mode={mode}.** " if (mode := getattr(schema, "mode", None)) else ""


def command_page(command: str) -> str:
    """The page of a command, in Markdown."""
    found, composed, defaults = options_of(command)
    schemas = schemas_of(command)
    lines = [f"# {command}: options", "", *(f"{mode_of(schema)}{inspect.getdoc(schema)}\n" for schema in schemas)]
    lines += [f"Generated from the configs of the command: `python -m im2wav.{command} --help` prints the same.", ""]
    lines += ["## Examples", ""]
    lines += [f"    python -m im2wav.{command} {words}".rstrip() for s in schemas for words in s.example_commands] + [
        ""
    ]
    lines += [*group_table(defaults, composed), ""]
    sections: dict[str, dict[str, list[Described]]] = {DECLARED: {}}
    for option in found.values():
        where = conditions(option, composed, defaults)
        sections.setdefault(option.section, {}).setdefault(where, []).append(option)
    for section, parts in sections.items():
        if parts:
            lines += [f"## {f'Options of {section}' if section else 'Options of the command'}", ""]
        for where, options in sorted(parts.items(), key=lambda part: part[0] != ""):
            lines += [f'<p class="option-condition">Only with {where}</p>', ""] if where else []
            lines += ['<dl class="options">', *(definition(command, o, composed) for o in options), "</dl>", ""]
    return "\n".join(lines)


def index_page() -> str:
    """The page that lists the commands, in Markdown."""
    lines = [
        "# Commands",
        "",
        "A command is `python -m im2wav.COMMAND`, or `im2wav COMMAND`. Options are `OPTION=VALUE`, in any order; "
        "`GROUP=CHOICE` chooses a file of a config group. Each command checks its options before it reads data.",
        "",
        "| command | does |",
        "|---|---|",
        *(f"| [{name}]({name}.md) | {summary} |" for name, summary in SUMMARIES.items()),
        "",
        "All commands accept these as well; they are options of Hydra:",
        "",
        "| option | does |",
        "|---|---|",
        "| `--help` | prints all options with their values and descriptions |",
        "| `--cfg job --resolve` | prints the configuration and ends |",
        "| `-m`, `--multirun` | runs the command for each combination of values, such as `seed=0,1,2` |",
        "",
    ]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Path in the site -> Markdown, of all pages of this module."""
    return {
        f"{FOLDER}/README.md": index_page(),
        **{f"{FOLDER}/{name}.md": command_page(name) for name in SUMMARIES},
    }
