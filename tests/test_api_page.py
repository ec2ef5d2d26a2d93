"""The API page has every public name of the package, of clusters and of the emulator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dask_gce
import dask_gce.emulator
from dask_gce import GCECluster

PAGE = (Path(__file__).parents[1] / "docs" / "api.rst").read_text("utf-8")

#: What is named in a directive, with the members that it shows.
SHOWN = {
    name: re.findall(r"\w+", members or "")
    for name, members in re.findall(
        r"^\.\. auto\w+:: (\S+)\n(?:   :(?!members)[^\n]*\n)*(?:   :members:([^\n]*)\n)?",
        PAGE,
        re.MULTILINE,
    )
}

#: Dask's own words, which its base classes document.
OF_DASK = {"scheduler_comm", "sync"}


@pytest.mark.parametrize("name", [name for name in dask_gce.__all__ if not name.startswith("_")])
def test_every_name_of_the_package_is_there(name):
    assert f"dask_gce.{name}" in SHOWN


@pytest.mark.parametrize("name", dask_gce.emulator.__all__)
def test_every_name_of_the_local_compute_engine_is_there(name):
    assert f"dask_gce.emulator.{name}" in SHOWN


def own_members() -> set[str]:
    """Return the public names that this package gives a cluster."""
    return {
        name
        for each in GCECluster.__mro__
        if each.__module__.startswith("dask_gce.")
        for name in vars(each)
        if not name.startswith("_")
    }


def test_every_member_of_a_cluster_is_there():
    assert own_members() - OF_DASK <= set(SHOWN["dask_gce.GCECluster"])


def test_what_a_cluster_is_said_to_have_is_there():
    missing = [name for name in SHOWN["dask_gce.GCECluster"] if not hasattr(GCECluster, name)]
    assert missing == []


def test_every_member_of_a_cluster_says_what_it_is():
    members = {name: getattr(GCECluster, name) for name in own_members() - OF_DASK}
    assert [name for name, member in members.items() if not member.__doc__] == []
