"""What the documents cite exists: links, paths, tests, make targets, and commands with their options."""

import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import REPO
from im2wav.cli import CONF, register_resolvers, rewrite

PACKAGE, TESTS = REPO / "src" / "im2wav", REPO / "tests"
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md")), REPO / "experiments" / "README.md"]
FOLDERS = ("src/", "tests/", "docs/", "conf/", "experiments/", "experiment/", "notebooks/")
SHELL = re.compile(r"[|;&<>]")  # what ends a command
MANY = 4  # combinations of a multirun that are composed


class Document(NamedTuple):
    """A document, its code spans, and the lines of its code blocks with continued lines joined."""

    path: Path
    text: str
    spans: list[str]
    lines: list[str]


def read(path: Path) -> Document:
    text = path.read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", " ", text)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return Document(path, text, spans, [line.strip() for line in joined.splitlines() if line.startswith("    ")])


def commands(document: Document) -> list[tuple[str, list[str]]]:
    """The calls of `python -m im2wav.X`: X, and its arguments without comments."""
    found = []
    for line in [*document.lines, *document.spans]:
        match = re.search(r"python -m im2wav\.(\w+)(.*)", line)
        if match:
            choices = re.sub(r"(?<=\w)\|(?=\w)", ",", match[2])  # measure=machine|embed stands for either of them
            words = shlex.split(choices, comments=True)
            end = next((i for i, word in enumerate(words) if SHELL.fullmatch(word)), len(words))
            found.append((match[1], [word.rstrip("`") for word in words[:end]]))
    return found


def is_placeholder(argument: str) -> bool:
    """Whether the reader is to put something in its place: `...`, or a value in capitals that is not a path."""
    value = argument.partition("=")[2]
    return argument.startswith("...") or value == "..." or bool(re.fullmatch(r"[A-Z]+", value))


def combinations(arguments: list[str]) -> list[list[str]]:
    """Overrides of a command; of a multirun, those of its first runs: each choice occurs, not each combination."""
    words = [word for word in arguments if not word.startswith("-") and not is_placeholder(word)]
    words = [word for word in words if word != "job"]  # of `--cfg job`
    runs: list[list[str]] = [[] for _ in range(MANY)]
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        choices = [word]
        if override.is_sweep_override():
            choices = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        for i, run in enumerate(runs):
            run.append(choices[i % len(choices)])
    return [list(run) for run in dict.fromkeys(map(tuple, runs))]


COMMANDS = [
    pytest.param(verb, arguments, id=f"{path.relative_to(REPO)}: {verb} {' '.join(arguments)}"[:120])
    for path in DOCUMENTS
    for verb, arguments in commands(read(path))
    if not verb.isupper()  # VERB stands for any of them
]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("verb", "arguments"), COMMANDS)
def test_a_cited_command_composes(verb, arguments):
    if not (Path(CONF) / f"{verb}.yaml").is_file():
        assert not arguments  # a module without options
        return
    if "hydra/launcher=ray" in arguments:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        for overrides in combinations(rewrite(verb, arguments)):
            assert compose(verb, overrides, return_hydra_config=True)


@each_document
def test_links_and_cited_paths_exist(path):
    document = read(path)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.text) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]
    places = (REPO, path.parent, PACKAGE, TESTS)
    cited = [span for span in document.spans if re.fullmatch(r"[\w./*-]+", span)]
    cited = [span for span in cited if span.startswith(FOLDERS) or re.fullmatch(r"[\w/]+\.py", span)]
    assert not [span for span in cited if not any(list(place.glob(span)) for place in places)]


@each_document
def test_cited_tests_exist(path):
    sources = {file.name: file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py")}
    for file, name in re.findall(r"\b(test_\w+\.py)(?:::(test_\w+))?", path.read_text(encoding="utf-8")):
        assert file in sources, f"{path.name} cites {file}"
        assert not name or f"def {name}(" in sources[file], f"{path.name} cites {file}::{name}"


@each_document
def test_cited_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z][\w-]*):", (REPO / "Makefile").read_text(), re.MULTILINE))
    document = read(path)
    cited = {match for line in [*document.lines, *document.spans] for match in re.findall(r"^make ([a-z][\w-]*)", line)}
    assert cited <= targets


def test_the_file_tree_of_the_readme_exists():
    tree = re.search(r"\n    src/im2wav/\n(.*?)\n\n", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    names = []
    for line in tree[1].splitlines():
        place = PACKAGE if line.startswith("      ") else REPO
        files = list(takewhile(re.compile(r"[\w/]+(\.py|/)").fullmatch, line.split()))
        assert files, f"no file in {line!r}"
        names += [place / name for name in files]
    assert len(names) > 20
    assert not [name for name in names if not name.exists()]


def test_the_checks_find_what_is_wrong():
    assert combinations(["a=1,2", "b=x", "seed=S", "-m", "--cfg", "job"]) == [["a=1", "b=x"], ["a=2", "b=x"]]
    wrong = Document(
        Path("x.md"), "", ["python -m im2wav.train model=none", "no"], ["python -m im2wav.nothing a=1 # b=2"]
    )
    assert commands(wrong) == [("nothing", ["a=1"]), ("train", ["model=none"])]
