"""What the documentation shows works when it is typed."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest
import sklearn

# Its import sets variables of the environment, which no test is to do.
_ = sklearn

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "images").glob("*.md")])


def examples() -> list[tuple[str, str]]:
    """Return every Python block of every page, with the page and line where it starts."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start()) + 2
            found.append((f"{page.relative_to(ROOT)}:{line}", block[1]))
    return found


EXAMPLES = dict(examples())
# The others need Google, or are parts of a whole.
COMPLETE = [place for place, code in EXAMPLES.items() if "with ComputeEmulator()" in code]


@pytest.mark.parametrize("place", EXAMPLES)
def test_example_is_python(place):
    compile(EXAMPLES[place], place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("place", COMPLETE)
def test_example_runs(place, capsys):
    exec(compile(EXAMPLES[place], place, "exec"), {})  # noqa: S102  # our own documentation
    if ".result()" in EXAMPLES[place]:
        assert "45" in capsys.readouterr().out.splitlines()


def test_examples_are_found():
    assert {place.partition(":")[0] for place in COMPLETE} == {
        "README.md",
        "docs/decorator.md",
        "docs/emulator.md",
        "docs/quickstart.md",
        "docs/recipes.md",
        "docs/scaling.md",
        "docs/single-node.md",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_architectures_table_is_the_contract_that_is_checked():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    contract = config["importlinter:contract:floors"]["layers"].split("\n")
    layers = [set(re.split(r"\s*\|\s*", line)) for line in contract if line]
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("\n## Floors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .* \|$", table, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == layers


def test_the_architecture_names_every_module_of_reach():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    section = page.partition("\n## The way to the scheduler\n")[2].partition("\n## ")[0]
    modules = {path.stem for path in (ROOT / "dask_gce" / "reach").glob("[!_]*.py")}
    assert modules <= set(re.findall(r"`(\w+)`", section))
