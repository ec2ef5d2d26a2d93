"""A question that is given up while its connection is being made leaves no connection open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from clusters import until
from distributed.core import Server, Status, rpc
from distributed.security import Security

from dask_gce import scheduler_rpc
from dask_gce.scheduler_rpc import SchedulerRPC


class Gate:
    """A way to a server that lets nothing through until it is opened, and counts who came."""

    def __init__(self, port: int) -> None:
        self.opened = asyncio.Event()
        #: How many have begun to speak.
        self.speakers = 0
        #: How many connections are there now.
        self.connections = 0
        self.port = 0
        self._port = port

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(OSError):
                await self._join(reader, writer)
        finally:
            self.connections -= 1
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(2**16)
        self.speakers += 1
        await self.opened.wait()
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        back.write(first)
        ways = {
            asyncio.ensure_future(_copy(reader, back)),
            asyncio.ensure_future(_copy(there, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.wait(ways)
            back.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)


@pytest.fixture(scope="module")
def security() -> Security:
    return Security.temporary()


@pytest.fixture
async def gate(security: Security, tmp_path: Path) -> AsyncIterator[Gate]:
    """Return the way to a Dask server, which is where `asking` asks."""
    handlers = {"ncores": lambda: {}}
    folder = str(tmp_path)
    async with Server(handlers, local_directory=folder, needs_workdir=False) as dask_server:
        await dask_server.listen("tls://127.0.0.1:0", **security.get_listen_args("scheduler"))
        gate = Gate(dask_server.port)
        server = await asyncio.start_server(gate.pass_on, "127.0.0.1", 0)
        gate.port = server.sockets[0].getsockname()[1]
        yield gate
        gate.opened.set()
        await until(lambda: not gate.connections)
        server.close()
        await server.wait_closed()


@pytest.fixture
def asking(gate: Gate, security: Security) -> Iterator[SchedulerRPC]:
    plain = rpc(
        f"tls://127.0.0.1:{gate.port}", connection_args=security.get_connection_args("client")
    )
    yield SchedulerRPC(plain)
    assert plain.status == Status.closed


async def give_up(asking: SchedulerRPC, gate: Gate) -> None:
    """Ask, and stop waiting while TLS is agreed on."""
    question = asyncio.ensure_future(asking.ncores())
    await until(lambda: gate.speakers)
    question.cancel()
    with pytest.raises(asyncio.CancelledError):
        await question


async def test_answers(asking, gate):
    gate.opened.set()
    assert await asking.ncores() == {}
    assert await asking.ncores() == {}
    assert gate.speakers == 1
    await asking.close_rpc()
    assert not rpc.active


async def test_who_asks_next_takes_the_connection_of_a_question_given_up(asking, gate):
    await give_up(asking, gate)
    gate.opened.set()
    await until(lambda: any(asking.comms.values()))
    assert await asking.ncores() == {}
    assert gate.speakers == 1
    await asking.close_rpc()


async def test_a_connection_being_made_is_closed_with_the_others(asking, gate):
    await give_up(asking, gate)
    closing = asyncio.ensure_future(asking.close_rpc())
    await asyncio.sleep(0)
    gate.opened.set()
    await closing
    await until(lambda: not gate.connections)
    assert not asking.comms
    with pytest.raises(OSError, match="before comm was established"):
        await asking.ncores()


async def test_a_connection_that_is_never_made_is_not_waited_for_long(asking, gate, monkeypatch):
    monkeypatch.setattr(scheduler_rpc, "LAST_CONNECTIONS", 0.1)
    await give_up(asking, gate)
    await asking.close_rpc()
    assert not asking.comms
    assert gate.connections == 1


async def test_what_makes_a_connection_fail_is_told(gate, security):
    plain = rpc(
        f"tls://127.0.0.1:{gate.port}",
        timeout=0.1,
        connection_args=security.get_connection_args("client"),
    )
    asking = SchedulerRPC(plain)
    with pytest.raises(OSError, match="Timed out"):
        await asking.ncores()
    await asking.close_rpc()
