"""Pages that load nothing from elsewhere, so that nobody learns who reads them.

The theme's style sheet imports fonts from Google; those lines are taken out of what is built. Then
every page and style sheet is looked through: what would still come from outside ends the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

__all__ = ["setup"]

_IMPORT: Final = re.compile(r'@import url\("https?://[^"]*"\);\n?')
_LOADED: Final = {
    ".html": re.compile(
        r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc(?:set)?="(?:https?:)?//'
        # Not what a page only names: where it is, or who made it.
        r'|<link\b(?=[^>]*\brel="[^"]*(?:stylesheet|icon|preload|preconnect|prefetch))'
        r'[^>]*\bhref="(?:https?:)?//'
    ),
    ".css": re.compile(r"@import[^;]*(?:https?:)?//|url\([\"']?(?:https?:)?//"),
}
_OF_THE_TAG_MANAGER: Final = "googletagmanager"


def take_out(app: Sphinx, error: Exception | None) -> None:
    """Take out what loads fonts, and look whether anything is left.

    Parameters
    ----------
    app : Sphinx
        Sphinx.
    error : Exception or None
        Why the build has failed, if it has.

    Raises
    ------
    ExtensionError
        If a page or a style sheet loads something from outside.
    """
    if error is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix not in _LOADED:
            continue
        text = path.read_text(encoding="utf-8")
        clean = _IMPORT.sub("", text) if path.suffix == ".css" else text
        if clean != text:
            path.write_text(clean, encoding="utf-8")
        found = _LOADED[path.suffix].search(clean)
        if found or _OF_THE_TAG_MANAGER in clean:
            raise ExtensionError(
                f"{path.name} loads from outside: {found[0] if found else _OF_THE_TAG_MANAGER}"
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Look through what was built.

    Parameters
    ----------
    app : Sphinx
        Sphinx.

    Returns
    -------
    dict
        That it can read and write in parallel.
    """
    app.connect("build-finished", take_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
