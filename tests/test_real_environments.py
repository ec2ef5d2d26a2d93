"""Machines without containers: uv builds what the client has, and its own packages come too."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
import requests
from adapting import see_it_adapt
from clusters import wait_until, worker_machines
from distributed import Client
from machines import needs_namespaces
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from projects import install, make_project

from dask_gce import GCECluster, preparation
from dask_gce.boot.distributions import take_inventory
from dask_gce.boot.resolution import resolve
from dask_gce.emulator import ComputeEmulator

pytestmark = [
    needs_namespaces,
    pytest.mark.timeout(600),
    # The machine's Python is of another patch release than this one may be.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]

PROJECT, ZONE = "real-environments", "us-central1-a"
#: Seconds in which machines boot and install on a busy computer.
LONG = 300.0

#: A package as somebody works on it beside a notebook.
CODE = '''
import sys

def where(number):
    """Tell in which Python this runs, and as whom."""
    import os
    return number * 2, sys.prefix, os.getuid()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package that can be edited, as ``pip install --editable`` does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_project(tmp_path / "src", "edited_here", code=CODE)
    site = tmp_path / "site"
    editable = {"url": project.as_uri(), "dir_info": {"editable": True}}
    install(site, "edited_here", direct=editable)
    monkeypatch.syspath_prepend(str(project))
    # As from somebody who has Dask and no more, lest each machine installs a hundred packages.
    for name in closure("distributed"):
        information = Path(str(importlib.metadata.distribution(name)._path))
        (site / information.name).symlink_to(information)
    seen = partial(resolve, inventory=lambda: take_inventory([str(site)]))
    monkeypatch.setattr(preparation, "resolve", seen)
    yield importlib.import_module("edited_here")
    del sys.modules["edited_here"]


def closure(name: str) -> set[str]:
    """Return a distribution and all that it needs here."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            needs = map(Requirement, importlib.metadata.requires(each) or ())
            waiting += [
                canonicalize_name(need.name)
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def reset(emulator: ComputeEmulator, name: str) -> None:
    """Press the reset button of a machine."""
    with requests.Session() as session:
        session.trust_env = False
        machine = f"projects/{PROJECT}/zones/{ZONE}/instances/{name}"
        url = f"{emulator.endpoint}/compute/v1/{machine}/reset"
        session.post(url, timeout=60).raise_for_status()


def test_a_synced_environment_with_a_package_that_is_edited_here(
    namespace_emulator: ComputeEmulator, package: Any
) -> None:
    emulator = namespace_emulator
    with (
        GCECluster(
            api_endpoint=emulator.endpoint,
            project=PROJECT,
            zone=ZONE,
            machine_type="e2-standard-2",
            runtime="vm",
            environment="sync",
            n_workers=2,
            start_timeout=LONG,
            worker_start_timeout=LONG,
            quiet=True,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=LONG)
        workers = sorted(client.scheduler_info(n_workers=-1)["workers"])

        def everywhere() -> list[Any]:
            found = client.scheduler_info(n_workers=-1)["workers"]
            futures = [
                client.submit(package.where, 21, workers=[address], pure=False) for address in found
            ]
            return client.gather(futures)

        for result, prefix, user in everywhere():
            assert result == 42
            assert prefix.startswith("/var/lib/dask/environments/")
            assert user != 0
        # Graphs are unpickled on the scheduler.
        on_scheduler = client.run_on_scheduler(lambda: package.where(1)[1])
        assert on_scheduler.startswith("/var/lib/dask/environments/")
        assert client.run_on_scheduler(os.getuid) != 0

        first = min(worker_machines(emulator))
        # Nobody is to give a machine up that is only slow.
        with dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LONG} s"}):
            reset(emulator, first)
            wait_until(lambda: _consoles(emulator, first).count("phase: running") == 2, LONG)
            wait_until(
                lambda: sorted(client.scheduler_info(n_workers=-1)["workers"]) != workers, LONG
            )
            client.wait_for_workers(2, timeout=LONG)
        assert [result for result, _, _ in everywhere()] == [42, 42]
        assert "on this machine already, so it is not built" in _consoles(emulator, first)
        see_it_adapt(emulator, cluster, client)


def _consoles(emulator: ComputeEmulator, name: str) -> str:
    with requests.Session() as session:
        session.trust_env = False
        machine = f"projects/{PROJECT}/zones/{ZONE}/instances/{name}"
        url = f"{emulator.endpoint}/compute/v1/{machine}/serialPort"
        return str(session.get(url, timeout=60).json()["contents"])
