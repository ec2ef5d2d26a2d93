"""The page about plans names what a plan has, and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dask_gce.declaration.cluster_plan import ClusterPlan
from dask_gce.declaration.parts import (
    PlannedAddress,
    PlannedMachine,
    PlannedQuota,
    PlannedRequest,
    PlannedRule,
)

PAGE = (Path(__file__).parents[1] / "docs" / "plan.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE, re.MULTILINE))

PARTS = {
    "requests": PlannedRequest,
    "machines": PlannedMachine,
    "firewall_rules": PlannedRule,
    "addresses": PlannedAddress,
    "quota": PlannedQuota,
}


def public(kind: type) -> set[str]:
    """Return the names of what objects of a class have."""
    members = {name for name in vars(kind) if not name.startswith("_")}
    return members | {field.name for field in fields(kind) if not field.name.startswith("_")}


def test_the_table_has_what_a_plan_has():
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row)}
    # Whose plan it is needs no explanation; what it is turned into is said below the table.
    assert named == public(ClusterPlan) - {"name", "project", "to_json"}
    assert "`plan.to_json()`" in PAGE


@pytest.mark.parametrize("name", PARTS)
def test_what_its_parts_are_said_to_have_is_there(name):
    said = set(re.findall(r"`(\w+)`", ROWS[f"`{name}`"]))
    assert said <= public(PARTS[name])
