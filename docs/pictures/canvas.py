"""A canvas for pictures of boxes, arrows and words, written as SVG.

Owns the look: one font, four kinds of boxes, and a background of the picture's own, so that it can
be read on light pages and on dark ones. What is drawn is in `draw`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import Final

__all__ = ["KINDS", "Canvas"]

#: Fill and line of each kind of box.
KINDS: Final = {
    "you": ("#fdf1e2", "#c77f2e"),
    "google": ("#e8f0fe", "#4a76c4"),
    "machine": ("#e9f5ec", "#3f8f57"),
    "end": ("#fdecea", "#b5473a"),
    "plain": ("#f3f4f6", "#6b7280"),
}

_INK: Final = "#1f2933"
_LINE: Final = "#4b5563"
_ROW: Final = 17


class Canvas:
    """A picture that is being drawn.

    Parameters
    ----------
    width, height : int
        Its size in pixels of CSS; it scales.
    title : str
        What it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._title = title
        self._drawn: list[str] = []

    def box(self, x: int, y: int, width: int, height: int, words: str, kind: str = "plain") -> None:
        """Draw a box with words in its middle.

        Parameters
        ----------
        x, y : int
            Its upper left corner.
        width, height : int
            Its size.
        words : str
            One line or several; the first is bold if there are several.
        kind : str
            One of `KINDS`.
        """
        fill, line = KINDS[kind]
        self._drawn.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
            f'stroke="{line}" stroke-width="1.5"/>'
        )
        rows = words.split("\n")
        top = y + height / 2 - (len(rows) - 1) * _ROW / 2 + 5
        for number, row in enumerate(rows):
            bold = len(rows) > 1 and number == 0
            self.words(x + width // 2, round(top + number * _ROW), row, bold=bold, rim=fill)

    def words(
        self,
        x: int,
        y: int,
        text: str,
        *,
        anchor: str = "middle",
        bold: bool = False,
        rim: str = "#ffffff",
    ) -> None:
        """Write one line of words.

        Parameters
        ----------
        x, y : int
            Where its anchor is, on the line that the letters stand on.
        text : str
            The words.
        anchor : {"start", "middle", "end"}
            Which part of the line is at ``x``.
        bold : bool
            Whether they are bold.
        rim : str
            The colour behind them.
        """
        weight = ' font-weight="600"' if bold else ""
        # A rim of the background's colour, for lines that go behind words.
        self._drawn.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}"{weight} fill="{_INK}" stroke="{rim}" '
            f'stroke-width="4" paint-order="stroke">{escape(text)}</text>'
        )

    def line(self, *points: tuple[int, int], dashed: bool = False) -> None:
        """Draw a line without a head.

        Parameters
        ----------
        *points : tuple of int
            Where it goes along.
        dashed : bool
            Whether it is dashed.
        """
        self._path(points, dashed=dashed)

    def arrow(
        self,
        *points: tuple[int, int],
        words: str = "",
        dashed: bool = False,
        both: bool = False,
    ) -> None:
        """Draw an arrow, with words above the middle of its longest part.

        Parameters
        ----------
        *points : tuple of int
            Where it goes along; the last one is its head.
        words : str
            What it says.
        dashed : bool
            Whether it is dashed.
        both : bool
            Whether it has a head at either end.
        """
        self._path(points, dashed=dashed)
        self._head(points[-2], points[-1])
        if both:
            self._head(points[1], points[0])
        if words:
            pairs = itertools.pairwise(points)
            (ax, ay), (bx, by) = max(pairs, key=lambda pair: math.dist(*pair))
            self.words((ax + bx) // 2, (ay + by) // 2 - 6, words)

    def to_svg(self) -> str:
        """Return the picture.

        Returns
        -------
        str
            An SVG document that refers to nothing outside of it.
        """
        width, height = self._size
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                f'width="{width}" height="{height}" role="img" '
                'font-family="Helvetica, Arial, sans-serif" font-size="13">',
                f"<title>{escape(self._title)}</title>",
                f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
                *self._drawn,
                "</svg>\n",
            ]
        )

    def _path(self, points: Sequence[tuple[int, int]], *, dashed: bool) -> None:
        along = " ".join(f"{x},{y}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._drawn.append(
            f'<polyline points="{along}" fill="none" stroke="{_LINE}" stroke-width="1.5"{dashes}/>'
        )

    def _head(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        corners = [end]
        for turn in (0.4, -0.4):
            corners.append(
                (
                    round(end[0] - 10 * math.cos(angle + turn)),
                    round(end[1] - 10 * math.sin(angle + turn)),
                )
            )
        along = " ".join(f"{x},{y}" for x, y in corners)
        self._drawn.append(f'<polygon points="{along}" fill="{_LINE}"/>')
