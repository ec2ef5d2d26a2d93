"""JupyterLab's Dask sidebar makes clusters, shows them and ends them, in a browser.

The sidebar is dask-labextension's in a JupyterLab of its own, the browser is Chromium, and the
steps are those of the pictures in the documentation (``docs/screenshots``).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from clusters import PATIENCE, until, worker_machines
from distributed import Client
from distributed.security import Security
from pages import ROOT, read_page

from dask_gce import jupyterlab
from dask_gce.connections import list_connections
from dask_gce.emulator import ComputeEmulator

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "screenshots"))

#: A cluster with TLS on small machines, as the sidebar would make it.
SMALL = {"machine_type": "e2-small", "worker_class": "distributed.Worker", "asynchronous": True}


async def fetch(address: str) -> tuple[int, bytes]:
    """Return status and body of what is at an address of http."""
    host, _, rest = address.partition("://")[2].partition(":")
    port, _, path = rest.partition("/")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), body


async def test_the_dashboard_of_a_cluster_elsewhere_is_at_a_loopback_address(light):
    async with jupyterlab.GCECluster(api_endpoint=light.endpoint, **SMALL) as cluster:
        link = cluster.dashboard_link
        assert link.startswith("http://127.0.0.1:")
        assert link.endswith("/status")
        there = f"http://{cluster.scheduler_address.partition('://')[2].partition(':')[0]}:8787"
        assert not there.startswith("http://127.0.0.1:"), "there is nothing to lead to"
        root = link.removesuffix("/status")
        assert await fetch(f"{root}/health") == (200, b"ok")
        assert await fetch(f"{root}/individual-plots.json") == await fetch(
            f"{there}/individual-plots.json"
        )
        # What is under way when it closes is cut.
        host, _, port = root.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: cluster._relay._passing)
        # Nowhere else is it open: Linux has all of 127.0.0.0/8 at the same interface.
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", int(port))
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_a_dashboard_that_is_gone_is_told_by_a_closed_connection():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for place in (None, taken.getsockname()):  # no dashboard, and one that refuses
            relay = jupyterlab._Relay(lambda place=place: place)
            await relay.start()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
                writer.close()
            finally:
                await relay.close()


async def test_what_goes_on_is_cut_when_the_relay_closes():
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
        ended.set()

    server = await asyncio.start_server(stay, "127.0.0.1", 0)
    relay = jupyterlab._Relay(server.sockets[0].getsockname)
    await relay.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        await asyncio.wait_for(arrived.wait(), PATIENCE)
        await relay.close()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await asyncio.wait_for(ended.wait(), PATIENCE)
    finally:
        writer.close()
        server.close()


async def test_a_client_finds_the_keys_of_the_scheduler_it_is_given(light):
    async with (
        jupyterlab.GCECluster(api_endpoint=light.endpoint, name="first", **SMALL) as first,
        jupyterlab.GCECluster(api_endpoint=light.endpoint, name="second", **SMALL) as second,
    ):
        assert {name for _, name in list_connections()} == {"first", "second"}
        loader = "dask_gce.jupyterlab.find_security"
        with dask.config.set({"distributed.client.security-loader": loader}):
            for cluster in (first, second):
                found = await asyncio.to_thread(
                    jupyterlab.find_security, {"address": cluster.scheduler_address}
                )
                assert isinstance(found, Security)
                assert found.tls_client_key == cluster.security.tls_client_key
                # As the sidebar's code does, which has but the address.
                async with Client(
                    cluster.scheduler_address, asynchronous=True, set_as_default=False
                ) as client:
                    assert (await client.scheduler.identity())["id"] == cluster.scheduler_info["id"]
    # It lasts no longer than the cluster.
    assert not list_connections()


async def test_no_keys_are_found_for_a_scheduler_of_nobody_here(light):
    stranger = {**SMALL, "quiet": True}
    async with jupyterlab.GCECluster(
        api_endpoint=light.endpoint, joinable=False, **stranger
    ) as cluster:
        assert not list_connections()
        async with jupyterlab.GCECluster(api_endpoint=light.endpoint, **SMALL):
            address = cluster.scheduler_address
            assert await asyncio.to_thread(jupyterlab.find_security, {"address": address}) is None


@pytest.fixture
def sidebar(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the steps of the sidebar; without a browser the test is skipped."""
    # Importing dask_labextension would change Dask's configuration.
    for package in ("dask_labextension", "jupyterlab", "PIL", "playwright"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"there is no {package}")
    import browser
    import sidebar

    if browser.find_chromium() is None:
        pytest.skip("there is no Chromium")
    return sidebar


def wait(condition: Callable[[], Any]) -> None:
    """Wait until something is true, beside Playwright, which has an event loop of its own."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_the_configuration_is_that_of_the_page(sidebar: Any) -> None:
    blocks = read_page(ROOT / "docs" / "notebooks.md").blocks
    (shown,) = (yaml.safe_load(each.text) for each in blocks if "labextension:" in each.text)
    tested = sidebar.configuration("http://127.0.0.1:1")
    assert shown == {key: tested[key] for key in shown}


def test_the_sidebar_makes_a_cluster_shows_it_scales_it_and_ends_it(
    sidebar: Any, process_emulator: ComputeEmulator, tmp_path: Path
) -> None:
    folder = tmp_path / "lab"
    with (
        sidebar.Lab(folder, sidebar.configuration(process_emulator.endpoint)) as lab,
        sidebar.Browser() as browser,
    ):
        page = sidebar.open_sidebar(browser, lab)
        entry = sidebar.press_new(page)
        sidebar.wait_for_text(entry, "Number of Workers: 2")
        assert len(worker_machines(process_emulator)) == 2
        # Through the sidebar's proxy, which leads to loopback addresses only.
        sidebar.show_plot(page, "Task Stream")
        # By the code that the sidebar gives: an address, and no keys.
        sidebar.connect_notebook(page, entry)
        sidebar.run_cell(page, "client.submit(pow, 7, 5).result()")
        sidebar.wait_for_text(page, "16807")
        sidebar.scale(page, entry, 1)
        wait(lambda: len(worker_machines(process_emulator)) == 1)
        sidebar.run_cell(page, "client.close()")
        sidebar.shut_down(entry)
        wait(lambda: not process_emulator.instances())
        # What nobody shuts down goes with the server.
        page.get_by_role("button", name="NEW", exact=True).click()
        sidebar.wait_for_text(page, "GCECluster 2")
        assert process_emulator.instances()
    wait(lambda: not process_emulator.instances())
    assert not list_connections(), lab.said()
    shutil.rmtree(folder)
