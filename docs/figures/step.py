"""Draws step-light.svg and step-dark.svg: run python docs/figures/step.py.

One step of cross-batch weighting: two batches, three gradients, two weights.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 900, 356
FONT = 'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, Arial, sans-serif"'
# Colours that colour-blind readers tell apart (Okabe and Ito), lighter on a dark page.
PALETTES = {
    "light": {
        "text": "#1c1e21",
        "quiet": "#5b636d",
        "line": "#8b939c",
        "box": "#f3f5f7",
        "ce": "#0072B2",
        "kd": "#C24E00",
        "ref": "#00795A",
    },
    "dark": {
        "text": "#e8eaed",
        "quiet": "#a9b1ba",
        "line": "#7c858f",
        "box": "#22272e",
        "ce": "#6cb6f0",
        "kd": "#f09a5e",
        "ref": "#4fcfa8",
    },
}


class Drawing:
    """SVG elements in one palette."""

    def __init__(self, palette: dict[str, str]) -> None:
        self.palette, self.parts = palette, []
        for name in ("ce", "kd", "ref", "line"):
            self.parts.append(
                f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" '
                f'fill="{palette[name]}"/></marker>'
            )

    def text(self, x: float, y: float, words: str, colour="text", size=15, **style: str) -> None:
        """Words in the middle of ``x``; what stands behind an underscore is set lower."""
        first, *lower = words.split("_")
        inner = escape(first)
        for part in lower:
            index, _, rest = part.partition(" ")
            inner += f'<tspan font-size="{size * 0.72:.1f}" dy="4">{escape(index)}</tspan>'
            inner += f'<tspan dy="-4">{escape(" " + rest if rest else "")}</tspan>'
        more = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
        anchor = "" if "text_anchor" in style else ' text-anchor="middle"'
        fill = self.palette[colour]
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{anchor}{more}>{inner}</text>'
        )

    def box(self, x, y, width, height, title: str, below: str = "", colour="line") -> None:
        """A box with a title and a quieter line."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" '
            f'fill="{self.palette["box"]}" stroke="{self.palette[colour]}" stroke-width="1.5"/>'
        )
        middle, centre = x + width / 2, y + height / 2
        self.text(middle, centre - 3 if below else centre + 5, title, font_weight="600")
        if below:
            self.text(middle, centre + 16, below, "quiet", 12.5)

    def arrow(self, path: str, colour="line", dashed: bool = False) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{self.palette[colour]}" stroke-width="2"{dash} '
            f'marker-end="url(#{colour})"/>'
        )

    def svg(self) -> str:
        body = "\n".join(self.parts)
        words = "One training step: two batches, three gradients, two weights"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{words}" {FONT}>\n<title>{words}</title>\n{body}\n</svg>\n'
        )


def draw(palette: dict[str, str]) -> str:
    """The drawing, from the batches on the left to the update on the right."""
    d = Drawing(palette)
    headings = ((85, "two batches"), (262, "two networks"), (508, "three gradients"))
    for x, words in (*headings, (785, "two weights")):
        d.text(x, 22, words, "quiet", 13)
    d.box(20, 100, 130, 60, "batch 1", "trained on")
    d.box(20, 270, 130, 60, "batch 2", "only looked at", "ref")
    d.box(197, 44, 130, 56, "teacher", "frozen")
    d.box(197, 170, 130, 60, "student", "parameters θ")
    # Batch 1 through both networks.
    d.arrow("M150 120 C175 120 165 72 196 72")
    d.arrow("M150 140 C175 140 165 190 196 190")
    d.arrow("M150 300 C180 300 160 214 196 214", "ref")
    # Losses and their gradients.
    d.box(412, 44, 192, 62, "g_kd", "distillation loss, batch 1", "kd")
    d.box(412, 158, 192, 62, "g_ce", "cross-entropy, batch 1", "ce")
    d.box(412, 270, 192, 62, "G", "cross-entropy, batch 2", "ref")
    d.arrow("M327 72 L411 72", "kd")
    d.arrow("M327 184 C380 184 355 92 411 92", "kd")
    d.arrow("M327 196 C370 196 370 189 411 189", "ce")
    d.arrow("M327 214 C380 214 355 301 411 301", "ref")
    # Weights and the update.
    d.box(690, 104, 190, 70, "A and B", "from angles and lengths")
    d.arrow("M604 75 C655 75 630 124 689 124", "kd")
    d.arrow("M604 189 C655 189 630 140 689 140", "ce")
    d.arrow("M604 301 C665 301 620 158 689 158", "ref", dashed=True)
    d.box(690, 232, 190, 64, "A g_ce + B g_kd", "θ moves along this sum")
    d.arrow("M785 174 L785 231")
    d.text(785, 318, "G moves nothing: it tells", "quiet", 12.5)
    d.text(785, 335, "what would help unseen images", "quiet", 12.5)
    return d.svg()


def main() -> None:
    for name, palette in PALETTES.items():
        Path(__file__).with_name(f"step-{name}.svg").write_text(draw(palette), encoding="utf-8")


if __name__ == "__main__":
    main()
