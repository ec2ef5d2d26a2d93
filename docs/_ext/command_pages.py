"""What sphinx-click makes of the commands, fitted to these pages.

Several commands take every setting as an option: they are left out, for they have tables of their
own. And help is plain text: a name such as DASK_GCE__ZONE is no reference, and commands are shown
as they are typed.
"""

from __future__ import annotations

import re
from typing import Final

import click
from sphinx.application import Sphinx

from dask_gce.cli.setting_options import SettingOption

__all__ = ["setup"]

#: In the place of the options that are left out.
INSTEAD: Final = (
    "Beside these, settings are options: see ",
    ":ref:`all settings <all-settings>`, or ``--help``.",
)

#: Underscores that reStructuredText would take for the end of a reference.
_REFERENCE = re.compile(r"(?<=\w)_+(?=\W|$)")
_EXAMPLE = re.compile(r"^( *\| +)((?:dask gce|eval|terraform) .*)$")
_OPTION = re.compile(r"\.\. option:: (--[\w-]+)")


def leave_out_settings(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Take the settings out of a command's options.

    Parameters
    ----------
    app : Sphinx
        Sphinx.
    ctx : click.Context
        The command.
    lines : list of str
        Its options as reStructuredText, each with an empty line behind it; changed in place.
    """
    settings = {
        option
        for each in ctx.command.params
        if isinstance(each, SettingOption)
        for option in each.opts
    }
    if not settings:
        return
    kept = []
    leaving = False
    for line in lines:
        if found := _OPTION.match(line):
            leaving = found[1] in settings
        if not leaving:
            kept.append(line)
    lines[:] = [*kept, "", "".join(INSTEAD), ""]


def show_as_typed(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Show examples as code, and escape what would be a reference in a command's description.

    Parameters
    ----------
    app : Sphinx
        Sphinx.
    ctx : click.Context
        The command.
    lines : list of str
        Its description as reStructuredText; changed in place.
    """
    lines[:] = [
        _EXAMPLE.sub(r"\1``\2``", line)
        if _EXAMPLE.match(line)
        else _REFERENCE.sub(lambda found: r"\_" * len(found[0]), line)
        for line in lines
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Follow sphinx-click, which has to be loaded before.

    Parameters
    ----------
    app : Sphinx
        Sphinx.

    Returns
    -------
    dict
        That it can read and write in parallel.
    """
    app.connect("sphinx-click-process-options", leave_out_settings)
    app.connect("sphinx-click-process-description", show_as_typed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
