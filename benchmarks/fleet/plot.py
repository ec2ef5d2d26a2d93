"""The figures as bars: one small picture, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .figures import Figure
from .report import show

#: Name and colour of each contender, from top to bottom.
BARS = (
    ("rival", "GCPCluster", "#c0583f"),
    ("floor", "floor", "#8a8f98"),
    ("ours", "GCECluster", "#2f6f9f"),
)

WIDTH, LEFT, RIGHT = 760, 96, 150
TITLE, BAR, GAP = 22, 15, 14


def draw(figures: Sequence[Figure]) -> str:
    """Return an SVG with a group of bars for each figure that can be compared.

    Parameters
    ----------
    figures : sequence of Figure
        The figures.

    Returns
    -------
    str
        The SVG. Each group has a scale of its own that begins at nought.
    """
    parts: list[str] = []
    top = 8
    for figure in figures:
        if figure.rival is None:
            continue
        values = [(label, colour, getattr(figure, name)) for name, label, colour in BARS]
        values = [each for each in values if each[2] is not None]
        longest = max(value.number for _, _, value in values) or 1
        parts.append(f'<text x="0" y="{top + 13}" class="title">{escape(figure.title)}</text>')
        top += TITLE
        for label, colour, value in values:
            width = max(1.0, (WIDTH - LEFT - RIGHT) * value.number / longest)
            middle = top + BAR - 4
            parts += [
                f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{label}</text>',
                f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR - 3}" '
                f'fill="{colour}"/>',
                f'<text x="{LEFT + width + 6:.1f}" y="{middle}">'
                f"{escape(show(value, figure.unit))}</text>",
            ]
            top += BAR
        top += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{WIDTH}" height="{top}" role="img">'
    )
    style = (
        "<style>text{font:12px sans-serif;fill:#333}.title{font-weight:bold}</style>"
        f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>'
    )
    return "\n".join(
        [head, "<title>GCECluster, the floor and GCPCluster</title>", style, *parts, "</svg>", ""]
    )
