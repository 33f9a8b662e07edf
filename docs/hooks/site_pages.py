"""Hooks of MkDocs: pages that are made when the site is built, and links to files outside `docs/`.

On a code host, links between documents are relative paths. The site has the documents that its navigation names as
`repository/PATH`, with PATH from the top of the repository, and this module points their links, and those to them, to
the pages.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import option_pages
import recordings
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[2]
OUTSIDE = "repository/"  # of the site, for files outside docs/
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
COMMANDS = "Commands"  # entry of the navigation that gets a page for each command
LISTEN = "listen.md"
# what a browser would fetch from another server when it shows a page
FOREIGN = re.compile(
    r"""<(?:script|img|audio|video|source|iframe)\b[^>]*\ssrc=["']?(?:https?:)?//[^\s"'>]+|"""
    r"""<link\b(?![^>]*canonical)[^>]*\shref=["']?(?:https?:)?//[^\s"'>]+"""
)


def page_of(path: str) -> str:
    """The page of a file, given as its path from the top of the repository."""
    page = path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path
    return page if posixpath.splitext(page)[1] or path.endswith("/") else f"{page}.md"  # LICENSE


def file_of(page: str) -> str:
    """The file of a page, as its path from the top of the repository."""
    path = page.removeprefix(OUTSIDE) if page.startswith(OUTSIDE) else f"docs/{page}"
    return path if (REPO / path).exists() else path.removesuffix(".md")


def point_to_pages(markdown: str, page: str, pages: set[str]) -> str:
    """Replace relative links of a document by links to the pages of the files, where they have one."""

    def replaced(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file_of(page)), link))
        if "://" in link or page_of(target) not in pages:
            return match[0]
        return f"{image}[{text}]({posixpath.relpath(page_of(target), posixpath.dirname(page) or '.')}{anchor or ''})"

    return LINK.sub(replaced, markdown)


def named_pages(nav: Any) -> list[str]:
    """All pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in named_pages(part)]


def fill_commands(nav: list[Any]) -> None:
    """Add the pages of the commands to the navigation."""
    for entry in nav:
        for title, part in entry.items() if isinstance(entry, dict) else ():
            if title == COMMANDS:
                part.extend({name: f"{option_pages.FOLDER}/{name}.md"} for name in option_pages.SUMMARIES)
            elif isinstance(part, list):
                fill_commands(part)


def inline_images(markdown: str) -> str:
    """Put SVG images into the page, so that their colours follow its light or dark scheme."""
    pattern = re.compile(r"!\[([^\]]*)\]\(([\w./-]+\.svg)\)")

    def content(match: re.Match[str]) -> str:
        svg = (REPO / "docs" / match[2]).read_text(encoding="utf-8")
        return f'<figure class="drawing">{svg[svg.index("<svg") :]}</figure>'

    return pattern.sub(content, markdown)


def unescape_tables(markdown: str) -> str:
    """Write | in code spans of tables without the backslash that code hosts need there, and Python-Markdown shows."""
    return re.sub(r"(?m)^\|.*\|$", lambda row: re.sub(r"`[^`]+`", lambda m: m[0].replace(r"\|", "|"), row[0]), markdown)


def on_config(config: Any) -> Any:
    """Add the pages of the commands to the navigation."""
    fill_commands(config.nav)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the commands, the documents outside docs/, and the recordings."""
    for page, text in option_pages.pages().items():
        files.append(File.generated(config, page, content=text))
    for page in named_pages(config.nav):
        if page.startswith(OUTSIDE):
            path = REPO / file_of(page)
            text = path.read_text(encoding="utf-8")
            if not path.suffix:
                text = f"# {path.name.capitalize()}\n\n```text\n{text}\n```\n"
            files.append(File.generated(config, page, content=text))
    for name, content in recordings.files().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to the pages, and fill in what is made when the site is built."""
    uri = page.file.src_uri
    markdown = point_to_pages(markdown, uri, set(files.src_uris))
    if uri == LISTEN:
        markdown = recordings.fill(markdown)
    return inline_images(unescape_tables(markdown))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Check that a page can be read without other servers.

    Raises:
        PluginError: it would fetch something from one.
    """
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri}: {found[0]}: put the file into docs/, so that the site works offline")
    return output
