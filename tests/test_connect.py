"""Every way to the scheduler, end to end on machines that are processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from clusters import PATIENCE, cluster_on, until, until_at_work
from command_line import run_process
from distributed import Client, worker_client
from distributed.core import Status

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import InstanceLost, SettingsError, StartTimeout
from dask_gce.reach.approach import Approach
from dask_gce.settings import Settings

#: More than any window of a tunnel.
MEGABYTES = 8


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.delenv(variable, raising=False)


def the_route(cluster: GCECluster) -> str:
    (event,) = [event for event in cluster.events if event.what == "route"]
    return event.why


def place_of(cluster: GCECluster) -> str:
    return str(cluster.scheduler_address).rpartition("://")[2]


def whats(cluster: GCECluster) -> set[str]:
    return {event.what for event in cluster.events}


def listens(place: str) -> bool:
    host, _, port = place.rpartition(":")
    with socket.socket() as asking:
        return asking.connect_ex((host, int(port))) == 0


@contextlib.asynccontextmanager
async def through_tunnel(
    emulator: ComputeEmulator, **more: Any
) -> AsyncIterator[tuple[GCECluster, Client]]:
    """Make a cluster without external addresses, with TLS, and a client of it."""
    keywords = {"external_ip": False, "security": True, "n_workers": 1, **more}
    async with (
        cluster_on(emulator, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await until_at_work(client, keywords["n_workers"])
        yield cluster, client


# -- which way --------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", ["internal", "external"])
async def test_an_address_of_the_machine_is_taken(
    process_emulator: ComputeEmulator, connect: str
) -> None:
    async with cluster_on(process_emulator, connect=connect) as cluster:
        (machine,) = process_emulator.instances()
        (interface,) = machine["networkInterfaces"]
        there = {
            "internal": interface["networkIP"],
            "external": interface["accessConfigs"][0]["natIP"],
        }
        assert place_of(cluster) == f"{there[connect]}:8786"
        assert cluster.dashboard_link == f"http://{there[connect]}:8787/status"
        assert the_route(cluster) == f"{connect}, since connect = '{connect}' (keyword argument)"
        async with Client(cluster, asynchronous=True) as client:
            assert await client.ncores() == {}
        assert cluster._scheduler.contact_address.endswith(".c.local-project.internal:8786")


async def test_from_outside_auto_is_the_external_address(light: ComputeEmulator) -> None:
    async with cluster_on(light) as cluster:
        assert the_route(cluster).startswith("external, since this computer is not on Compute")
        assert await cluster.reaches_scheduler()


async def test_on_a_machine_of_the_network_auto_is_the_internal_address(
    light: ComputeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        body = b"local-project" if path.endswith(b"/project-id") else b"7"
        if b"network-interfaces" in path:
            body = b'[{"network": "projects/7/networks/default"}]'
        head = b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with cluster_on(light) as cluster:
        (machine,) = light.instances()
        assert place_of(cluster) == f"{machine['networkInterfaces'][0]['networkIP']}:8786"
        assert the_route(cluster) == (
            "internal, since this computer is in network default of project local-project too"
        )
    server.close()
    await server.wait_closed()


# -- through a tunnel -------------------------------------------------------------------------


async def test_a_cluster_without_external_addresses_works_through_a_tunnel(
    process_emulator: ComputeEmulator,
) -> None:
    # Workers have not this module, so what they run is of the function.
    class Total:
        def __init__(self) -> None:
            self.value = 0

        def add(self, number: int) -> int:
            self.value += number
            return self.value

    def ask_again(number: int) -> Any:
        with worker_client() as inner:
            return inner.submit(pow, number, 2).result()

    async with through_tunnel(process_emulator) as (cluster, client):
        assert the_route(cluster).startswith("iap, since this computer is not on Compute Engine")
        assert all(
            "accessConfigs" not in each["networkInterfaces"][0]
            for each in process_emulator.instances()
        )
        assert place_of(cluster).startswith("127.0.0.1:")
        # What is big goes both ways.
        data = bytes(range(256)) * 4096 * MEGABYTES
        (there,) = await client.scatter([data])
        assert await client.submit(len, there) == len(data)
        assert await client.gather(there) == data
        assert await client.submit(lambda number: b"x" * number, len(data)) == b"x" * len(data)
        # What else talks to workers.
        actor = await client.submit(Total, actor=True)
        assert await actor.add(3) == 3
        assert await client.submit(ask_again, 7) == 49
        assert len(await client.run(lambda: 1)) == 1
        assert len(await client.get_worker_logs()) == 1
        # All of it through the scheduler: nobody else was asked.
        assert {*client.rpc.available, *client.rpc.occupied} == {cluster.scheduler_address}
        logs = await cluster.get_logs()
        assert not {"Cluster", "Scheduler"} - set(logs)


async def test_the_dashboard_is_shown_through_a_tunnel_of_its_own(
    process_emulator: ComputeEmulator,
) -> None:
    pytest.importorskip("bokeh")
    async with through_tunnel(process_emulator, n_workers=0) as (cluster, client):
        link = cluster.dashboard_link
        assert client.dashboard_link == link
        assert link.startswith("http://127.0.0.1:")
        assert place_of(cluster) not in link
        async with aiohttp.ClientSession() as session, session.get(link) as answer:
            assert answer.status == 200
            assert "Dask" in await answer.text()


async def test_no_link_leads_to_a_port_that_is_not_the_dashboards(light: ComputeEmulator) -> None:
    async with cluster_on(light, connect="iap") as cluster:
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        # What Dask does where the port is taken.
        cluster.scheduler_info["services"]["dashboard"] = 40123
        assert cluster.dashboard_link == ""


async def test_nothing_of_a_tunnel_is_left_when_the_cluster_is_closed(
    process_emulator: ComputeEmulator,
) -> None:
    cluster = await cluster_on(process_emulator, connect="iap")
    places = [place_of(cluster), cluster.dashboard_link.split("/")[2]]
    assert all(map(listens, places))
    await cluster.close()
    # What tasks and sockets there are is looked at after each test.
    assert not any(map(listens, places))


async def test_workers_come_and_go_while_the_tunnel_is_cut(
    process_emulator: ComputeEmulator,
) -> None:
    async with through_tunnel(process_emulator) as (cluster, client):
        futures = client.map(lambda number: bytes(1000) * number, range(200), pure=False)
        for _ in range(3):
            process_emulator.tunnels.cut()
        cluster.scale(2)
        assert [len(each) for each in await client.gather(futures)] == [
            1000 * number for number in range(200)
        ]
        await cluster.wait_for_workers(2)
        # Workers stay that hold the only copy of a result.
        await client.cancel(futures)
        cluster.scale(0)
        await until(lambda: not cluster.scheduler_info["workers"])
        assert process_emulator.tunnels.cuts >= 3
        assert cluster.status == Status.running
        assert "disconnected" not in whats(cluster)


async def test_with_its_scheduler_the_tunnels_go(light: ComputeEmulator) -> None:
    async with cluster_on(light, connect="iap") as cluster:
        place = place_of(cluster)
        light.delete(cluster.scheduler.name, user="colleague@example.org")
        with pytest.raises(InstanceLost):
            await cluster.wait_for_workers(1, timeout=PATIENCE)
        await until(lambda: not listens(place))
        assert cluster.dashboard_link == ""


async def test_whoever_joins_takes_a_way_of_their_own(light: ComputeEmulator) -> None:
    async with cluster_on(light, name="grid", shutdown_on_close=False) as made:
        assert the_route(made).startswith("external")
        async with GCECluster.from_name(
            "grid", connect="iap", asynchronous=True, quiet=True
        ) as joined:
            assert the_route(joined).startswith("iap, since connect = 'iap'")
            assert place_of(joined) != place_of(made)
            async with Client(joined, asynchronous=True) as client:
                assert await client.ncores() == {}
            place = place_of(joined)
        assert not listens(place)
        await made.shutdown()


async def test_logs_are_read_by_the_way_that_the_configuration_names(
    light: ComputeEmulator,
) -> None:
    async with cluster_on(
        light, name="grid", connect="external", security=True, shutdown_on_close=False
    ) as cluster:
        assert not light.tunnels.connects
        reading = functools.partial(run_process, DASK_GCE__CONNECT="iap")
        output, _ = await asyncio.to_thread(reading, light.endpoint, "logs", "grid")
        assert f"{cluster.scheduler.name}: " in output
        assert light.tunnels.connects
        await cluster.shutdown()


# -- what does not answer ---------------------------------------------------------------------


@pytest.mark.parametrize("connect", ["internal", "external", "iap"])
async def test_a_scheduler_that_does_not_answer_is_told_with_the_way_to_it(
    emulator: ComputeEmulator, connect: str
) -> None:
    # Machines of paper run, and nothing runs on them.
    with pytest.raises(StartTimeout) as caught:
        await cluster_on(emulator, connect=connect, start_timeout=3)
    message = str(caught.value)
    assert f"The way to it is {connect}, since connect = '{connect}'" in message
    assert "port 8786" in message
    assert caught.value.name in message
    if connect == "iap":
        assert "through a tunnel" in message
        assert "gcloud compute firewall-rules create" in message


async def test_what_is_in_the_way_is_told_though_it_takes_longer_than_the_start_may(
    emulator: ComputeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_on(emulator, connect="internal", start_timeout=1)
    find_obstacle = Approach.find_obstacle

    async def late(self: Approach) -> str:
        await until(lambda: cluster._scheduler.failure)
        return await find_obstacle(self)

    monkeypatch.setattr(Approach, "find_obstacle", late)
    with pytest.raises(StartTimeout, match=r"port 8786 at .*, its internal address was asked"):
        await cluster


async def test_who_lets_everybody_in_is_warned(
    light: ComputeEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster_on(light, allow_ingress_from="0.0.0.0/0"):
        pass
    assert "allow_ingress_from = 0.0.0.0/0: the whole Internet reaches" in caplog.text
    caplog.clear()
    async with cluster_on(light, allow_ingress_from="198.51.100.0/24"):
        pass
    assert "whole Internet" not in caplog.text


def test_the_way_is_the_readers_and_the_rest_the_clusters() -> None:
    written = Settings.load(connect="internal", processes=2, firewall=False)
    joined = Settings.restore(written.dump()).with_way_of(Settings.load(processes=3))
    assert (joined.connect, joined.processes, joined.firewall) == ("internal", 2, False)
    joined = joined.with_way_of(Settings.load(connect="iap", firewall=True))
    assert (joined.connect, joined.firewall) == ("iap", True)
    assert joined.sources["connect"] == "keyword argument"


def test_how_one_is_told_is_the_readers() -> None:
    written = Settings.load(progress="none").dump()
    assert Settings.restore(written).with_way_of(Settings.load()).progress == "auto"
    joined = Settings.restore(written).with_way_of(Settings.load(progress="lines"))
    assert (joined.progress, joined.sources["progress"]) == ("lines", "keyword argument")


@pytest.mark.parametrize(
    ("made_at", "reads_at", "far_end"),
    [
        (None, "http://127.0.0.1:1", "ws://127.0.0.1:1/v4"),
        ("http://127.0.0.1:1", None, "wss://tunnel.example.com/v4"),
    ],
)
def test_nobody_sends_the_token_of_one_engine_to_the_far_end_of_another(
    made_at: str | None, reads_at: str | None, far_end: str
) -> None:
    made = Settings.restore(Settings.load(api_endpoint=made_at).dump())
    reader = Settings.load(api_endpoint=reads_at, iap_endpoint=far_end)
    with pytest.raises(SettingsError, match=r"iap_endpoint .*: .*leave (it|this) out") as caught:
        made.with_way_of(reader)
    assert caught.value.key == "iap_endpoint"
