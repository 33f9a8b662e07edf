"""sdist and wheel: version, content, and README's first command in a fresh environment; licences of what is shipped."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from conftest import ASSETS, REPO, command
from im2wav import __version__
from im2wav.notices import find_notices, licence_names, package_licence, required_packages

SHIPPED = REPO / "src" / "im2wav" / "assets"


def run(*words: object, folder: Path) -> str:
    words = [str(word) for word in words]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def git(*words: str, folder: Path) -> None:
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words, folder=folder)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_version_is_that_of_the_git_tag(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, tmp_path)

    def version() -> str:
        return run(sys.executable, "-m", "hatchling", "metadata", "version", folder=tmp_path).strip()

    assert version() == "0.1.0.dev0"  # an archive
    git("init", "-q", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("commit", "-qm", "first", folder=tmp_path)
    assert re.fullmatch(r"0\.1\.0\.dev1\+g\w+", version())  # no tag
    git("tag", "v0.3.0", folder=tmp_path)
    assert version() == "0.3.0"
    git("commit", "-qm", "second", "--allow-empty", folder=tmp_path)
    assert re.fullmatch(r"0\.3\.1\.dev1\+g\w+", version())


def test_the_version_is_printed():
    done = subprocess.run([sys.executable, "-m", "im2wav.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"im2wav {__version__}\n"


def readme_command() -> list[str]:
    """The first command of the README that is neither installation nor activation of an environment."""
    lines = re.findall(r"^    (\S.*)$", (REPO / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = next(
        shlex.split(line, comments=True) for line in lines if re.match(r"make demo|(\S+ -m )?im2wav[. ]\w", line)
    )
    if words[:2] == ["make", "demo"]:
        recipe = re.search(r"^demo:.*\n\t\$\(PYTHON\) -m im2wav\.(\w+)", (REPO / "Makefile").read_text(), re.MULTILINE)
        assert recipe is not None
        return [recipe[1], "demo.overrides=['trainer.max_steps=25']", "demo.family=residual"]
    return words[1:] if words[0] == "im2wav" else [words[2].removeprefix("im2wav."), *words[3:]]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path, Path]:
    """The sdist, the wheel that is built from it, and the wheel that is built from the repository."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--outdir", out, folder=REPO)
    run(*build, "--wheel", "--outdir", out / "direct", folder=REPO)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl")), next((out / "direct").glob("*.whl"))


@pytest.mark.slow
def test_sdist_and_wheel_are_complete(built):
    sdist, wheel, direct = built
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, folder=REPO)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(direct) as other:
        names = one.namelist()
        assert sorted(names) == sorted(other.namelist())
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    notices = [path.relative_to(REPO / "src").as_posix() for path in SHIPPED.rglob("*") if path.suffix in ("", ".md")]
    notices = [name for name in notices if (REPO / "src" / name).is_file()]
    assert len(notices) >= 3
    assert {"LICENSE", *(f"src/{name}" for name in notices)} <= source
    assert set(notices) <= set(names)
    licences = {name.partition(".dist-info/licenses/")[2] for name in names}
    assert {"LICENSE", "src/im2wav/assets/CREDITS.md", "src/im2wav/assets/yamnet/LICENSE"} <= licences
    tracked = {"docs/index.md", "CHANGELOG.md", "constraints.txt", "tests/conftest.py", "conf/train.yaml"}
    assert tracked <= source
    assert not [name for name in source if name.startswith((".git/", ".venv", "runs/", "dist/"))]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_the_first_command_of_the_readme_runs_in_a_fresh_environment(kind, built, tmp_path):
    """pip checks the requirements against the packages of this environment, which the new one can import."""
    environment, package = tmp_path / "venv", built[kind == "wheel"]
    run(sys.executable, "-m", "venv", environment, folder=tmp_path)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    (site / "others.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    run(python, "-m", "pip", "uninstall", "-qy", "setuptools", folder=tmp_path)  # older than torch needs
    options = ["--no-index", "--no-build-isolation", "-q"]
    run(python, "-m", "pip", "install", *options, f"{package}[demo]", folder=tmp_path)
    where = "import im2wav.cli as c; print(c.root()); print(c.__version__)"
    root, version = run(python, "-c", where, folder=tmp_path).split()
    assert root == str(site / "im2wav")
    assert version in package.name
    shutil.copy(ASSETS / "images" / "owl_03.jpg", tmp_path / "photo.jpg")
    words = readme_command() if kind == "wheel" else ["licenses"]
    run(environment / "bin" / "im2wav", *words, folder=tmp_path)
    if words[0] == "demo":
        assert (tmp_path / "runs" / "demo" / "index.html").stat().st_size > 100_000


def test_licenses_lists_what_is_shipped_and_needed(tmp_path, capsys):
    assert command("licenses") == 0
    text = capsys.readouterr().out
    assert "yamnet/NOTICE.md" in text
    assert re.search(r"^torch +\S", text, re.MULTILINE)
    assert command("licenses", "format=json", "extras=[eval]", f"out={tmp_path / 'l.json'}") == 0
    found = json.loads((tmp_path / "l.json").read_text())
    packages = {one["name"]: one for one in found["packages"]}
    assert "ai-edge-litert" in packages
    assert "ai-edge-litert" not in text
    assert packages["safetensors"]["licence"] == "Apache Software License"
    assert found["conditions"]["CC-BY-SA-4.0"].endswith("only under the same licence")


def test_an_unknown_extra_is_one_line(capsys):
    assert command("licenses", "extras=[dogs]") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: extras=dogs: expected some of ")


def test_every_shipped_file_has_a_notice_that_names_a_licence():
    found = find_notices(SHIPPED)
    assert all("not stated" not in one["licences"] for one in found)
    folders = {Path(one["notice"]).parts[0] for one in found}
    assert {path.name for path in SHIPPED.iterdir()} - folders == {"pairs"}  # which CREDITS.md lists file by file
    credits = (SHIPPED / "CREDITS.md").read_text(encoding="utf-8")
    assert all(f"| {path.stem} |" in credits for path in (SHIPPED / "pairs" / "images").iterdir())


def test_notices_are_found_by_their_names(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# A model\nThe code is MIT.\n")
    (tmp_path / "model" / "CREDITS.md").write_text("# Recordings\n\n## CC-BY-4.0: 12 recordings\n\n## PD: 1\n")
    (tmp_path / "NOTICE.md").write_text("# A file\nApache License, Version 2.0, from the MITRE.\n")
    (tmp_path / "other.md").write_text("GPL-3.0\n")
    assert find_notices(tmp_path) == [
        {"part": "A file", "licences": ["Apache-2.0"], "notice": "NOTICE.md"},
        {"part": "Recordings", "licences": ["CC-BY-4.0", "public domain"], "notice": "model/CREDITS.md"},
        {"part": "A model", "licences": ["CC-BY-SA-4.0"], "notice": "model/README.md"},
    ]
    assert licence_names("CC BY-NC 4.0 and LicenseRef-Mine") == ["CC-BY-NC-4.0", "LicenseRef-Mine"]


def test_packages_are_found_through_those_that_need_them():
    packages = {one.metadata["Name"].lower(): one for one in required_packages("lightning")}
    assert "typing_extensions" in packages  # of torch
    assert "lightning" not in packages
    assert package_licence(packages["torch"]) != "not stated"
