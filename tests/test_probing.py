"""Whether a Dask server answers: by what it says, and without making it complain."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from distributed.security import Security
from ports import quiet_port

from dask_gce.probing import knock
from dask_gce.trust import establish_trust

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer_and_close, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what a client and a scheduler of one cluster show."""
    trust = establish_trust(True, "grid")
    machine = trust.machines["scheduler"]
    # As startup writes it for a scheduler.
    there = Security(
        require_encryption=True,
        tls_ca_file=machine.ca,
        tls_scheduler_cert=machine.certificate,
        tls_scheduler_key=machine.key,
    )
    return (
        trust.client.get_connection_args("client")["ssl_context"],
        there.get_listen_args("scheduler")["ssl_context"],
    )


async def test_whoever_speaks_answers() -> None:
    async with serving(greet) as port:
        assert await knock("127.0.0.1", port) == ""


async def test_whoever_takes_a_connection_and_says_nothing_does_not() -> None:
    async with serving(hang_up) as port:
        assert await knock("127.0.0.1", port) == "the connection is closed without a word"
    assert await knock("127.0.0.1", quiet_port()) == "Connection refused"
    over = asyncio.Event()

    async def be_silent(reader: Any, writer: Any) -> None:
        await over.wait()

    async with serving(be_silent) as port:
        why = await knock("127.0.0.1", port, timeout=0.05)
        assert why == "there is no answer within 0.05 s"
        assert not over.is_set()
        over.set()


async def test_over_tls_nobody_is_made_to_complain(caplog: pytest.LogCaptureFixture) -> None:
    client, scheduler = contexts()
    async with serving(greet, scheduler) as port:
        assert await knock("127.0.0.1", port, client) == ""
    assert not caplog.records


async def test_whoever_is_refused_or_refuses_is_there() -> None:
    # Waiting does not change it, and Dask tells why.
    client, _ = contexts()
    _, strange = contexts()
    async with serving(greet, strange) as port:
        assert await knock("127.0.0.1", port, client) == ""
    async with serving(greet) as port:
        assert await knock("127.0.0.1", port, client) == ""


async def test_whoever_goes_before_tls_is_agreed_on_is_not_there() -> None:
    # As the near end of a tunnel whose far end finds nobody.
    client, _ = contexts()
    async with serving(hang_up) as port:
        assert await knock("127.0.0.1", port, client)
