"""Licences of im2wav, of the files that it ships, and of the installed packages that it needs.

Nothing is listed by hand. A shipped file is described by the notices of its folder or of a folder above: CREDITS.md and
NOTICE.md, which name licences, and README.md, the card of a model, whose metadata has a `license`. The licence of a
package is what its own metadata say.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from im2wav import __version__
from im2wav.report.page import as_text

ASSETS = Path(__file__).parent / "assets"
NOTICES, CARD = ("CREDITS.md", "NOTICE.md"), "README.md"
NOT_STATED = "not stated"
NAMES = re.compile(
    r"\b(CC0(?:-1\.0)?|CC[- ]BY(?:[- ](?:NC|SA|ND))*[- ]\d\.\d|BSD-\d-Clause|MIT|MPL-2\.0|ISC|Zlib|OFL-1\.1|PD"
    r"|Apache(?: License,?(?: Version)?)?[- ]2\.0|[AL]?GPL-\d\.\d(?:-only|-or-later|\+)?|LicenseRef-[\w.-]+)(?![\w-])"
)
NOTICE = "use for any purpose; keep the copyright notice and the text of the licence"
AUTHORS = "use for any purpose; name the authors and the licence, and say what you changed"
# beginning of a licence's name -> what it asks for
CONDITIONS = (
    ("public domain", "use for any purpose"),
    ("CC0", "use for any purpose"),
    ("MIT", NOTICE),
    ("BSD", NOTICE),
    ("Apache-2.0", f"{NOTICE}; say what you changed"),
    ("CC-BY-NC", "no commercial use"),
    ("CC-BY-SA", f"{AUTHORS}; changed versions only under the same licence"),
    ("CC-BY-ND", "no changed versions"),
    ("CC-BY", AUTHORS),
)
ADVICE = (
    "Conditions in short; only the texts of the licences count. Weights that are downloaded at first use, such as "
    "those of CLIP and the official ones, are not shipped and not listed."
)


def licence_names(text: str) -> list[str]:
    """The names of licences in a text, as SPDX identifiers, without repetition."""
    names = {re.sub(r"[ -]+", "-", re.sub(r" License,?(?: Version)?", "", name)) for name in NAMES.findall(text)}
    return sorted("public domain" if name == "PD" else name for name in names)


def conditions(name: str) -> str:
    """What a licence asks for, in a few words."""
    return next((text for start, text in CONDITIONS if name.startswith(start)), "read its text")


def find_notices(folder: Path) -> list[dict[str, Any]]:
    """The notices in a folder and below: what each is about, the licences that it names, and its path in the folder."""
    found = []
    for path in sorted(path for path in folder.rglob("*.md") if path.name in (*NOTICES, CARD)):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        if path.name == CARD:
            given = str(ModelCard(text).data.get("license", NOT_STATED))
            names = licence_names(given.upper()) or [given]
        else:
            names = licence_names(text) or [NOT_STATED]
        found.append(
            {
                "part": title[1] if title else path.parent.name,
                "licences": names,
                "notice": path.relative_to(folder).as_posix(),
            }
        )
    return found


def package_licence(package: Distribution) -> str:
    """What the metadata of an installed package say: its expression, its short text, or its classifiers."""
    about: Any = package.metadata
    short = (about.get("License") or "").strip()
    classifiers = [text for text in about.get_all("Classifier") or [] if text.startswith("License :: ")]
    if expression := about.get("License-Expression"):
        return expression
    if short and "\n" not in short:
        return short
    return " / ".join(text.rpartition(" :: ")[2] for text in classifiers) or NOT_STATED


def required_packages(name: str, extras: Iterable[str] = ()) -> list[Distribution]:
    """The installed packages that a package needs, with those that they need, in the order of their names.

    Raises:
        ValueError: the package is not installed, or has no such extra.
    """
    try:
        known = distribution(name).metadata.get_all("Provides-Extra") or []
    except PackageNotFoundError as error:
        raise ValueError(f"{name} is not installed, so that its packages are not known: pip install .") from error
    if unknown := sorted(set(extras) - set(known)):
        raise ValueError(f"extras={','.join(unknown)}: expected some of {', '.join(sorted(known))}")
    todo = [(name, frozenset(extras))]
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    while todo:
        key = todo.pop()
        try:
            package = distribution(key[0])
        except PackageNotFoundError:  # of another platform, or of an extra that is not installed
            continue
        found[key] = package
        for text in package.requires or ():
            needed = Requirement(text)
            markers = [needed.marker.evaluate({"extra": extra}) for extra in ("", *key[1])] if needed.marker else [True]
            wanted = (canonicalize_name(needed.name), frozenset(needed.extras))
            if any(markers) and wanted not in found:
                todo.append(wanted)
    packages = {package: found[package, more] for package, more in found if package != name}
    return [packages[key] for key in sorted(packages)]


def find_licences(extras: Sequence[str] = ()) -> dict[str, Any]:
    """The licences of the code, of the shipped files, and of the packages that im2wav needs.

    Args:
        extras: of im2wav, whose packages are listed too.

    Returns:
        `version`; `parts`, with `part`, `licences` and `notice`, a path below `notices`; `conditions` by licence; and
        `packages`, with `name`, `version` and `licence`.

    Raises:
        ValueError: im2wav is not installed, or an unknown extra.
    """
    packages = required_packages("im2wav", extras)
    code = {"part": "im2wav, the code", "licences": [package_licence(distribution("im2wav"))], "notice": "LICENSE"}
    parts = [code, *find_notices(ASSETS)]
    names = sorted({name for part in parts for name in part["licences"]})
    return {
        "version": __version__,
        "notices": str(ASSETS),
        "parts": parts,
        "conditions": {name: conditions(name) for name in names},
        "packages": [
            {"name": one.metadata["Name"], "version": one.version, "licence": package_licence(one)} for one in packages
        ],
    }


def as_table(found: dict[str, Any]) -> str:
    """The licences as text."""
    parts = [("part", "licences", "notice")]
    parts += [(one["part"], ", ".join(one["licences"]), one["notice"]) for one in found["parts"]]
    packages = [("package", "version", "licence in its metadata")]
    packages += [(one["name"], one["version"], one["licence"]) for one in found["packages"]]
    tables = [
        f"im2wav {found['version']}: files that it ships; notices in {found['notices']}\n\n{as_text(parts)}",
        as_text([("licence", "conditions"), *found["conditions"].items()]),
        ADVICE,
        f"Installed packages that im2wav needs\n\n{as_text(packages)}",
    ]
    return "\n\n".join(tables)
