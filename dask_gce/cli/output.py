"""What commands print: results on standard output, everything else on standard error.

Owns JSON, tables and ages.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from dask_gce.progress.lines import tell

__all__ = [
    "note",
    "print_json",
    "print_table",
    "render_age",
    "render_end",
    "render_price",
    "render_size",
    "render_table",
]


def print_json(document: Any) -> None:
    """Print a JSON document.

    Parameters
    ----------
    document : object
        JSON data.
    """
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Tell the user something that is no result, if there is still somebody to tell.

    Parameters
    ----------
    text : str
        What to tell.
    """
    # Not by click, which writes to the terminal itself, and so into the region that shows progress.
    tell(text)


def render_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align columns.

    Parameters
    ----------
    headers : sequence of str
        Names of the columns.
    rows : iterable of sequence of str
        The cells; an empty one is shown as a hyphen, so that a column can be cut out.

    Returns
    -------
    str
        One line for the headers and one for each row, never cut off.

    Examples
    --------
    >>> print(render_table(["NAME", "STATE"], [["grid", "running"], ["night-run", ""]]))
    NAME       STATE
    grid       running
    night-run  -
    """
    lines = [list(headers), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns.

    Parameters
    ----------
    headers : sequence of str
        Names of the columns.
    rows : iterable of sequence of str
        The cells.
    """
    click.echo(render_table(headers, rows))


def render_age(age: timedelta) -> str:
    """Say how long something takes or took, in the two largest units.

    Parameters
    ----------
    age : datetime.timedelta
        The time.

    Returns
    -------
    str
        For example ``"2d3h"``.

    Examples
    --------
    >>> [render_age(timedelta(seconds=each)) for each in (7, 60, 3725, 183600)]
    ['7s', '1m', '1h2m', '2d3h']
    """
    seconds = max(0, int(age.total_seconds()))
    units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
    for (large, size), (small, part) in itertools.pairwise(units):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size}{large}" + (f"{rest}{small}" if rest else "")
    return f"{seconds}s"


def render_end(end: tuple[str, datetime] | None, now: datetime) -> str:
    """Say when a cluster ends, as seen from now.

    Parameters
    ----------
    end : tuple of str and datetime.datetime, or None
        The limit that it comes of, and when; None for never.
    now : datetime.datetime
        The time.

    Returns
    -------
    str
        For example ``"in 4m: idle_timeout"``, ``"in 2h"``, ``"5m ago"`` or ``"never"``.
    """
    if end is None:
        return "never"
    limit, moment = end
    why = "" if limit == "max_lifetime" else f": {limit}"
    if moment > now:
        return f"in {render_age(moment - now)}{why}"
    return f"{render_age(now - moment)} ago{why}"


def render_price(price: float | None) -> str:
    """Say what something costs.

    Parameters
    ----------
    price : float or None
        US dollars an hour; None if it is not known.

    Returns
    -------
    str
        For example ``"$0.13"`` or ``"unknown"``.

    Examples
    --------
    >>> render_price(0.134), render_price(0.0084), render_price(1234.5), render_price(None)
    ('$0.13', '$0.0084', '$1,234.50', 'unknown')
    """
    if price is None:
        return "unknown"
    return f"${price:,.2f}" if price >= 0.1 or price == 0 else f"${price:.4f}"


def render_size(size: int) -> str:
    """Say how large something is.

    Parameters
    ----------
    size : int
        Bytes.

    Returns
    -------
    str
        In GB of 1024 cubed bytes, as Compute Engine counts them, with one digit behind the point.

    Examples
    --------
    >>> render_size(3 * 2**30 // 2)
    '1.5 GB'
    """
    return f"{size / 2**30:.1f} GB"
