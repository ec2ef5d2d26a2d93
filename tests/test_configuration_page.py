"""The tables of settings are made from gce.yaml, and lead to where each setting is explained."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from dask_gce.sources import DEFAULTS, SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
sys.path.append(str(DOCS / "_ext"))

from settings_lines import DEFAULTS_FILE, PLACES_FILE, read_lines, render  # noqa: E402

PLACES = yaml.safe_load(PLACES_FILE.read_text("utf-8"))
TEXT = DEFAULTS_FILE.read_text("utf-8")
LINES = read_lines(TEXT, PLACES)


def test_every_setting_has_a_line():
    keys = [*DEFAULTS, *(key for section in SECTIONS.values() for key in section)]
    assert sorted(line.key.replace("-", "_") for line in LINES) == sorted(keys)


def test_a_line_has_the_default_that_counts():
    shown = {line.key.replace("-", "_"): yaml.safe_load(line.default) for line in LINES}
    assert shown == {**DEFAULTS, **SECTIONS["requires_cluster"]}


def test_a_line_tells_what_a_value_may_be():
    kinds = {line.key: line.kind for line in LINES}
    assert kinds["zone"] == "text or a list of texts"
    assert kinds["idle-timeout"] == kinds["keep-alive"] == "time"
    assert kinds["secrets"] == "metadata, secret-manager"
    assert kinds["spot"] == "true, false or fallback"
    assert not any(re.search(r"[{}]|\b(str|int|bool|float)\b", kind) for kind in kinds.values())


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.key)
def test_the_place_names_the_setting(line):
    page, _, anchor = line.place.partition("#")
    found = False
    level = 0
    for row in (DOCS / page).read_text("utf-8").splitlines():
        heading = re.fullmatch(r"(#+) (.*)", row)
        if heading:
            slug = re.sub(r"[^\w\- ]", "", heading[2].lower()).replace(" ", "-")
            if slug == anchor:
                level = len(heading[1])
            elif len(heading[1]) <= max(level, 1):
                level = 0
        words = re.escape(line.key).replace(r"\-", "[-_]")
        found = found or bool(level and re.search(rf"(?<![\w-]){words}(?![\w-])", row))
    assert found


def test_a_setting_that_nobody_explains_ends_the_build():
    with pytest.raises(ValueError, match=r"Missing: .'colour'"):
        read_lines(f"{TEXT}\n  colour: null   # What it looks like\n", PLACES)


def test_a_place_of_no_setting_ends_the_build():
    with pytest.raises(ValueError, match=r"unknown: .'colour'"):
        read_lines(TEXT, {**PLACES, "cost.md#a-limit": ["max-hourly-cost", "colour"]})


def test_the_tables_show_groups_in_their_order():
    titles = re.findall(r"^  # (.*)$", TEXT, re.MULTILINE)
    assert re.findall(r"rubric\} (.*)", render(LINES)) == titles
