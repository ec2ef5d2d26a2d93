"""``dask gce show --env``: a bare ``Client()`` finds a cluster by variables, or by YAML."""

from __future__ import annotations

import asyncio
import shlex
import stat
import subprocess
import sys

import dask
import pytest
import yaml
from clusters import cluster_on, until
from command_line import environment, run, succeed

from dask_gce import GCECluster
from dask_gce.connections import connection_path, list_connections, load_connection

PROJECT = "local-project"

#: All that is said to Dask is said by the environment.
COMPUTE = """
from dask.distributed import Client
with Client() as client:
    print(client.submit(pow, 2, 10).result())
"""


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """Keep connection files in a folder whose name takes quotes in a shell."""
    folder = tmp_path / "it's a $HOME"
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder


def pem_files():
    return sorted(connection_path("grid", PROJECT).parent.glob("*.pem"))


def plain_environment(**more):
    """Return an environment that says nothing of a cluster."""
    kept = {key: value for key, value in environment("").items() if not key.startswith("DASK_")}
    return {**kept, **more}


def compute(command, **more):
    """Run a computation in a shell, which is told of the cluster by nothing else."""
    found = subprocess.run(
        ["/bin/sh", "-ec", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=plain_environment(PROGRAM=COMPUTE, **more),
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


async def test_a_bare_client_finds_a_cluster(light, tmp_path):
    async with cluster_on(
        light, name="grid", n_workers=1, security=True, shutdown_on_close=False
    ) as cluster:
        await cluster.wait_for_workers(1)
        python = shlex.quote(sys.executable)
        exports = f'exports="$({python} -m dask gce show grid --env)"; eval "$exports"'
        printed = await asyncio.to_thread(compute, f'{exports}; exec {python} -c "$PROGRAM"')
        assert printed == "1024\n"
        # By configuration, of which nothing is in the environment but where it is.
        config = tmp_path / "dask"
        config.mkdir()
        text = await asyncio.to_thread(succeed, light, "show", "grid", "--env", "--yaml")
        (config / "cluster.yaml").write_text(text)
        printed = await asyncio.to_thread(
            compute, f'exec {python} -c "$PROGRAM"', DASK_CONFIG=str(config)
        )
        assert printed == "1024\n"
        assert yaml.safe_load(text)["scheduler-address"] == cluster.scheduler_address
        # Others can read neither the keys nor the folder.
        authority, key, certificate = pem_files()
        assert [each.name for each in (authority, key, certificate)] == [
            "grid.ca.pem",
            "grid.client-key.pem",
            "grid.client.pem",
        ]
        for each in (authority, key, certificate):
            assert stat.S_IMODE(each.stat().st_mode) == 0o600
        secret = load_connection("grid").client_tls.key
        assert key.read_text() == secret and secret not in text
        assert list_connections() == [(PROJECT, "grid")]
    again = await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    await again.shutdown()
    await until(lambda: not light.leftovers())
    # What names them is gone, and so are they.
    assert not pem_files() and not list_connections()


async def leave(emulator, **more):
    """Make a cluster that stays when its process has left it."""
    async with cluster_on(emulator, name="grid", shutdown_on_close=False, **more):
        pass


async def end(emulator):
    again = await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    await again.shutdown()
    await until(lambda: not emulator.leftovers())


async def test_a_cluster_without_certificates(light):
    await leave(light)
    (line,) = (await asyncio.to_thread(succeed, light, "show", "grid", "--env")).splitlines()
    assert line.startswith("export DASK_SCHEDULER_ADDRESS=tcp://127.")
    assert not pem_files()
    await end(light)


async def test_a_tunnel_is_no_address(light):
    await leave(light)
    with dask.config.set({"gce.connect": "iap"}):
        result = await asyncio.to_thread(run, light, "show", "grid", "--env")
    assert result.exit_code == 1 and not result.stdout
    assert "tunnel" in result.stderr and "GCECluster.from_name('grid')" in result.stderr
    await end(light)


async def test_a_file_that_is_for_another_cluster_of_that_name(light):
    await leave(light)
    result = await asyncio.to_thread(run, light, "show", "grid", "--env", "--id", "no")
    assert result.exit_code == 3 and "another one of that name" in result.stderr
    await end(light)


def test_wrong_usage(emulator):
    assert run(emulator, "show", "grid", "--yaml").exit_code == 2
    assert run(emulator, "show", "grid", "--env", "--json").exit_code == 2
    result = run(emulator, "show", "grid", "--env")
    assert result.exit_code == 3 and not result.stdout
