"""Makes a site of the same Markdown that is read in the repository.

Pages of the repository's root come with it; the reference is one page a package; links to files
that are no pages (sources, tests) stay as words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Pages outside docs/, by their place in the repository.
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
# Packages of the reference, a page each.
REFERENCE = [
    "weighting",
    "distillers",
    "engine",
    "dataset",
    "models",
    "config",
    "experiments",
    "report",
]
# What Sphinx would take as a link to another object, and its short form.
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):\s*<code>(?:~\.?)?")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
# A drawing in two forms, which a browser chooses by the system's colours.
_PICTURE = re.compile(
    r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">'
    r'<img ([^>]*)src="([^"]+)"></picture>'
)
_SOURCE = re.compile(r'\b(src|srcset)="(?!https?:|data:)([^"]+)"')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for place, page in FROM_ROOT.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for package in REFERENCE:
        text = f"# mdistiller.{package}\n\n::: mdistiller.{package}\n"
        files.append(File.generated(config, f"reference/{package}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to where the pages are on the site."""
    uri = page.file.src_uri
    back = {page: place for place, page in FROM_ROOT.items()}
    # Where the page lies in the repository.
    folder = posixpath.dirname(back.get(uri, f"docs/{uri}"))

    def on_site(target: str) -> str | None:
        """The address from this page of what lies at ``target``; None: it is no page."""
        place = posixpath.normpath(posixpath.join(folder, target))
        there = FROM_ROOT.get(place) or place.removeprefix("docs/")
        if place not in FROM_ROOT and not place.startswith("docs/"):
            return _checked(place)
        file = files.get_file_from_path(there)
        if file is None or file.inclusion.is_excluded():
            return _checked(place)
        return posixpath.relpath(there, posixpath.dirname(uri) or ".")

    def link(match: re.Match[str]) -> str:
        mark, words, target, anchor = match.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        found = on_site(target)
        return words if found is None else f"{mark}[{words}]({found}{anchor or ''})"

    def source(match: re.Match[str]) -> str:
        return f'{match[1]}="{on_site(match[2]) or match[2]}"'

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [_SOURCE.sub(source, _LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Names in docstrings without the marks around them; drawings by the page's colours.

    The page has a button for its colours: a drawing follows it, not the system. The theme hides
    the image whose address ends in the other scheme's name.
    """
    html = _PICTURE.sub(
        r'<span class="drawing"><img \2src="\3#only-light"><img \2src="\1#only-dark"></span>', html
    )
    return _ROLE.sub("<code>", html)


def _checked(place: str) -> None:
    """A file of the repository that is no page."""
    if not (ROOT / place).exists():
        raise PluginError(f"a page names {place}, which does not exist")
