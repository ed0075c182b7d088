"""One HTML page that needs nothing else: no script, no network, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from .document import Block, Document, Heading, Listing, Picture, Table, Text

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif;
  color: #1c1e21; background: #fff; max-width: 1320px; margin: 0 auto; padding: 24px 32px 64px; }
h1 { font-size: 26px; margin: 8px 0 4px; line-height: 1.25; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid #d5d9de; }
h3 { font-size: 16px; margin: 28px 0 6px; }
p { max-width: 105ch; margin: 8px 0; }
ul.facts { color: #50565e; font-size: 13px; margin: 8px 0 24px; padding-left: 18px; }
ul.facts li { max-width: 130ch; overflow-wrap: anywhere; }
pre { background: #f4f5f7; padding: 10px 14px; font-size: 12.5px; overflow-x: auto; }
.wide { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
p.caption { font-weight: 600; font-size: 13.5px; max-width: 150ch; margin: 14px 0 4px; }
th { text-align: right; vertical-align: bottom; font-weight: 600; border-bottom: 2px solid #50565e;
  padding: 4px 12px; }
td { text-align: right; padding: 3px 12px; white-space: nowrap; vertical-align: top; }
th.word, td.word { text-align: left; padding-left: 2px; }
tbody tr { border-top: 1px solid #e6e8eb; }
tbody tr.paper, tbody tr.difference { border-top: none; color: #50565e; }
tbody tr.paper td, tbody tr.difference td { padding-top: 0; font-size: 12.5px; }
tr.difference td { padding-bottom: 6px; }
td small { color: #50565e; }
figure { margin: 18px 0 28px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #50565e; font-size: 13px; max-width: 120ch; margin-top: 6px; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 8pt; } td, th { padding: 2px 6px; } .wide { overflow: visible; }
  figure, table { break-inside: avoid; } }
"""


def to_html(document: Document, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        pictures: the SVG file of every :class:`~.document.Picture` by its name.
    """
    title = escape(document.title)
    body = "\n".join(_block(block, pictures) for block in document.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Listing(points, True):
            return f"<pre>{escape(chr(10).join(points))}</pre>"
        case Listing(points):
            return f'<ul class="facts">{"".join(f"<li>{escape(p)}</li>" for p in points)}</ul>'
        case Picture(name, caption):
            # As an image, not inline: the identifiers within several SVGs would clash.
            data = base64.b64encode(pictures[name]).decode()
            return (
                f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        case Table():
            return _table(block)
    raise TypeError(f"no rendering of {type(block).__name__}")


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_word(table, i)}>{_head(text)}</th>' for i, text in enumerate(table.head)
    )
    kinds = table.kinds or ("",) * len(table.rows)
    rows = "\n".join(
        f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>"
        + "".join(f"<td{_word(table, i)}>{_cell(text)}</td>" for i, text in enumerate(row))
        + "</tr>"
        for kind, row in zip(kinds, table.rows, strict=True)
    )
    # Not a <caption>: that would be as narrow as its table.
    caption = escape(table.caption)
    return (
        f'<p class="caption">{caption}</p>\n<div class="wide"><table aria-label="{caption}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _word(table: Table, index: int) -> str:
    return ' class="word"' if index < table.labels else ""


def _head(text: str) -> str:
    """A pair's arrow is the place to break the line."""
    return escape(text).replace(" \N{RIGHTWARDS ARROW} ", " \N{RIGHTWARDS ARROW}<br>")


def _cell(text: str) -> str:
    first, *rest = escape(text).split("\n")
    return first + "".join(f"<br><small>{line}</small>" for line in rest)
