"""Tables as HTML, for notebooks: every text that goes in is data, whoever has written it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["render_link", "render_row", "render_table"]

#: Where notebooks would put numbers and what they begin with.
_LEFT = ' style="text-align: left;"'


def render_table(headings: Sequence[str], rows: Iterable[Sequence[str]], more: str = "") -> str:
    """Return a table as HTML.

    Parameters
    ----------
    headings : sequence of str
        What is above the columns.
    rows : iterable of sequence of str
        The cells.
    more : str
        What is said below the last row, of what is not in the table.

    Returns
    -------
    str
        HTML; texts are escaped.

    Examples
    --------
    >>> print(render_table(["name"], [["<b>"]], "and 2 more"))
    <table><tr><th style="text-align: left;">name</th></tr>
    <tr><td style="text-align: left;">&lt;b&gt;</td></tr>
    <tr><td style="text-align: left;" colspan="1"><em>and 2 more</em></td></tr></table>
    """
    lines = ["".join(f"<th{_LEFT}>{html.escape(each)}</th>" for each in headings)]
    lines += ["".join(f"<td{_LEFT}>{html.escape(each)}</td>" for each in row) for row in rows]
    if more:
        lines.append(f'<td{_LEFT} colspan="{len(headings)}"><em>{html.escape(more)}</em></td>')
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def render_row(name: str, content: str) -> str:
    """Return a row for the table that Dask shows of a cluster.

    Parameters
    ----------
    name : str
        What the row is about.
    content : str
        What it says, as HTML.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> print(render_row("Zone", "us-central1-a"))
    <tr><td style="text-align: left;" colspan="2"><strong>Zone:</strong> us-central1-a</td></tr>
    """
    return f'<tr><td{_LEFT} colspan="2"><strong>{html.escape(name)}:</strong> {content}</td></tr>'


def render_link(url: str) -> str:
    """Return a link that opens beside the notebook.

    Parameters
    ----------
    url : str
        Where it leads; only ``http`` and ``https`` become a link, the rest is text.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> render_link("javascript:alert(1)")
    'javascript:alert(1)'
    """
    text = html.escape(url)
    if not url.startswith(("http://", "https://")):
        return text
    return f'<a href="{text}" target="_blank">{text}</a>'
