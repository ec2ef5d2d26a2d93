"""The documentation's links, and what it says of the code. Its blocks are run by `test_pages`."""

from __future__ import annotations

import configparser
import re

import pytest
from pages import PAGES, ROOT


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
