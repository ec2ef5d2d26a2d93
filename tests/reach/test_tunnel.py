"""Tunnels through IAP, against a far end that was written for these tests alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import logging
import random
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from clusters import PATIENCE, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from iap_double import IapDouble, WebSocket
from ports import quiet_port

from dask_gce.errors import CredentialsError, SettingsError, TransportError
from dask_gce.reach import far_end, local_end, passage
from dask_gce.reach.relay import WINDOW
from dask_gce.reach.tunnel import Tunnel

SECRET = "ya29.secret-token"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def no_token() -> str | None:
    return None


def tunnel_to(far: IapDouble, **more: object) -> Tunnel:
    return Tunnel(
        **{
            "project": "my-project",
            "zone": "us-central1-a",
            "instance": "dask-1f-scheduler",
            "port": 8786,
            "endpoint": far.endpoint,
            "token": no_token,
            **more,
        }
    )


@pytest.fixture
async def far() -> AsyncIterator[IapDouble]:
    async with IapDouble() as double:
        yield double
    assert not double.broken


@contextlib.asynccontextmanager
async def instance(
    far: IapDouble, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """Run a program behind the far end."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    far.backend = server.sockets[0].getsockname()
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def connection(tunnel: Tunnel) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), PATIENCE)


async def is_broken_off(reader: asyncio.StreamReader) -> bool:
    """Wait until a connection ends; tell whether it was reset."""
    try:
        assert await read_all(reader) == b""
    except ConnectionError:
        return True
    return False


