"""``settings-table``: the tables of all settings, made when the documentation is built.

What is in them is a matter of `settings_lines`. A setting that is explained nowhere ends the build.
"""

from __future__ import annotations

import yaml
from docutils import nodes
from settings_lines import DEFAULTS_FILE, PLACES_FILE, read_lines, render
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class SettingsTable(SphinxDirective):
    """Put the tables where the directive stands."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Return the tables.

        Returns
        -------
        list of docutils.nodes.Node
            Titles and tables.
        """
        for file in (DEFAULTS_FILE, PLACES_FILE):
            self.env.note_dependency(str(file))
        places = yaml.safe_load(PLACES_FILE.read_text(encoding="utf-8"))
        text = render(read_lines(DEFAULTS_FILE.read_text(encoding="utf-8"), places))
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known to Sphinx.

    Parameters
    ----------
    app : Sphinx
        Sphinx.

    Returns
    -------
    dict
        That it can read and write in parallel.
    """
    app.add_directive("settings-table", SettingsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
