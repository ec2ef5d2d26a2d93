"""The package's own tunnels against the local Compute Engine's far end, which was written apart."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from clusters import PATIENCE, until
from ports import quiet_port
from rest import PROJECT, ZONE, Rest
from tunnel_client import HostKind

from dask_gce.emulator import ComputeEmulator
from dask_gce.reach import passage
from dask_gce.reach.tunnel import Tunnel

#: More than every buffer on the way holds together.
MUCH = random.Random(7).randbytes(6_000_000)  # noqa: S311 # any bytes, no secret


@pytest.fixture
def engine():
    with ComputeEmulator(HostKind()) as running:
        Rest(running).insert(name="a")
        yield running


@contextlib.asynccontextmanager
async def backend(talk):
    """Serve on this host, which every machine is."""
    tasks = set()

    async def serve(reader, writer):
        try:
            await talk(reader, writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    def begin(reader, writer):
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def no_token():
    return None


def tunnel_to(engine, port, **more):
    endpoint = engine.endpoint.replace("http://", "ws://") + "/v4"
    about = {"project": PROJECT, "zone": ZONE, "instance": "a", "port": port, "token": no_token}
    return Tunnel(**{**about, "endpoint": endpoint, **more})


@contextlib.asynccontextmanager
async def connection(tunnel):
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def there_and_back(tunnel, content):
    """Send through an echo, and tell whether the same came back."""
    async with connection(tunnel) as (reader, writer):
        writer.write(content)
        answer = await asyncio.wait_for(reader.readexactly(len(content)), PATIENCE)
        return answer == content


async def test_bytes_go_both_ways_and_nothing_stays(engine):
    async with backend(echo) as port:
        async with tunnel_to(engine, port) as tunnel:
            assert all(
                await asyncio.gather(
                    *(there_and_back(tunnel, MUCH[: 10_000 * n]) for n in range(1, 30))
                )
            )
        await until(lambda: engine.tunnels.open == 0)
    assert engine.tunnels.connects == 29


async def test_cuts_lose_nothing(engine):
    engine.tunnels.cut_every(1_000_000)
    async with backend(echo) as port, tunnel_to(engine, port) as tunnel:
        assert await there_and_back(tunnel, MUCH)
    assert engine.tunnels.connects == 1
    # A cut comes up to a piece of the machine's data late, and the last one may come at the end.
    assert engine.tunnels.reconnects >= 2 * len(MUCH) // (1_000_000 + 2**18) - 1


async def test_a_token_that_has_expired_is_renewed(engine):
    numbers = iter(range(1000))

    async def token():
        return f"token-{next(numbers)}"

    engine.tunnels.require_fresh_token_after(2_000_000)
    async with backend(echo) as port, tunnel_to(engine, port, token=token) as tunnel:
        assert await there_and_back(tunnel, MUCH)
    assert engine.tunnels.closes(4004) >= 5
    assert engine.tunnels.connects == 1


async def test_while_a_machine_boots_it_is_asked_again(engine, monkeypatch):
    monkeypatch.setattr(passage, "FIRST_PAUSE", 0.001)
    for code in (4047, 4033, 4003):
        engine.tunnels.close_next(code, times=2)
    async with backend(echo) as port, tunnel_to(engine, port) as tunnel:
        assert await there_and_back(tunnel, b"hello")
    assert engine.tunnels.unused() == []


async def test_all_that_the_machine_sent_before_it_closed_arrives(engine):
    async def source(reader, writer):
        writer.write(MUCH)
        await writer.drain()

    async with (
        backend(source) as port,
        tunnel_to(engine, port) as tunnel,
        connection(tunnel) as (reader, _),
    ):
        assert await asyncio.wait_for(reader.read(), PATIENCE) == MUCH


async def test_all_that_was_sent_before_it_closed_arrives_at_the_machine(engine, monkeypatch):
    monkeypatch.setattr(passage, "LAST_WORDS", 0.05)
    arrived, end = bytearray(), asyncio.Event()

    async def sink(reader, writer):
        while data := await reader.read(65536):
            arrived.extend(data)
        end.set()

    async with backend(sink) as port, tunnel_to(engine, port) as tunnel:
        _, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        writer.write(MUCH)
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(end.wait(), PATIENCE)
        assert bytes(arrived) == MUCH


async def test_why_there_is_no_tunnel_is_named(engine):
    async with tunnel_to(engine, quiet_port()) as tunnel:
        assert not await tunnel.answers()
        assert tunnel.failure.code == 4003
        assert "35.235.240.0/20" in str(tunnel.failure)
    async with tunnel_to(engine, 22, instance="other") as tunnel:
        assert not await tunnel.answers()
        assert tunnel.failure.code == 4047
        assert "gcloud compute instances describe other" in str(tunnel.failure)


@pytest.mark.parametrize(("token", "answers"), [("right", True), ("wrong", False)])
async def test_the_token_is_asked_for(token, answers):
    async def give():
        return token

    with ComputeEmulator("paper", token="right") as engine:
        async with tunnel_to(engine, 22, token=give) as tunnel:
            assert not await tunnel.answers()
            # There is no such instance, which only who may ask is told.
            assert tunnel.failure.code == (4047 if answers else 401)