def content(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)  # noqa: S311 # the same each time


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat at once, and wait for nobody's last words."""
    monkeypatch.setattr(passage, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(passage, "LAST_WORDS", 0.05)


async def test_bytes_go_both_ways_and_the_request_is_gclouds(far):
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        assert tunnel.address == f"127.0.0.1:{tunnel.local_port}"
        sent = content(1_000_000)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
    (request,) = far.requests
    assert request.query == {
        "project": "my-project",
        "port": "8786",
        "newWebsocket": "True",
        "zone": "us-central1-a",
        "instance": "dask-1f-scheduler",
        "interface": "nic0",
    }
    assert "authorization" not in request.headers
    assert request.headers["user-agent"].startswith("dask-gce/")
    assert far.closes == [1000]


async def test_many_connections_at_once(far):
    async def talk(tunnel: Tunnel, seed: int) -> bool:
        sent = content(20_000, seed)
        async with connection(tunnel) as (reader, writer):
            writer.write(sent)
            return await reader.readexactly(len(sent)) == sent

    async with instance(far, echo), tunnel_to(far) as tunnel:
        assert all(await asyncio.gather(*(talk(tunnel, seed) for seed in range(150))))
    assert len(far.sessions) == 150


async def test_nothing_is_asked_of_the_far_end_before_somebody_connects(far):
    async with tunnel_to(far) as tunnel:
        assert tunnel.failure is None
    assert far.requests == []


# Ends


@pytest.mark.parametrize("is_rude", [False, True], ids=["waits for the ACK", "closes at once"])
async def test_all_that_the_instance_sent_before_it_closed_arrives(far, is_rude):
    sent = content(3_000_000)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    far.is_rude = is_rude
    async with instance(far, source), tunnel_to(far) as tunnel, connection(tunnel) as (reader, _):
        assert await read_all(reader) == sent


async def test_the_rest_arrives_when_the_far_end_closes_while_more_is_sent(far):
    """A socket that is closed with bytes unread is reset, and what it had still to send is gone."""
    sent, asked = content(2_000_000), asyncio.Event()

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.wait()
        writer.write(sent)
        writer.write_eof()
        while await reader.read(65536):
            pass

    far.ack_every, far.is_rude = None, True
    async with instance(far, source), tunnel_to(far) as tunnel, connection(tunnel) as streams:
        reader, writer = streams
        writer.transport.pause_reading()
        # More than is taken without an acknowledgement, so that some of it stays unread.
        writer.write(content(WINDOW + 20 * local_end.HELD))
        await until(lambda: far.sessions)
        (session,) = far.sessions.values()
        await until(lambda: session.received == WINDOW)
        asked.set()
        await until(lambda: not tunnel._passages or session.socket.is_closing)
        writer.transport.resume_reading()
        assert await read_all(reader) == sent


@pytest.mark.parametrize("acks", [32768, 1, None])
async def test_all_that_was_sent_before_it_closed_arrives_at_the_instance(far, quick, acks):
    sent, arrived, end = content(3_000_000), bytearray(), asyncio.Event()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            arrived.extend(data)
        end.set()

    far.ack_every = acks
    async with instance(far, sink), tunnel_to(far) as tunnel:
        _, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        writer.write(sent)
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(end.wait(), PATIENCE)
        assert bytes(arrived) == sent


async def test_who_has_ended_is_still_answered(far):
    answer = content(2_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == b"question"
        writer.write(answer)
        await writer.drain()

    async with (
        instance(far, serve),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"question")
        writer.write_eof()
        assert await read_all(reader) == answer


async def test_what_was_sent_last_arrives_when_the_tunnel_is_closed(far):
    sent, arrived, end = content(2_000_000), bytearray(), asyncio.Event()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            arrived.extend(data)
        end.set()

    async with instance(far, sink):
        async with tunnel_to(far) as tunnel, connection(tunnel) as (_, writer):
            writer.write(sent)
            await writer.drain()
            await until(lambda: arrived)
            # Whatever has come into this process.
            await until(lambda: not writer.transport.get_write_buffer_size())
            writer.write_eof()
            await until(lambda: all(end.ended for end in tunnel._ends))
        await asyncio.wait_for(end.wait(), PATIENCE)
        assert bytes(arrived) == sent


async def test_the_far_end_is_told_when_the_client_breaks_off(far):
    async with instance(far, echo), tunnel_to(far) as tunnel:
        async with connection(tunnel) as (reader, writer):
            writer.write(b"x" * 200_000)
            await reader.readexactly(100_000)
        # It was closed with bytes unread, which is a reset.
        await until(lambda: far.closes)
    assert far.closes == [1000]


# Cuts


@pytest.mark.parametrize("code", [None, 4004, 4000, 1001, 1011])
async def test_what_is_cut_goes_on(far, code):
    sent = content(3_000_000)
    told: list[str] = []
    tokens = (f"{SECRET}-{number}" for number in range(1000))

    async def token() -> str:
        return next(tokens)

    far.cuts, far.cut_code = [200_000] * 20, code
    async with (
        instance(far, echo),
        tunnel_to(far, token=token, tell=lambda what, why: told.append(what)) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        assert tunnel.failure is None
    assert len(far.sessions) == 1
    assert told == ["cut", "resumed"] * 20
    resumptions = far.requests[1:]
    assert {request.path for request in resumptions} == {"/v4/reconnect"}
    assert {request.query["sid"] for request in resumptions} == set(far.sessions)
    asked_with = [request.headers["authorization"] for request in far.requests]
    assert asked_with == [f"Bearer {SECRET}-{number}" for number in range(21)]


@pytest.mark.parametrize("seed", range(12))
async def test_cuts_at_any_byte_in_either_direction_lose_nothing(far, seed, monkeypatch):
    monkeypatch.setattr(passage, "FIRST_PAUSE", 0.001)
    chance = random.Random(seed)  # noqa: S311 # the same each time
    down, up = content(chance.randrange(1, 600_000), 1), content(chance.randrange(1, 600_000), 2)
    far.cuts = [chance.choice([1, 100, 20_000, 90_000]) for _ in range(30)]
    far.ack_every = chance.choice([1, 5000, 32768, 500_000])
    far.cut_code = chance.choice([None, None, 4004])
    far.window = chance.choice([20_000, 1_500_000])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send() -> None:
            for at in range(0, len(down), 7001):
                writer.write(down[at : at + 7001])
                await writer.drain()

        sending = asyncio.ensure_future(send())
        assert await reader.readexactly(len(up)) == up
        await sending
        writer.write(b"!")
        await writer.drain()

    async with (
        instance(far, serve),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        for at in range(0, len(up), 9001):
            writer.write(up[at : at + 9001])
            await asyncio.sleep(0)
        assert await read_all(reader) == down + b"!"


async def test_60_mb_with_a_cut_every_5_arrive_identical(far):
    sent = content(60_000_000)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(sent), 1_000_000):
            writer.write(sent[at : at + 1_000_000])
            await writer.drain()

    far.cuts = [5_000_000] * 11
    async with instance(far, source), tunnel_to(far) as tunnel, connection(tunnel) as (reader, _):
        assert await read_all(reader) == sent
    assert len(far.requests) == 12


async def test_a_far_end_that_breaks_each_time_is_not_asked_without_pauses(far, monkeypatch):
    pauses: list[float] = []
    next_pause = passage._Patience.next_pause

    def note(self: passage._Patience) -> float | None:
        pause = next_pause(self)
        pauses.append(pause or 0)
        return pause and 0.001

    monkeypatch.setattr(passage._Patience, "next_pause", note)
    far.inject = lambda socket: socket.writer.close() if len(far.requests) < 6 else None
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    assert pauses == pytest.approx([1.5, 1.65, 1.815, 1.9965])


async def test_a_session_that_is_gone_breaks_the_connection(far):
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        (session,) = far.sessions.values()
        kept = dict(far.sessions)
        far.sessions.clear()
        session.socket.break_off()
        assert await is_broken_off(reader)
        assert tunnel.failure.code == 4001
        assert "SID_UNKNOWN" in str(tunnel.failure)
        far.sessions.update(kept)


async def test_a_session_that_is_still_in_use_is_asked_for_again(far, quick):
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        far.refusals = [4002, 503, 4002]
        (session,) = far.sessions.values()
        session.socket.break_off()
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
    assert len(far.requests) == 5


# Refusals


async def test_while_the_machine_boots_it_is_asked_again(far, quick):
    told: list[str] = []
    far.refusals = [4047, 4047, 4033, 4003, 503, 4003]
    async with (
        instance(far, echo),
        tunnel_to(far, tell=lambda what, why: told.append(f"{what} {why}")) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert tunnel.failure is None
    assert len(far.requests) == 7
    # Each reason once, until there is another.
    assert [each.split(" ")[0] for each in told] == ["waiting"] * 5
    assert "LOOKUP_FAILED" in told[0]
    assert "35.235.240.0/20" in told[2]


async def test_patience_with_a_machine_that_boots_ends(far, quick, monkeypatch):
    monkeypatch.setattr(passage, "CONNECT_FOR", 0.0)
    far.refusals = [4003] * 10
    async with tunnel_to(far) as tunnel, connection(tunnel) as (reader, _):
        assert await is_broken_off(reader)
        assert tunnel.failure.code == 4003
    assert len(far.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 4013, 4054, 4999, 1002, 3000])
async def test_a_refusal_for_good_ends_the_connection(far, code):
    async def token() -> str:
        return SECRET

    far.refusals = [code]
    told: list[tuple[str, str]] = []
    async with (
        tunnel_to(far, token=token, tell=lambda *what: told.append(what)) as tunnel,
        connection(tunnel) as (reader, _),
    ):
        assert await is_broken_off(reader)
        assert tunnel.failure.code == code
        assert told == [("failed", str(tunnel.failure))]
        assert "dask-1f-scheduler" in str(tunnel.failure)
        assert ("as the test says" in str(tunnel.failure)) is (code >= 1000)
    assert len(far.requests) == 1


async def test_a_refusal_does_not_end_other_connections(far):
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        far.refusals = [4013]
        async with connection(tunnel) as (other, _):
            assert await is_broken_off(other)
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"


async def test_nobody_is_asked_again_for_who_has_hung_up(far, monkeypatch):
    monkeypatch.setattr(passage, "CONNECT_FOR", 1e6)
    far.refusals = [4003] * 1000
    async with tunnel_to(far) as tunnel:
        async with connection(tunnel):
            await until(lambda: tunnel.failure)
        await until(lambda: not tunnel._passages)


async def test_a_close_reason_too_long_for_a_close_frame_is_told(far):
    reason = "Request is prohibited by organization's policy. " * 5

    def close(socket: WebSocket) -> None:
        frame = struct.pack(">HII", 10, 4054, len(reason)) + reason.encode()
        socket.writer.write(socket.frame(2, frame))
        socket.writer.write(socket.frame(8, struct.pack(">H", 4000)))
        socket.is_closing = True

    far.inject = close
    async with instance(far, echo), tunnel_to(far) as tunnel, connection(tunnel) as (reader, _):
        assert await is_broken_off(reader)
        assert tunnel.failure.code == 4054
        assert reason[:200].strip() in str(tunnel.failure)


async def test_a_port_can_be_asked_for(far, quick):
    async with tunnel_to(far) as tunnel:
        far.backend = ("127.0.0.1", quiet_port())
        assert not await tunnel.answers()
        assert tunnel.failure.code == 4003
        assert "--allow=tcp:8786" in str(tunnel.failure)
        async with instance(far, echo):
            assert await tunnel.answers()
            assert tunnel.failure is None
        assert not await tunnel.answers()
        assert tunnel.failure is not None
    assert far.closes == [1000]


async def test_a_far_end_that_is_not_there_is_named(far):
    async with tunnel_to(far, endpoint=f"ws://127.0.0.1:{quiet_port()}/v4") as tunnel:
        assert not await tunnel.answers()
        assert tunnel.failure.code == 1006
        assert "Connect" in str(tunnel.failure)


async def test_a_far_end_that_says_nothing_is_given_up(far, monkeypatch):
    monkeypatch.setattr(far_end, "OPEN_TIMEOUT", 0.05)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with tunnel_to(far, endpoint=f"ws://127.0.0.1:{port}/v4") as tunnel:
        assert not await tunnel.answers()
        assert "no answer in 0.05 s" in str(tunnel.failure)
    for writer in held:
        writer.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("error", "code"),
    [(CredentialsError("Log in first."), 401), (TransportError("No network."), 1006)],
)
async def test_a_token_that_cannot_be_had_is_the_reason(far, error, code):
    async def token() -> str:
        raise error

    async with tunnel_to(far, token=token) as tunnel:
        assert not await tunnel.answers()
        assert tunnel.failure.code == code
        assert str(error) in str(tunnel.failure)
    assert far.requests == []


# Secrets


@pytest.mark.parametrize("refusal", [0, 401, 4033, 4054])
async def test_the_token_is_nowhere_to_be_read(far, refusal, caplog):
    async def token() -> str:
        return SECRET

    caplog.set_level(logging.DEBUG)
    far.token, far.refusals = SECRET, [refusal]
    async with instance(far, echo), tunnel_to(far, token=token) as tunnel:
        await tunnel.answers()
        shown = [repr(tunnel), repr(tunnel._far_end), caplog.text, repr(tunnel.failure)]
        error: BaseException | None = tunnel.failure
        while error is not None:
            shown.append(repr(error.__dict__))
            error = error.__cause__ or error.__context__
    assert far.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert not any(SECRET in each for each in shown)


async def test_a_token_with_a_line_break_is_no_token(far):
    async def token() -> str:
        return f"{SECRET}\r\nX-Other: header"

    async with tunnel_to(far, token=token) as tunnel:
        assert not await tunnel.answers()
        assert tunnel.failure.code == 401
        assert SECRET not in str(tunnel.failure)
    assert far.requests == []


@pytest.mark.parametrize(
    "endpoint",
    ["ws://tunnel.example.com/v4", "ws://10.0.0.1/v4", "http://127.0.0.1/v4", "wss:///v4", ""],
)
def test_a_token_never_leaves_this_computer_in_the_clear(far, endpoint):
    with pytest.raises(SettingsError, match="iap_endpoint") as caught:
        tunnel_to(far, endpoint=endpoint)
    assert caught.value.key == "iap_endpoint"


# Misbehaviour


def say(*frames: bytes, opcode: int = 2) -> Callable[[WebSocket], None]:
    def inject(socket: WebSocket) -> None:
        for frame in frames:
            socket.writer.write(socket.frame(opcode, frame))

    return inject


@pytest.mark.parametrize(
    ("inject", "code"),
    [
        (say(struct.pack(">HQ", 7, 10**9)), 1002),
        (say(struct.pack(">HI", 1, 3) + b"sid"), 1002),
        (say(struct.pack(">HI", 4, 100) + b"x"), 1002),
        (say(b""), 1002),
        (say(b"text", opcode=1), 1003),
        (say(bytes(100_000)), 1009),
        (say(b"?", opcode=5), 1002),
    ],
    ids=["ACK", "SID", "DATA", "empty", "text", "too long", "opcode"],
)
async def test_a_far_end_that_breaks_the_protocol_breaks_the_connection(far, inject, code):
    far.inject = inject
    async with instance(far, echo), tunnel_to(far) as tunnel, connection(tunnel) as (reader, _):
        assert await is_broken_off(reader)
        assert tunnel.failure.code == code


async def test_frames_that_are_not_known_do_no_harm(far):
    far.inject = say(b"\x00\x0b" + bytes(50), b"\x12\x34")
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"


@pytest.mark.parametrize("seed", range(8))
async def test_rubbish_ends_in_an_error_that_is_a_tunnels(far, seed, quick, monkeypatch, caplog):
    """Bytes at random where frames belong: the connection ends, and nothing else happens."""
    monkeypatch.setattr(passage, "CONNECT_FOR", 0.0)
    monkeypatch.setattr(passage, "RESUME_FOR", 0.0)
    chance = random.Random(seed)  # noqa: S311 # the same each time

    def rubbish(socket: WebSocket) -> None:
        frame = socket.frame(chance.choice([1, 2, 2, 2, 8, 9, 10]), chance.randbytes(8))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(frame))
            frame = frame[:at] + chance.randbytes(chance.randrange(3)) + frame[at + 1 :]
        socket.writer.write(frame)
        socket.writer.write(chance.randbytes(chance.randrange(50)))
        socket.break_off(chance.randbytes(10))

    far.inject = rubbish
    async with instance(far, echo), tunnel_to(far) as tunnel:
        for _ in range(12):
            async with connection(tunnel) as (reader, _):
                with contextlib.suppress(ConnectionError):
                    await read_all(reader)
        await until(lambda: not tunnel._passages)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    # What the client sent on such a connection is none of this test's business.
    far.broken.clear()


# Back-pressure and keep-alives


async def test_who_does_not_read_is_not_sent_more(far):
    written = 0
    piece = content(65536)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        for _ in range(400):
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    async with instance(far, source), tunnel_to(far) as tunnel:
        _, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        writer.transport.pause_reading()
        await until(lambda: far.sessions)
        (session,) = far.sessions.values()
        (end,) = tunnel._ends
        await until(lambda: end.full and len(session.kept) > far.window)
        # The system's own buffers hold some megabytes besides.
        assert session.base <= 16_000_000
        assert end._transport.get_write_buffer_size() <= local_end.HELD + 2 * 65536
        assert written < 400 * len(piece)
        writer.transport.abort()


async def test_much_is_acknowledged_before_it_is_time_for_it(far, monkeypatch):
    monkeypatch.setattr(passage, "ACK_DELAY", 1e6)
    sent = content(2_000_000)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    # It sends no more than this, and its last bytes, for which nobody waits.
    far.window, far.is_rude = 200_000, True
    async with (
        instance(far, source),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, _),
    ):
        assert await read_all(reader) == sent


