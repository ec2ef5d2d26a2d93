"""What dask-ctl is told: the clusters that run and can be connected to, quickly and quietly."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import warnings
from importlib.metadata import entry_points

import dask.config
import pytest
from fleets import QUICK, Cloud
from records import AGGREGATED, compute_of, insert, labels_of

from dask_gce import GCECluster, discovery
from dask_gce.connection_content import Connection
from dask_gce.connections import connection_path, save_connection
from dask_gce.settings import Settings

PROJECT = "local-project"


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    """Keep connection files to the test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """Give an answer the time that it needs on a busy machine."""
    monkeypatch.setattr(discovery, "_PATIENCE", 60.0)
    monkeypatch.setattr(discovery, "_EXCHANGE", 30.0)


@pytest.fixture
async def cloud():
    async with Cloud(QUICK) as running:
        yield running


def connect_to(endpoint, cluster="grid-1", project=PROJECT):
    settings = Settings.load(api_endpoint=endpoint, name=cluster, project=project, security=False)
    identity = cluster[-1] * 32
    return save_connection(
        Connection(cluster, project, identity, "ada", None, None, settings.dump())
    )


async def run(cloud, name, role="scheduler", identity=None):
    async with compute_of(cloud) as compute:
        labels = labels_of(name, role, identity or name[-1] * 32)
        await insert(cloud, compute, f"{name}-{role}", labels)


async def found():
    return [each async for each in discovery.discover()]


async def test_what_runs_and_can_be_connected_to_is_found(cloud):
    for name in ("grid-1", "grid-2", "other-3"):
        await run(cloud, name)
    await run(cloud, "headless-4", "worker")
    # The name of another cluster than the one that is known here.
    await run(cloud, "namesake-5", identity="f" * 32)
    for name in ("grid-2", "grid-1", "headless-4", "namesake-5", "gone-6"):
        connect_to(cloud.endpoint, name)
    before = cloud.requests[AGGREGATED]
    assert await found() == [("grid-1", GCECluster), ("grid-2", GCECluster)]
    assert cloud.requests[AGGREGATED] == before + 1


async def test_without_connection_files_nobody_is_asked(cloud):
    await run(cloud, "grid-1")
    before = cloud.requests
    assert await found() == []
    assert cloud.requests == before


async def test_each_project_is_asked_and_names_of_several_are_left_out(cloud, caplog):
    await run(cloud, "grid-1")
    await run(cloud, "grid-2")
    connect_to(cloud.endpoint, "grid-1")
    connect_to(cloud.endpoint, "grid-2")
    connect_to(cloud.endpoint, "grid-2", "other-project")
    with caplog.at_level(logging.INFO, "dask_gce"):
        assert await found() == [("grid-1", GCECluster)]
    assert "Several projects have a cluster grid-2" in caplog.text


async def test_a_file_that_cannot_be_used_does_not_hide_the_others(cloud):
    await run(cloud, "grid-1")
    await run(cloud, "grid-2")
    connect_to(cloud.endpoint, "grid-1")
    connect_to(cloud.endpoint, "grid-2").write_text("{")
    assert await found() == [("grid-1", GCECluster)]


async def test_no_answer_is_no_cluster_and_no_noise(cloud, capsys, monkeypatch):
    monkeypatch.setattr(discovery, "_PATIENCE", 3.0)
    await run(cloud, "grid-1")
    connect_to(cloud.endpoint, "grid-1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        connect_to(f"http://127.0.0.1:{port}", "grid-2")
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert await found() == [("grid-1", GCECluster)]
        assert time.monotonic() - began < 15
    assert capsys.readouterr() == ("", "")


async def test_a_server_that_only_listens_does_not_hold_it(monkeypatch):
    monkeypatch.setattr(discovery, "_PATIENCE", 0.3)
    monkeypatch.setattr(discovery, "_EXCHANGE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connect_to(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert await found() == []
        assert time.monotonic() - began < 15


async def test_missing_credentials_are_no_noise(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    connect_to(None)
    assert connection_path("grid-1", PROJECT).exists()
    with caplog.at_level(logging.INFO, "dask_gce"):
        assert await found() == []
    assert "CredentialsError" in caplog.text


def test_it_is_entered_where_dask_ctl_looks():
    (entry,) = entry_points(group="dask_cluster_discovery", name="gce")
    assert entry.load() is discovery.discover


async def test_each_cluster_comes_in_the_time_that_dask_ctl_waits(cloud):
    await run(cloud, "grid-1")
    connect_to(cloud.endpoint, "grid-1")
    # As dask-ctl does it, which wraps each step in a task of its own.
    clusters = discovery.discover().__aiter__()
    assert await asyncio.wait_for(clusters.__anext__(), 5) == ("grid-1", GCECluster)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(clusters.__anext__(), 5)


async def test_dask_ctl_finds_it(cloud):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dask_ctl.discovery import discover_cluster_names, list_discovery_methods
    except ImportError as error:
        # Version 2024.1.0 needs pkg_resources, and what distributed no longer has.
        pytest.skip(f"dask-ctl cannot be imported: {error}")
    await run(cloud, "grid-1")
    connect_to(cloud.endpoint, "grid-1")
    with dask.config.set({"ctl.disable_discovery": []}):
        assert list_discovery_methods()["gce"]["enabled"]
        assert [each async for each in discover_cluster_names("gce")] == [("grid-1", GCECluster)]


def test_it_works_on_a_loop_of_its_own():
    assert asyncio.run(found()) == []
