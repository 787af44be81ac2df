"""Hooks of mkdocs: pages that lie outside of docs/, and links that lead there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"} | {
    "benchmarks/README.md": "benchmarks.md"
}
"""Pages of the repository by their place on the site."""

_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of docs/."""
    for path, place in OUTSIDE.items():
        text = (ROOT / path).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page with its links as the site has them.

    What the site does not have (source files, recipes) is named and not linked. A target that is
    nowhere in the repository is left as it is, and mkdocs says so.
    """
    place = page.file.src_uri
    source = next((path for path, there in OUTSIDE.items() if there == place), f"docs/{place}")
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    parts[::2] = [_LINK.sub(lambda m: _linked(m, source), part) for part in parts[::2]]
    return "".join(parts)


def _linked(found: re.Match[str], source: str) -> str:
    """A link of a page of the repository as one of the site."""
    image, text, to, anchor = found[1], found[2], found[3], found[4] or ""
    there = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
    if there in OUTSIDE:
        return f"[{text}]({OUTSIDE[there]}{anchor})"
    if there.startswith("docs/"):
        return f"{image}[{text}]({there.removeprefix('docs/')}{anchor})"
    return text if (ROOT / there).exists() else found[0]
