"""The page about the command line has every command, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dask_gce.cli import gce

PAGE = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text("utf-8")


def commands() -> set[str]:
    """Return all commands, those of groups with the group's name."""
    context = click.Context(gce)
    found = set()
    for name in gce.list_commands(context):
        command = gce.get_command(context, name)
        if isinstance(command, click.Group):
            found |= {f"{name} {each}" for each in command.list_commands(context)}
        else:
            found.add(name)
    return found


def test_the_table_has_every_command():
    table = re.findall(r"^\| (`.*?) \| .* \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
    written = {
        " ".join(re.findall(r"[a-z-]+", re.sub(r"\b[A-Z]+\b|\W\w*\.\.\.", "", words)))
        for row in table
        for words in re.findall(r"`([^`]+)`", row)
    }
    assert commands() <= written


def test_commands_that_are_written_are_there():
    listed = re.findall(r"^\| `(\w+)[^`]*` \|", PAGE.partition("\n## ")[0], re.MULTILINE)
    assert listed
    assert set(listed) <= {name.split()[0] for name in commands()}
