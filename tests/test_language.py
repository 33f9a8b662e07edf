"""Prose and names use the standard terms of the field; names are unique."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO

# pattern -> replacement; matched as whole words, ignoring case
REPLACED = {
    r"pictures?": "image",
    r"(is|are|be) heard|to hear|hears|hearing": "generated audio; generate, listen",
    r"withheld|withholds?": "condition dropout, unconditional",
    r"(passed|passes|passing) over": "skipped",
    r"mind:": "warning:",
    r"by heart": "overfit, memorise",
    r"taken? over from": "import from",
    r"anew": "again",
    r"in (any |other )?company|neighbours?": "the rest of the batch; adjacent",
    r"refus(ed?|es|ing)": "reject, raise",
    r"(go|goes|going|gone|went) on (from|with|where)": "resume; audio continuation",
    r"mend(s|ed|ing)?": "inpainting; correct",
    r"without a number": "non-finite",
    r"told to stop": "interrupted by a signal",
    r"in small|a bit of everything": "small-scale, end to end",
    r"dear|thriftier": "expensive, inexpensive",
    r"ceiling|floors?(?![=.:])": "codec reconstruction (upper bound), real-real baseline",
    r"(is|are|was|were) told": "conditioned on",
    r"the whole way": "end to end",
    r"that there (is|are) (not|none|no)": "there is no ...",
    r"so many": "the number of ...",
    r"such as there (is|are)": "if available",
    r"what no (picture|image)": "null (unconditional) embedding",
    r"optimiser": "optimizer (spelled as in PyTorch)",
}
# a function call or an attribute (`x.floor()`) is code, not prose
WORDS = re.compile("|".join(rf"(?<![\w.`])(?:{pattern})(?![\w(])" for pattern in REPLACED), re.IGNORECASE)
PACKAGE = REPO / "src" / "im2wav"
ROOTS = [REPO / name for name in ("src", "conf", "docs", "experiments")]
FILES = [
    REPO / "README.md",
    *sorted(
        path
        for root in ROOTS
        for path in root.rglob("*")
        if path.suffix in (".py", ".yaml", ".md", ".html") and "assets" not in path.parts
    ),
]
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"inspect", "tokenize"}  # named like the command line; never imported as top-level modules
ENTRY_POINTS = {"main"}  # every command has one


def replacement(text: str) -> str:
    return next(new for old, new in REPLACED.items() if re.fullmatch(old, text, re.IGNORECASE))


def violations(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for match in WORDS.finditer(line):
            yield f"{path.relative_to(REPO)}:{number}: {match[0]!r}: write {replacement(match[0])!r}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_prose_uses_the_terms_of_the_field(path):
    found = list(violations(path))
    assert not found, "\n".join(found)


def test_the_guard_finds_every_replaced_word(tmp_path):
    samples = [
        "a picture",
        "is heard",
        "condition was withheld",
        "made anew",
        "the optimiser",
        "told to stop",
        "so many",
    ]
    assert all(WORDS.search(sample) for sample in samples)
    assert not WORDS.search("x.floor() and math.floor(x), `neighbours`")


def public_definitions() -> Iterator[tuple[Path, ast.FunctionDef | ast.ClassDef]]:
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield path, node


def duplicates(pairs: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in pairs:
        places[name].append(str(path.relative_to(PACKAGE)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_module_name_occurs_twice():
    found = duplicates((path.stem, path) for path in MODULES if path.name != "__init__.py")
    assert not found.keys(), found


def test_no_module_is_named_like_one_of_the_standard_library():
    names = {path.stem for path in MODULES}
    assert not names & sys.stdlib_module_names - COMMANDS


def test_no_public_name_occurs_twice():
    found = duplicates((node.name, path) for path, node in public_definitions())
    assert not found.keys() - ENTRY_POINTS, found


def test_public_functions_have_type_hints_and_docstrings():
    found = []
    for path, node in public_definitions():
        missing = [] if ast.get_docstring(node) else ["docstring"]
        is_kernel = isinstance(node, ast.FunctionDef) and any("triton" in ast.unparse(d) for d in node.decorator_list)
        if isinstance(node, ast.FunctionDef) and not is_kernel:  # Triton gives kernel arguments their types
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            missing += [f"type of {argument.arg}" for argument in arguments if argument.annotation is None]
            missing += [] if node.returns is not None else ["return type"]
        if missing:
            found.append(f"{path.relative_to(PACKAGE)}: {node.name}: {', '.join(missing)}")
    assert not found, "\n".join(found)
