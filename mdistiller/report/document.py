"""A report as blocks of plain text, and how they become HTML, Markdown, LaTeX and plain text."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import jinja2
import pandas as pd

from mdistiller.errors import MdistillerError


@dataclass(frozen=True)
class Heading:
    kind: ClassVar = "heading"
    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.text.lower()).strip("-")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Listing:
    """Points, or with ``verbatim`` the lines of a log."""

    kind: ClassVar = "listing"
    points: tuple[str, ...]
    verbatim: bool = False


@dataclass(frozen=True)
class Table:
    """A table of texts: the index has words, a line break in a cell is a newline.

    Attributes:
        caption: what the numbers are and by which rule they were chosen.
        frame: with a name for every level of the index; a blank cell is an empty string.
    """

    kind: ClassVar = "table"
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A figure in the files ``<name>.png`` and ``<name>.svg``."""

    kind: ClassVar = "picture"
    name: str
    caption: str


Block = Heading | Text | Listing | Table | Picture


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]


def table(
    caption: str, head: Sequence[str], lines: Iterable[Sequence[str]], labels: int = 1
) -> Table:
    """A :class:`Table` of lines, whose first ``labels`` columns hold words."""
    frame = pd.DataFrame(list(lines), columns=list(head), dtype=object)
    words = [frame.iloc[:, i] for i in range(labels)]
    return Table(caption, frame.iloc[:, labels:].set_axis(pd.MultiIndex.from_arrays(words)))


# ---- renderings ------------------------------------------------------------------------------

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # At the start of a row these would be read as options of the line break before it.
        '"': r"\textquotedbl{}",
        "*": "{*}",
        "[": "{[}",
        "]": "{]}",
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\rightarrow$",
        "α": r"$\alpha$",
        "β": r"$\beta$",
        "Δ": r"$\Delta$",
        "…": r"\ldots{}",
        "’": "'",
    }
)


def as_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text).replace("\n", " ")


def as_latex(text: str) -> str:
    """Plain ASCII that LaTeX sets as the text; a character without a form there is U+XXXX."""
    lines = text.split("\n")
    if len(lines) > 1:
        inner = r" \\ ".join(map(as_latex, lines))
        return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{inner}\end{{tabular}}"
    done = "".join(c if c.isprintable() else " " for c in text).translate(_LATEX)
    return "".join(c if c.isascii() else f"U+{ord(c):04X}" for c in done)


def _flat(table: Table, escape: Any) -> tuple[pd.DataFrame, int]:
    """With the words as ordinary columns, and the number of these."""
    frame = table.frame.reset_index(allow_duplicates=True)
    return frame.map(escape).set_axis(map(escape, frame.columns), axis=1), table.frame.index.nlevels


def _markdown_table(table: Table) -> str:
    frame, labels = _flat(table, as_markdown)
    align = ["left"] * labels + ["right"] * (frame.shape[1] - labels)
    text = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
    # Without the padding, by which one wide cell would change every line.
    head, rule, *lines = (re.sub(r" {2,}", " ", line) for line in text.splitlines())
    return "\n".join((head, re.sub("-+", "--", rule), *lines))


def _latex_table(table: Table) -> str:
    frame, labels = _flat(table, as_latex)
    columns = "l" * labels + "r" * (frame.shape[1] - labels)
    return frame.to_latex(
        index=False,
        escape=False,
        column_format=columns,
        position="htbp",
        caption=as_latex(table.caption),
    )


def _html_table(table: Table) -> str:
    frame, labels = _flat(table, str)
    # Else line breaks would be shown as \n, and long texts cut.
    as_they_are: list[Callable[[object], str]] = [str] * frame.shape[1]
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(
            index=False, border=0, classes=f"labels{labels}", formatters=as_they_are
        )


def _text_table(table: Table) -> str:
    frame, labels = _flat(table, lambda text: text.replace("\n", " "))
    align = ["left"] * labels + ["right"] * (frame.shape[1] - labels)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align, tablefmt="simple")


_SERIES = re.compile(r'<g id="series-\d+-([^"]*)">')


def _inline_svg(data: bytes, picture: Picture) -> str:
    """The SVG file as an element of a page: as wide as its place, each line with its name.

    Its identifiers begin with the picture's name, or those of several pictures would clash.
    """
    text = data.decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = _SERIES.sub(
        lambda m: f'<g class="series" data-name="{html.escape(unquote(m[1]))}">', text
    )
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height|version|xmlns[:\w]*)="[^"]*"', "", head)
    label = html.escape(picture.caption)
    # Matplotlib's links within a picture are those of SVG 1.1.
    return f'{head} role="img" aria-label="{label}">{rest.replace("xlink:href", "href")}'


_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("mdistiller.report"),
    autoescape=lambda name: str(name).endswith(".html"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _fence(points: Sequence[str]) -> str:
    """A longer fence than any in the log, which could otherwise end the block."""
    return "`" * (1 + max(2, *(len(x) for p in points for x in re.findall("`+", p)), 0))


_PAGES.filters.update(
    md=as_markdown,
    md_table=_markdown_table,
    tex=as_latex,
    tex_table=_latex_table,
    text_table=_text_table,
    html_table=_html_table,
    inline_svg=_inline_svg,
    fence=_fence,
)


def render(document: Document, kind: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """The document as a file.

    Args:
        kind: ``html`` (one page that needs nothing else), ``md`` or ``tex`` (pictures are named,
            so the file belongs into their folder), or ``txt`` (for a terminal).
        pictures: for ``html`` the SVG file of every :class:`Picture` by its name.
    """
    template = _PAGES.get_template(f"page.{kind}")
    return template.render(title=document.title, blocks=document.blocks, pictures=pictures or {})


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Put files into a folder, which is made if missing; texts are UTF-8.

    Raises:
        MdistillerError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
    except OSError as error:
        raise MdistillerError(
            f"cannot write into {folder} ({error.strerror or error}); give another --out"
        ) from None