async def test_a_slow_reader_gets_everything_in_the_end(far):
    sent = content(8_000_000)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    async with (
        instance(far, source),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.transport.pause_reading()
        await until(lambda: tunnel._ends and any(end.full for end in tunnel._ends))
        writer.transport.resume_reading()
        assert await read_all(reader) == sent


async def test_no_more_is_taken_than_the_far_end_confirms(far):
    sent = content(WINDOW + 3_000_000)
    far.ack_every = None

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(sent)) == sent
        writer.write(b"!")
        await writer.drain()

    async with (
        instance(far, sink),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.write(sent)
        await until(lambda: far.sessions)
        (session,) = far.sessions.values()
        await until(lambda: session.received == WINDOW)
        (end,) = tunnel._ends
        await until(lambda: end._is_paused)
        assert session.received == WINDOW
        assert end.pending <= 2 * local_end.HELD
        far.ack_every = 1
        session.socket.writer.write(
            session.socket.frame(2, struct.pack(">HQ", 7, session.received))
        )
        assert await reader.readexactly(1) == b"!"


async def test_a_silent_connection_is_kept_alive(far, monkeypatch):
    monkeypatch.setattr(passage, "KEEP_ALIVE", 0.02)
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        await until(lambda: far.pings >= 5)
        monkeypatch.setattr(passage, "KEEP_ALIVE", 30.0)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"


async def test_a_far_end_that_asks_is_answered(far):
    far.inject = say(b"are you there?", opcode=9)
    async with instance(far, echo), tunnel_to(far) as tunnel, connection(tunnel):
        await until(lambda: far.pongs == [b"are you there?"])


async def test_a_far_end_that_answers_no_ping_is_left(far, monkeypatch):
    monkeypatch.setattr(passage, "KEEP_ALIVE", 0.02)
    far.is_mute = True
    async with (
        instance(far, echo),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        await until(lambda: len(far.requests) >= 2)
        monkeypatch.setattr(passage, "KEEP_ALIVE", 30.0)
        far.is_mute = False
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    assert {request.path for request in far.requests[1:]} == {"/v4/reconnect"}


async def test_a_client_that_does_not_read_is_no_far_end_that_is_gone(far, monkeypatch):
    """Answers to pings wait behind data that nobody takes."""
    monkeypatch.setattr(passage, "KEEP_ALIVE", 0.02)
    sent = content(20_000_000)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    far.window = len(sent)
    async with (
        instance(far, source),
        tunnel_to(far) as tunnel,
        connection(tunnel) as (reader, writer),
    ):
        writer.transport.pause_reading()
        await until(lambda: any(not each._is_reading for each in tunnel._passages.values()))
        asked, requests = far.pings, len(far.requests)
        await until(lambda: far.pings >= asked + 4)
        assert len(far.requests) == requests
        monkeypatch.setattr(passage, "KEEP_ALIVE", 30.0)
        writer.transport.resume_reading()
        assert await read_all(reader) == sent


# Closing


async def test_closing_twice_is_closing(far):
    tunnel = tunnel_to(far)
    await tunnel.start()
    await tunnel.close()
    await tunnel.close()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", tunnel.local_port)


async def test_its_port_can_be_chosen_and_had_again_at_once(far):
    port = quiet_port()
    async with instance(far, echo):
        for _ in range(2):
            async with tunnel_to(far, local_port=port) as tunnel:
                assert tunnel.local_port == port
                async with connection(tunnel) as (reader, writer):
                    writer.write(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                    with pytest.raises(OSError, match="in use"):
                        await tunnel_to(far, local_port=port).start()


async def test_closing_before_opening_is_nothing(far):
    await tunnel_to(far).close()


async def test_it_closes_while_connections_wait_for_a_machine(far):
    far.refusals = [4003] * 100
    async with tunnel_to(far) as tunnel:
        streams = [await asyncio.open_connection("127.0.0.1", tunnel.local_port) for _ in range(5)]
        await until(lambda: len(far.requests) >= 5)
    for reader, writer in streams:
        with contextlib.suppress(ConnectionError):
            assert await read_all(reader) == b""
        writer.transport.abort()


async def test_it_closes_while_the_far_end_says_nothing(far):
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with tunnel_to(far, endpoint=f"ws://127.0.0.1:{port}/v4") as tunnel:
        _, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        await until(lambda: held)
    writer.transport.abort()
    for each in held:
        each.transport.abort()
    server.close()
    await server.wait_closed()


async def test_it_closes_in_the_middle_of_much(far):
    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with instance(far, source):
        async with tunnel_to(far) as tunnel:
            streams = [
                await asyncio.open_connection("127.0.0.1", tunnel.local_port) for _ in range(3)
            ]
            for reader, _ in streams:
                await reader.readexactly(100_000)
        for _, writer in streams:
            writer.transport.abort()


async def test_closing_that_is_cancelled_closes_all_the_same(far):
    async with instance(far, echo):
        tunnel = tunnel_to(far)
        await tunnel.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        writer.write(b"hello")
        await reader.readexactly(5)
        closing = asyncio.ensure_future(tunnel.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not tunnel._passages
        assert not tunnel._ends
        writer.transport.abort()


@pytest.mark.parametrize("turns", range(6))
async def test_who_connects_in_the_turn_in_which_it_closes_is_hung_up_on(far, turns):
    async with instance(far, echo):
        tunnel = tunnel_to(far)
        await tunnel.start()
        connecting = [
            asyncio.ensure_future(asyncio.open_connection("127.0.0.1", tunnel.local_port))
            for _ in range(5)
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        await tunnel.close()
        for attempt in connecting:
            with contextlib.suppress(ConnectionError):
                reader, writer = await attempt
                with contextlib.suppress(ConnectionError):
                    assert await read_all(reader) == b""
                writer.transport.abort()


async def test_asking_for_a_port_can_be_cancelled(far, monkeypatch):
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with tunnel_to(far, endpoint=f"ws://127.0.0.1:{port}/v4") as tunnel:
        asking = asyncio.ensure_future(tunnel.answers())
        await until(lambda: held)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    for each in held:
        each.transport.abort()
    server.close()
    await server.wait_closed()


async def test_a_port_is_asked_for_in_vain_when_the_tunnel_closes_meanwhile(far):
    asked, leave = asyncio.Event(), asyncio.Event()

    async def token() -> str | None:
        asked.set()
        await leave.wait()
        return None

    tunnel = tunnel_to(far, token=token)
    await tunnel.start()
    asking = asyncio.ensure_future(tunnel.answers())
    await asked.wait()
    await tunnel.close()
    leave.set()
    assert not await asking
    assert "this end was closed" in str(tunnel.failure)


# TLS and proxies


def certified(host: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the context of a server with a certificate, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "far end")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    both = folder / "far-end.pem"
    both.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(both)
    return server, ssl.create_default_context(cafile=str(both))


# On Python 3.10 asyncio takes a TLS connection that was reset for one that nobody has closed.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _SSLProtocolTransport:"
    "pytest.PytestUnraisableExceptionWarning"
)
async def test_it_speaks_tls(tmp_path):
    server, trust = certified("127.0.0.1", tmp_path)
    sent = content(2_000_000)
    async with IapDouble(tls=server) as far:
        far.cuts = [500_000] * 3
        async with (
            instance(far, echo),
            tunnel_to(far, trust=trust) as tunnel,
            connection(tunnel) as (reader, writer),
        ):
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
    assert len(far.requests) == 4


@pytest.mark.parametrize("host", ["127.0.0.1", "other.example.com"])
async def test_who_is_not_trusted_learns_no_token(host, tmp_path):
    server, trust = certified(host, tmp_path)

    async def token() -> str:
        return SECRET

    async with IapDouble(tls=server) as far:
        strange = None if host == "127.0.0.1" else trust
        async with tunnel_to(far, trust=strange, token=token) as tunnel:
            async with connection(tunnel) as (reader, _):
                assert await is_broken_off(reader)
            assert tunnel.failure.code == 1015
            assert "SSL_CERT_FILE" in str(tunnel.failure)
    assert far.requests == []


@contextlib.asynccontextmanager
async def company_proxy(far: IapDouble, status: int = 200) -> AsyncIterator[tuple[int, list[str]]]:
    """Run a proxy that leads whoever asks to the far end."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {status} Answer\r\n\r\n".encode())
        if status != 200:
            return
        there, back = await asyncio.open_connection("127.0.0.1", far.port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.transport.abort()

        try:
            await asyncio.gather(copy(reader, back), copy(there, writer))
        finally:
            back.transport.abort()

    backend = far.backend
    async with instance(far, serve):
        (_, port), far.backend = far.backend, backend
        yield port, asked


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "https_proxy", "all_proxy"):
        for each in (name, name.upper()):
            monkeypatch.delenv(each, raising=False)


async def test_the_companys_proxy_is_used(tmp_path, monkeypatch):
    server, trust = certified("tunnel.example.com", tmp_path)

    async def token() -> str:
        return SECRET

    # An entry for everybody: aiohttp itself would refuse to send a token beside it.
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n", "utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    async with IapDouble(tls=server) as far, company_proxy(far) as (port, asked):
        without_proxies(monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{port}")
        async with (
            instance(far, echo),
            tunnel_to(
                far, endpoint="wss://tunnel.example.com/v4", trust=trust, token=token
            ) as tunnel,
            connection(tunnel) as (reader, writer),
        ):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello", tunnel.failure
    (request,) = asked
    assert request.startswith("CONNECT tunnel.example.com:443 HTTP/1.1")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}" in request
    # The proxy is told nothing that is for the far end only.
    assert SECRET not in request
    assert far.requests[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_a_proxy_that_wants_a_password_is_named(far, monkeypatch):
    async with company_proxy(far, 407) as (port, _):
        without_proxies(monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        async with tunnel_to(far, endpoint="wss://tunnel.example.com/v4") as tunnel:
            assert not await tunnel.answers()
            assert tunnel.failure.code == 407


@pytest.mark.parametrize("status", [403, 502])
async def test_a_proxy_that_refuses_the_way_is_told_from_the_far_end(far, monkeypatch, status):
    async with company_proxy(far, status) as (port, _):
        without_proxies(monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        async with tunnel_to(far, endpoint="wss://tunnel.example.com/v4") as tunnel:
            assert not await tunnel.answers()
            assert tunnel.failure.code == status
            assert f"the proxy http://127.0.0.1:{port} refuses" in str(tunnel.failure)
            assert "tunnelResourceAccessor" not in str(tunnel.failure)
            assert "secret" not in str(tunnel.failure)


async def test_a_proxy_that_is_not_there_is_named(far, monkeypatch):
    without_proxies(monkeypatch)
    port = quiet_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
    async with tunnel_to(far, endpoint="wss://tunnel.example.com/v4") as tunnel:
        assert not await tunnel.answers()
        assert f"the proxy http://127.0.0.1:{port} (HTTPS_PROXY)" in str(tunnel.failure)
        assert "secret" not in str(tunnel.failure)


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://me:secret@127.0.0.1:9",
        "http://me:secret@[::1",
        "http://me:secret@",
        "http://me:secret@127.0.0.1:x",
    ],
)
async def test_what_is_no_proxy_of_http_is_told_and_not_asked(far, monkeypatch, proxy):
    without_proxies(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", proxy)
    async with tunnel_to(far, endpoint="wss://tunnel.example.com/v4") as tunnel:
        assert not await tunnel.answers()
        assert "ALL_PROXY names cannot be used" in str(tunnel.failure)
        assert "NO_PROXY=tunnel.example.com" in str(tunnel.failure)
        error: BaseException | None = tunnel.failure
        while error is not None:
            assert "secret" not in repr(error)
            error = error.__cause__ or error.__context__


async def test_a_local_engine_is_asked_without_the_companys_proxy(far, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{quiet_port()}")
    async with instance(far, echo), tunnel_to(far) as tunnel:
        assert await tunnel.answers()
