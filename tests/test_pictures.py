"""The pictures in the documentation are what their script draws, and what they say is so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "pictures"))

from draw import FOLDER, PHASES, PICTURES  # noqa: E402

PAGES = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_is_drawn(name):
    assert (FOLDER / name).read_text("utf-8") == PICTURES[name](), (
        "write it anew: python docs/pictures/draw.py"
    )


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_stays_within_its_edges(name):
    picture = ElementTree.fromstring(PICTURES[name]())  # noqa: S314  # our own
    width, height = (int(picture.attrib[side]) for side in ("width", "height"))
    assert picture.attrib["viewBox"] == f"0 0 {width} {height}"
    for box in picture.iter(f"{SVG}rect"):
        assert int(box.get("x", 0)) + int(box.attrib["width"]) <= width
        assert int(box.get("y", 0)) + int(box.attrib["height"]) <= height
    for words in picture.iter(f"{SVG}text"):
        assert 0 < int(words.attrib["x"]) < width
        assert 0 < int(words.attrib["y"]) < height


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_refers_to_nothing_outside(name):
    assert not re.search(r"href|url\(|@import|<script", PICTURES[name]())


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_a_picture_is_on_a_page_with_words_for_who_does_not_see_it(name):
    shown = re.search(rf"!\[([^\]]*)\]\(images/{re.escape(name)}\)", PAGES)
    assert shown is not None
    assert len(shown[1]) > 20


def test_the_boot_has_the_phases_that_machines_report():
    folder = ROOT / "dask_gce" / "guest"
    programs = "\n".join(path.read_text("utf-8") for path in folder.glob("*.*"))
    for phases in PHASES.values():
        for phase in phases:
            assert re.search(rf"""(phase |phase\(f?["']|["'])"?{phase}""", programs), phase
