"""The tables of all settings as text, made from gce.yaml.

Owns what a setting's line in the tables says: name and default as they stand in ``gce.yaml``, which
has a comment for each; the type as the docstring of `dask_gce.settings.Settings` tells it; and the
place in these pages that explains it, from ``settings.yaml`` there. Nothing of Sphinx is here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dask_gce
from dask_gce.settings import Settings
from dask_gce.sources import SECTIONS

DEFAULTS_FILE: Final = Path(dask_gce.__file__).with_name("gce.yaml")
PLACES_FILE: Final = Path(__file__).parents[1] / "settings.yaml"

_GROUP = re.compile(r"  # (?P<title>.*)")
_SETTING = re.compile(r"  (?P<deeper>  )?(?P<key>[a-z-]+): +(?P<default>\S.*?) +# (?P<comment>.*)")
_SECTION = re.compile(r"  (?P<key>[a-z-]+):")
_PARAMETER = re.compile(r"^(\w+) : (.*)\n +(.*)$", re.MULTILINE)
#: In which words a docstring's types are told to readers; the first that fits counts.
_WORDS: Final = (
    ("tuple of str", "text or a list of texts"),
    ("mapping of str to str", "mapping of texts"),
    ("bool or distributed.Security", "true, false or a `distributed.Security`"),
    ("str or int or float", "amount of memory"),
    ("str or tuple of str", "text or a list of texts"),
    ("mapping", "mapping"),
    ("bool", "true or false"),
    ("int", "whole number"),
    ("float", "number"),
    ("str", "text"),
)


@dataclass(frozen=True)
class Line:
    """One setting as the tables show it.

    Parameters
    ----------
    group : str
        The title above it in gce.yaml.
    key : str
        The setting, as it is written there.
    default : str
        Its default, as it is written there.
    kind : str
        What its value may be.
    comment : str
        Its comment.
    place : str
        The page and heading that explain it, as a link's target.
    """

    group: str
    key: str
    default: str
    kind: str
    comment: str
    place: str


def read_lines(text: str, places: Mapping[str, list[str]]) -> list[Line]:
    """Return a line for every setting.

    Parameters
    ----------
    text : str
        What is in gce.yaml.
    places : mapping of str to list of str
        The settings that are explained at each place.

    Returns
    -------
    list of Line
        In the order of gce.yaml.

    Raises
    ------
    ValueError
        If a setting is explained nowhere or twice, or a place explains what is no setting.
    """
    explained = [key for keys in places.values() for key in keys]
    lines = [*_read(text, {key: place for place, keys in places.items() for key in keys})]
    if sorted(explained) != sorted(line.key for line in lines):
        known = {line.key for line in lines}
        raise ValueError(
            f"{PLACES_FILE.name} has to name every setting once. Missing: "
            f"{sorted(known - {*explained})}; unknown: {sorted({*explained} - known)}; "
            f"twice: {sorted({key for key in explained if explained.count(key) > 1})}."
        )
    return lines


def _read(text: str, places: Mapping[str, str]) -> Iterator[Line]:
    group = section = ""
    kinds = _kinds()
    for line in text.splitlines():
        if found := _GROUP.fullmatch(line):
            group = found["title"]
        elif found := _SECTION.fullmatch(line):
            section = found["key"].replace("-", "_")
        elif found := _SETTING.fullmatch(line):
            key, default = found["key"], found["default"]
            name = key.replace("-", "_")
            kind = _kind_of(SECTIONS[section][name]) if found["deeper"] else kinds.get(name, "")
            yield Line(group, key, default, kind, found["comment"], places.get(key, ""))


def _kinds() -> dict[str, str]:
    """Return what each setting's value may be, from the docstring of `Settings`."""
    kinds = {}
    for name, typed, said in _PARAMETER.findall(inspect.cleandoc(Settings.__doc__ or "")):
        stated = typed.removesuffix(" or None")
        if "{" in stated:
            words = stated.replace("bool", "true, false").replace('"', "")
            kind = re.sub(r"[{}]", "", words)
        elif said.startswith("Seconds"):
            kind = "time"
        elif said.startswith("Size"):
            kind = "size of a disk"
        elif "in bytes" in said:
            kind = "amount of memory"
        else:
            kind = next(words for name_of, words in _WORDS if stated == name_of)
        kinds[name] = kind
    return kinds


def _kind_of(default: Any) -> str:
    """Tell what a default of the decorator may be: a switch, or how long."""
    return "true or false" if isinstance(default, bool) else "time"


def render(lines: list[Line]) -> str:
    """Return the tables as MyST Markdown.

    Parameters
    ----------
    lines : list of Line
        What is in them.

    Returns
    -------
    str
        A table for each group, below its title.
    """
    written = []
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            head = "| setting | default | what it may be | what it is |\n|---|---|---|---|"
            written.append(f"\n```{{rubric}} {group}\n```\n\n{head}")
        cells = (
            f"`{line.key}`",
            f"`{line.default}`",
            line.kind,
            f"{line.comment}. [](<{line.place}>)",
        )
        written.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(written) + "\n"
