r"""The report in LaTeX: a complete document whose tables can be taken over one by one.

It needs the packages booktabs, graphicx and geometry, and \usepackage{booktabs} alone for a
table. The file itself is plain ASCII.
"""

from __future__ import annotations

import unicodedata

from .document import Block, Document, Heading, Listing, Picture, Table, Text

_HEAD = r"""\documentclass[10pt]{article}
\usepackage[a3paper,landscape,margin=15mm]{geometry}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
\begin{document}
"""
_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # At the start of a row these would be read as options of the line break before it.
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{GREEK SMALL LETTER BETA}": r"$\beta$",
    "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def to_latex(document: Document) -> str:
    """Pictures are included by name, so the file belongs into their folder."""
    blocks = (_block(block) for block in document.blocks)
    title = rf"\section*{{{escape(document.title)}}}"
    return "\n".join([_HEAD + title, *blocks, "\\end{document}", ""])


def escape(text: str) -> str:
    """Text that LaTeX sets as it is; a character that ASCII has no form for becomes U+XXXX."""
    return "".join(map(_character, text))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character if character.isprintable() else " "
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_SPECIAL.get(c, c) for c in plain) or f"U+{ord(character):04X}"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return rf"\{'sub' * min(level - 1, 2)}section*{{{escape(text)}}}"
        case Text(text):
            return escape(text) + "\n"
        case Listing(points, verbatim):
            size = r"\ttfamily\footnotesize" if verbatim else r"\footnotesize"
            items = "\n".join(rf"\item {escape(p)}" for p in points)
            return f"\\begin{{itemize}}{size}\n{items}\n\\end{{itemize}}" if points else ""
        case Picture(name, caption):
            return "\n".join(
                (
                    r"\begin{figure}[htbp]\centering",
                    rf"\includegraphics[width=0.9\linewidth,height=0.8\textheight,"
                    rf"keepaspectratio]{{{name}.png}}",
                    rf"\caption{{{escape(caption)}}}",
                    r"\end{figure}",
                )
            )
        case Table():
            return _table(block)
    raise TypeError(f"no rendering of {type(block).__name__}")


def _table(table: Table) -> str:
    columns = "l" * table.labels + "r" * (len(table.head) - table.labels)
    lines = [_line(table.head, "b"), r"\midrule", *(_line(row, "t") for row in table.rows)]
    return "\n".join(
        (
            r"\begin{table}[htbp]\centering\footnotesize",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        )
    )


def _line(cells: tuple[str, ...], place: str) -> str:
    return " & ".join(_cell(c, place) for c in cells) + r" \\"


def _cell(text: str, place: str) -> str:
    """Several lines as a tabular of their own; a pair's arrow is a place to break the line."""
    if place == "b":
        text = text.replace(" \N{RIGHTWARDS ARROW} ", "\n\N{RIGHTWARDS ARROW} ")
    lines = [escape(line) for line in text.split("\n")]
    if len(lines) == 1:
        return lines[0]
    inner = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[{place}]{{@{{}}r@{{}}}}{inner}\end{{tabular}}"
