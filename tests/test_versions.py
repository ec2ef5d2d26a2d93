"""Machines compare their versions with the client's before Dask starts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import runpy
import socket
import stat
import sys
from importlib.resources import files

import pytest
from clusters import PATIENCE
from guests import Guest

from dask_gce import GCECluster
from dask_gce.boot import versions as of_client
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import InstanceError
from dask_gce.startup import Payload, build_metadata, scheduler_spec, worker_spec

guest_program = runpy.run_path(str(files("dask_gce").joinpath("guest", "versions.py")))
compare, check = guest_program["compare"], guest_program["check"]

HERE = of_client.client_versions()


def expected(**changes):
    """Return what a client with other versions would tell its machines."""
    text = json.loads(of_client.expectation("container", "mine:1"))
    text["versions"].update(changes)
    return json.dumps(text)


def payload(client, **changes):
    spec = scheduler_spec(protocol="tcp", port=8786, dashboard_port=8787, options={})
    return Payload("scheduler", "p", "mine:1", **{"spec": spec, **changes, "versions": client})


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path)


# -- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "client", "machine", "breaks"),
    [
        ("python", "3.11.7", "3.11.9", False),
        ("python", "3.11.7", "3.12.0", True),
        ("python", "3.1.0", "3.11.0", True),
        ("dask", "2026.8.0", "2026.8.1", False),
        ("dask", "2026.8.1.dev3+g1a2b3c4", "2026.8.0", False),
        ("dask", "2026.8+3.g1a2b3c4", "2026.8.0", False),
        ("dask", "2026.8.0rc1", "2026.8.1", False),
        ("dask", "2025.10.0+3.gabc", "2025.10.1", False),
        ("dask", "0+untagged.1.g1a2b3c4", "2026.8.0", False),
        ("dask", "2026.8.0", "0.1.dev1+g1a2b3c4", False),
        ("distributed", "2026.8.0", "of an unknown version", False),
        ("dask", "2026.8.0", "2026.9.0", True),
        ("dask", "2026.8.0", None, True),
        ("distributed", "2026.8.0", "2025.8.0", True),
        ("distributed", "2026.8.0", None, True),
        ("cloudpickle", "3.0.0", "3.1.1", False),
        ("cloudpickle", "2.2.1", "3.0.0", True),
        ("msgpack", "1.0.8", "1.1.0", False),
        ("msgpack", "0.6.2", "1.0.0", True),
        ("lz4", "4.3.3", None, False),
        ("lz4", None, "4.3.3", False),
        ("zstandard", "0.22.0", "0.23.0", False),
    ],
)
def test_what_breaks_and_what_does_not(name, client, machine, breaks):
    difference = compare({name: client}, {name: machine})
    assert difference == (([name], []) if breaks else ([], [name]))
    assert compare({name: client}, {name: client}) == ([], [])


def test_the_machine_and_the_client_mean_the_same_by_a_version():
    assert guest_program["installed"](HERE) == HERE
    assert HERE["python"] == platform.python_version()
    assert HERE["dask"] == importlib.metadata.version("dask")


def test_a_checkout_on_the_path_is_there_without_being_installed(tmp_path, monkeypatch):
    (tmp_path / "new_package.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = guest_program["installed"](["new-package", "no-package"])
    assert found == {"new-package": "of an unknown version", "no-package": None}


def test_dask_of_another_python_is_not_compared(tmp_path, monkeypatch, capsys):
    site = tmp_path / "empty"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "dask")
    monkeypatch.delitem(sys.modules, "distributed")
    (site / "dask").mkdir()
    assert f"this machine has no dask (the client has {HERE['dask']})" in check(expected())
    (tmp_path / "dask").write_text("#!/somewhere/else/python\n")
    (tmp_path / "dask").chmod(0o755)
    assert check(expected()) == ""
    assert "not compared" in capsys.readouterr().out


def test_the_same_versions_are_no_matter(capsys):
    assert check(expected()) == ""
    assert capsys.readouterr().out == ""


def test_a_refusal_says_what_to_change_on_either_side():
    reason = check(expected(python="3.1.4", dask="2020.1.0"))
    assert f"Python {HERE['python']} (the client has 3.1.4)" in reason
    assert f"dask {HERE['dask']} (the client has 2020.1.0)" in reason
    assert "another container_image than mine:1, one with Python 3.1 and dask 2020.1.0" in reason
    major, minor, _ = platform.python_version_tuple()
    assert f"use Python {major}.{minor} at the client" in reason
    assert f"pip install dask=={HERE['dask']}" in reason


def test_a_difference_without_harm_is_told_on_the_console(capsys):
    assert check(expected(lz4="9.9", toolz="0.0.1")) == ""
    warning = capsys.readouterr().out
    assert warning.startswith("dask-gce: warning:")
    assert "lz4" in warning and "9.9" in warning
    assert "toolz" in warning and "0.0.1" in warning


def test_the_advice_is_about_the_runtime():
    assert json.loads(of_client.expectation("vm", None))["setting"] == "an environment"


# -- on the machine -------------------------------------------------------------------------------


async def test_dask_does_not_start_where_it_could_not_work(guest):
    status, seen, output = await guest.run(payload(expected(python="3.1.4")))
    assert status == 113  # startup.sh knows that the reason is told
    assert seen is None
    assert "dask-gce phase: failed: versions differ: this machine has Python" in output


async def test_dask_starts_where_it_can_work(guest):
    status, seen, output = await guest.run(payload(expected(lz4="9.9")))
    assert status == 0, output
    assert seen["arguments"][0] == "spec"
    assert "dask-gce: warning: this machine has" in output
    assert "lz4" in output and "(the client has 9.9)" in output


def test_without_the_check_nothing_is_compared():
    assert "dask-gce-versions" not in build_metadata(payload(None))
    assert "versions" in build_metadata(payload(expected()))["dask-gce-programs"].split()


class Entered(Guest):
    """A guest whose image has an entry point, which changes what is installed."""

    def __init__(self, folder, version):
        super().__init__(folder)
        site = folder / "site" / "dask-0.dist-info"
        enter = folder / "bin" / "enter"
        enter.write_text(
            f"#!/bin/sh\nmkdir -p {site}\n"
            f"printf 'Name: dask\\nVersion: {version}\\n' > {site}/METADATA\n"
            f'PYTHONPATH={site.parent} exec "$@"\n'
        )
        python = folder / "bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for program in (enter, python):
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (folder / "guest" / "entrypoint.json").write_text(json.dumps(["enter"]))


async def test_what_the_entry_point_installs_counts(tmp_path):
    guest = Entered(tmp_path, "1999.1.0")
    status, seen, output = await guest.run(payload(expected(dask="1999.1.5")))
    assert status == 0, output
    assert seen["arguments"][0] == "spec"


@pytest.mark.parametrize("role", ["scheduler", "worker"])
async def test_what_the_entry_point_breaks_is_told_too(tmp_path, role, unused_port):
    guest = Entered(tmp_path, "1999.1.0")
    spec = worker_spec(
        worker_class="distributed.Nanny",
        scheduler_address=f"tcp://127.0.0.1:{unused_port}",
        nthreads=1,
        memory_limit=None,
        options={},
    )
    scheduler = {"host": "127.0.0.1", "port": unused_port, "timeout": PATIENCE}
    roles = {"scheduler": {}, "worker": {"role": "worker", "spec": spec, "scheduler": scheduler}}
    told = Payload(**{**vars(payload(expected())), **roles[role]})
    status, seen, output = await guest.run(told)
    assert status == 113
    assert seen is None
    assert "phase: failed: versions differ: this machine has dask 1999.1.0" in output
    assert "phase: running" not in output


@pytest.fixture
def unused_port():
    """Return a port where something listens, as a scheduler would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# -- for the user ---------------------------------------------------------------------------------


