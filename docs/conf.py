"""How Sphinx builds this documentation: see ci/docs.sh."""

from __future__ import annotations

import sys
from pathlib import Path

from dask_gce import __version__

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "dask-gce"
author = "dask-gce developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "nothing_from_outside",
    "numpydoc",
    "settings_table",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_click",
    # Follows it.
    "command_pages",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

html_theme = "dask_sphinx_theme"
html_title = "dask-gce"
html_static_path = ["_static"]
html_css_files = ["fonts.css"]
templates_path = ["_templates"]

# Quotes and dashes are part of commands.
smartquotes = False

# Headings can be linked to as page.md#heading.
myst_heading_anchors = 3

# Signatures are typed already; repeating the types below them helps nobody.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_class_members_toctree = False
# Members that are inherited from Dask are documented by Dask.
numpydoc_show_inherited_class_members = False
numpydoc_show_class_members = False
