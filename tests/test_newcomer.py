"""What the quickstart page says works when it is typed, in an environment with nothing in it.

Every block of the page up to the account is typed into a terminal, word for word and in the order
of the page: `docs/quickstart.md`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from newcomer import Terminal
from page_session import NOT_COPIED
from pages import ROOT, Block, read_page

PAGE = ROOT / "docs" / "quickstart.md"

#: Seconds that one block may take: pip downloads what is not in its cache.
PATIENCE = 500.0

#: What a shell asks with: that of a user and that of root.
SHELL = r"[$#] $"


def blocks() -> list[Block]:
    """Return the blocks of the page that need no account."""
    found = read_page(PAGE).blocks
    return found[: next(n for n, block in enumerate(found) if "needs" in block.markers)]


def surroundings(folder: Path) -> dict[str, str]:
    """Return the environment of somebody who has Python, and none of this package's settings."""
    programs = folder / "programs"
    programs.mkdir()
    # The Python that runs the tests, but not from its environment.
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (programs / "python3").symlink_to(python)
    (folder / "home").mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DASK_", "GOOGLE_", "CLOUDSDK_", "VIRTUAL_ENV", "PYTHON", "XDG_"))
    }
    return kept | {
        "HOME": str(folder / "home"),
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        # So that a second run downloads nothing.
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
        # Python does that at the first import otherwise, where it is needed.
        "PIP_NO_COMPILE": "1",
    }


def test_what_the_page_says_to_be_typed_here_is():
    here = f"tests/{Path(__file__).name}"
    marked = [block for block in read_page(PAGE).blocks if block.markers.get("run by") == here]
    assert marked == blocks()


def test_the_installation_page_installs_in_the_same_way():
    # docs/install.md, which leaves out what only the quickstart uses.
    page = read_page(ROOT / "docs" / "install.md")
    assert page.blocks[0].text == blocks()[0].text.replace('".[demo]"', ".")


@pytest.mark.timeout(1500)
def test_the_quickstart_works_when_it_is_typed(tmp_path):
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python cannot make virtual environments: it has no ensurepip")
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)
    with Terminal(checkout, surroundings(tmp_path), PATIENCE) as terminal:
        printed = ""
        python = inside = False
        for block in blocks():
            if block.language == "bash":
                if python:
                    terminal.enter("exit()", SHELL)
                    python = False
                if block.text.strip().endswith("-- bash"):
                    terminal.enter(block.text.strip(), SHELL)
                    inside = True
                else:
                    printed = terminal.in_bash(block.text)
            elif block.language == "python":
                if not python:
                    terminal.enter("python", r">>> $")
                    python = True
                printed = terminal.in_python(block.text)
            else:
                assert block.text.strip() in printed
        assert inside
        assert not python
        terminal.enter("exit", SHELL)
        assert "exec: 0" in terminal.in_bash("echo exec: $?")
