"""Colours, markers and line styles of all pictures: they stay apart without colour vision.

In grey print the colours of neighbouring lines may look alike, so that a marker or a line style
always goes with them.
"""

from __future__ import annotations

# Ten colours that remain distinct with colour-vision deficiencies (Petroff, arXiv:2107.02270).
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
# One a colour, for lines and points of few groups.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
# Its lightness grows evenly, so it needs no colour vision.
SCALE = "viridis"
