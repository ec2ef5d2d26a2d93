"""Opening a browser at an address that only one user is to have.

A browser is a program that is told on its command line what to open, and every user of a computer
sees the command lines of all. So it is told a file that only its user can read, which leads on.
"""

from __future__ import annotations

import html
import webbrowser

from platformdirs import user_data_path

from dask_gce.private_files import write_private

__all__ = ["open_browser"]

_PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>Jupyter</title>
<p><a href="{address}">Jupyter</a></p>
"""


def open_browser(address: str, *, secret: bool) -> bool:
    """Open a browser.

    Parameters
    ----------
    address : str
        What to open.
    secret : bool
        Whether the address lets in whoever has it. The file by which it is opened then remains
        until the next one takes its place, since nobody says when a browser has read it.

    Returns
    -------
    bool
        Whether there is a browser.

    Raises
    ------
    CredentialsError
        If the file cannot be written.
    """
    if not secret:
        return webbrowser.open(address)
    path = user_data_path("dask-gce", appauthor=False) / "browser" / "jupyter.html"
    write_private(path, _PAGE.format(address=html.escape(address)).encode())
    return webbrowser.open(path.as_uri())
