"""The documentation site: every option of every command, links to files outside docs/, and the recordings."""

import io
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product, zip_longest

import pytest
import soundfile
from mkdocs.exceptions import PluginError
from omegaconf import OmegaConf
from PIL import Image

from conftest import REPO, config
from im2wav.cli import SUMMARIES

sys.path.append(str(REPO / "docs" / "hooks"))
import option_pages
import recordings
import site_pages

from test_documents import DOCUMENTS, read

CONF = REPO / "conf"
UNUSABLE = {"embed": ("data=shards",)}  # choices of other commands
page_of = cache(option_pages.command_page)


def paths(node: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Path of each value in a config, and whether it is null; `_target_` and the like are left out."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from paths(value, (*above, str(key)))
        elif not str(key).startswith("_"):
            yield (*above, str(key)), value is None


def undescribed(command: str, *overrides: str) -> list[str]:
    """Options of a composed config that have no entry in the page of the command, and are not part of one that has."""
    described = set(re.findall(rf'<dt id="{command}\.([^"]+)">', page_of(command)))
    every = list(paths(OmegaConf.to_container(config(command, *overrides))))
    assert len(every) >= 3
    missing = []
    for path, is_null in every:
        name = ".".join(path)
        parts = {".".join(path[: length + 1]) for length in range(len(path))}
        turned_off = is_null and any(other.startswith(f"{name}.") for other in described)  # as callbacks.dashboard=null
        if not described & parts and not turned_off:
            missing.append(name)
    return missing


def groups(command: str) -> dict[str, list[str]]:
    """Config groups in the defaults list of a command, with all files of each."""
    text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    names = re.findall(r"^  - (\w+):", text, re.MULTILINE)
    return {name: sorted(path.stem for path in (CONF / name).glob("*.yaml")) for name in names if name != "network"}


@pytest.mark.parametrize("command", sorted(SUMMARIES))
def test_every_option_is_in_the_reference(command):
    """With the first choices of all groups together, then the second ones, and so on."""
    found = {name: choices for name, choices in groups(command).items() if name not in ("paths", "local")}
    models = list(product(*(found.pop(name, ()) for name in ("model", "family"))))
    if command == "embed":
        del found["source"]  # follows the data
    rows = list(zip_longest(*([f"{name}={choice}" for choice in choices] for name, choices in found.items())))
    for i in range(max(len(rows), len(models), 1)):
        row = [word for word in (rows[i % len(rows)] if rows else ()) if word and word not in UNUSABLE.get(command, ())]
        if models:
            row += [
                f"{name}={choice}" for name, choice in zip(("model", "family"), models[i % len(models)], strict=True)
            ]
        missing = undescribed(command, *row)
        assert not missing, (row, missing)


@pytest.mark.parametrize("name", ["starter/low_prior", "official/up", "demo/vqvae"])
def test_the_options_of_experiments_are_in_the_reference(name):
    assert not undescribed("train", f"experiment={name}")


def test_options_that_documents_cite_are_in_the_reference():
    pages = "".join(map(page_of, SUMMARIES))
    known = {path for command in SUMMARIES for path in re.findall(rf'<dt id="{command}\.([^"]+)">', pages)}
    groups = {path.partition(".")[0] for path in known}
    cited = {
        match[1]
        for path in DOCUMENTS
        for span in read(path).spans
        if (match := re.fullmatch(r"(\w+(?:\.\w+)+)(?:=\S*)?", span)) and match[1].partition(".")[0] in groups
    }
    assert len(cited) > 50
    parts = {path[: match.start()] for path in known for match in re.finditer(r"\.", path)}
    assert not cited - known - parts


def test_an_option_has_type_range_and_default():
    page = page_of("sample")
    entry = re.search(r'<dt id="sample.seconds">.*?</dd>', page, re.DOTALL)[0]
    for fact in ("float or null", "seconds", "&gt; 0", "default <code>null</code>", "length of the audio"):
        assert fact in entry
    assert "one of wav, flac, mp3" in page
    scale = re.search(r'<dt id="sample.sampler.temperature">.*?</dd>', page, re.DOTALL)[0]
    assert "sampling temperature" in scale  # of a config group: the comment in its file


def test_the_choices_that_have_an_option_are_named():
    page = page_of("bench")
    before, _, after = page.partition('<dt id="bench.measure.peer">')
    assert after
    assert before[before.rindex('class="option-condition"') :].startswith(
        'class="option-condition">Only with <code>measure=decode</code></p>'
    )


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("training.md", "../experiments/training_cpu.md#callbacks", "repository/experiments/training_cpu.md#callbacks"),
        ("repository/README.md", "docs/training.md#on-gpus", "../training.md#on-gpus"),
        ("repository/README.md", "LICENSE", "LICENSE.md"),
        ("repository/experiments/README.md", "decode_cpu.md", "decode_cpu.md"),
        ("api/data.md", "../prepare.md", "../prepare.md"),
        ("training.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("training.md", "../nowhere.md", "../nowhere.md"),  # left as it is: the strict build reports it
    ],
)
def test_links_point_to_pages(page, link, expected):
    pages = {
        "training.md",
        "prepare.md",
        "repository/README.md",
        "repository/LICENSE.md",
        "repository/experiments/training_cpu.md",
        "repository/experiments/decode_cpu.md",
    }
    assert site_pages.point_to_pages(f"[text]({link})", page, pages) == f"[text]({expected})"


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        "<img alt='' src=//example.org/a.png>",
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
    ],
)
def test_a_page_that_needs_another_server_is_an_error(html):
    class Page:
        file = type("File", (), {"src_uri": "x.md"})

    with pytest.raises(PluginError, match=r"x\.md"):
        site_pages.on_post_page(html, Page, None)
    local = '<link rel="canonical" href="https://example.org/"><a href="https://example.org">x</a><img src="a.png">'
    assert site_pages.on_post_page(local, Page, None) == local


def test_each_recording_has_player_spectrogram_and_authors():
    files, page = recordings.files(), recordings.fill(recordings.MARK)
    for row in recordings.rows():
        for kind in ("jpg", "flac", "png"):
            assert f'src="../listen/{row["id"]}.{kind}"' in page
            assert files[f"listen/{row['id']}.{kind}"]
        image = Image.open(io.BytesIO(files[f"listen/{row['id']}.png"]))
        assert image.height == 64  # mel bands
        assert image.width == pytest.approx(float(row["seconds"]) / 0.016, abs=3)
        card = page[page.index(f'id="{row["id"]}"') :].partition("</section>")[0]
        for column in ("image_licence", "sound_licence"):
            assert row[column] in card
        assert row["image_author"].split(" http")[0].split('"')[0] in card
        for title in ("codec-reconstruction", "generated-for-the-photo-seed-1"):  # by the starter model
            assert f'src="../listen/{row["id"]}-{title}.flac"' in card
            samples, rate = soundfile.read(io.BytesIO(files[f"listen/{row['id']}-{title}.flac"]))
            assert rate == 16000
            assert abs(samples).max() > 0
    assert len(files) == 7 * len(recordings.SHOWN)