def test_the_client_raises_what_to_change(process_emulator, monkeypatch):
    monkeypatch.setattr(of_client, "client_versions", lambda: {**HERE, "dask": "2020.1.0"})
    with pytest.raises(InstanceError) as caught:
        # Not after the time that a start may take, but as soon as the machine says so.
        GCECluster(
            api_endpoint=process_emulator.endpoint,
            container_image="mine:1",
            start_timeout=3600,
            quiet=True,
        )
    assert caught.value.phase.startswith("failed: versions differ: this machine has dask")
    for part in ("another container_image than mine:1", "version_check=False"):
        assert part in str(caught.value)


def test_an_official_image_that_does_not_exist_says_that_there_are_few():
    # As for a Python that Dask publishes none for.
    with (
        ComputeEmulator("process", container_images=("mine:*",)) as emulator,
        pytest.raises(InstanceError, match="some versions of Python only"),
    ):
        GCECluster(api_endpoint=emulator.endpoint, quiet=True)


def test_whoever_does_not_want_the_check_has_none(process_emulator, monkeypatch):
    monkeypatch.setattr(of_client, "client_versions", lambda: {**HERE, "dask": "2020.1.0"})
    with GCECluster(
        api_endpoint=process_emulator.endpoint, version_check=False, quiet=True
    ) as cluster:
        assert cluster.status.name == "running"


async def test_what_variables_lead_to_counts(tmp_path):
    guest = Entered(tmp_path, "1999.1.0")
    (guest.folder / "guest" / "entrypoint.json").write_text("null")
    site = tmp_path / "elsewhere" / "dask-0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Name: dask\nVersion: 1999.1.0\n")
    told = payload(expected(), env_vars={"PYTHONPATH": str(site.parent)})
    status, seen, output = await guest.run(told)
    assert (status, seen) == (113, None)
    assert "this machine has dask 1999.1.0" in output
