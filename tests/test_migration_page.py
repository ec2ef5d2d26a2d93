"""The page for who comes from dask-cloudprovider maps what that takes to what there is here."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import dask.config
import pytest

from dask_gce import GCECluster
from dask_gce.errors import SettingsError
from dask_gce.settings import Settings
from dask_gce.sources import DEFAULTS

if THERE := importlib.util.find_spec("dask_cloudprovider") is not None:
    # Here, and not in a test: its import changes Dask's configuration.
    from dask_cloudprovider.gcp import GCPCluster

needs_it = pytest.mark.skipif(not THERE, reason="dask-cloudprovider is not installed")

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text("utf-8")


def rows(heading: str) -> dict[str, str]:
    """Return the first two columns of the table below a heading."""
    section = PAGE.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))


OWN = rows("What GCPCluster itself takes")
OF_MACHINES = rows("What it inherits from VMCluster")
OF_DASK = rows("What it inherits from Dask")
OF_CONFIGURATION = rows("What is in its configuration only")
EVERY = OWN | OF_MACHINES | OF_DASK | OF_CONFIGURATION
HERE = {*DEFAULTS, *inspect.signature(GCECluster).parameters} - {"settings"}


def parameters(*classes: type) -> set[str]:
    """Return the names of what the constructors of classes take."""
    return {
        name
        for each in classes
        for name, parameter in inspect.signature(each.__init__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }


@needs_it
def test_every_parameter_has_a_row():
    own, machines, *dasks = GCPCluster.__mro__
    assert set(OWN) == parameters(own)
    assert set(OF_MACHINES) == parameters(machines)
    assert set(OF_DASK) == parameters(
        *(each for each in dasks if each.__module__.startswith("distributed.deploy"))
    )


@needs_it
def test_every_key_of_its_configuration_has_a_row():
    keys = set(dask.config.get("cloudprovider.gcp"))
    assert set(OF_CONFIGURATION) == keys - {*OWN, *OF_MACHINES, *OF_DASK}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_row_names_what_there_is(name):
    named = set(re.findall(r"`(\w+)`", EVERY[name]))
    assert named <= HERE
    assert named or EVERY[name] == "none"


@pytest.mark.parametrize("name", sorted(set(EVERY) - HERE))
def test_an_old_name_is_refused_with_a_new_one(name):
    with pytest.raises(SettingsError) as caught:
        Settings.load(**{name: "x"})
    meant = re.search(r"did you mean '(\w+)'", str(caught.value))
    if EVERY[name] == "none":
        assert "none is needed" in str(caught.value)
    else:
        assert meant is not None
        assert f"`{meant[1]}`" in EVERY[name]
