"""Tunnels of Identity-Aware Proxy to machines of the local Compute Engine, frame by frame."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import select
import socket
import struct
import threading
import time

import pytest
from clusters import PATIENCE, wait_until
from ports import quiet_port
from rest import PROJECT, ZONE, Rest
from tunnel_client import (
    BINARY,
    LONG_CLOSE,
    PING,
    PONG,
    RESUMED,
    SID,
    TEXT,
    Closed,
    HostKind,
    Refusal,
    Tunnel,
    ack,
    data,
    read_all,
    read_exactly,
    serving,
    target,
)

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.iap import session as session_module
from dask_gce.emulator.iap.script import Tunnels

#: Bytes of any kind, and more than every buffer on the way holds together.
MUCH = random.Random(6).randbytes(24 * 2**20)  # noqa: S311 # any bytes, no secret

#: Bytes that may be under way without the client's word, and the most that is read in one piece.
WINDOW, PIECE = 3 * 2**19, 2**18


@pytest.fixture
def emulator():
    with ComputeEmulator(HostKind()) as running:
        Rest(running).insert(name="a")
        yield running


@pytest.fixture
def backend():
    with serving() as running:
        yield running


@pytest.fixture
def connect(emulator, backend):
    """Return a function that opens a tunnel to the backend, and returns both ends."""
    with contextlib.ExitStack() as stack:

        def open_one(**options):
            tunnel = stack.enter_context(
                Tunnel(emulator.endpoint, **{**target(backend.port), **options})
            )
            assert tunnel.receive() == SID
            return tunnel, backend.accept()

        yield open_one


def resume(emulator, tunnel, **options):
    """Take a session up again where the client left it."""
    query = {"sid": tunnel.sid, "ack": len(tunnel.received), "newWebsocket": "True", "zone": ZONE}
    after = Tunnel(emulator.endpoint, "reconnect", **{**query, **options})
    after.sid, after.received = tunnel.sid, tunnel.received
    try:
        assert after.receive() == RESUMED
    except BaseException:
        after.break_off()
        raise
    return after


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def seal(content):
    """Return what tells contents apart; of those themselves pytest would show the difference."""
    return len(content), hashlib.sha256(content).hexdigest()


def send_in_pieces(tunnel, content):
    for at in range(0, len(content), 16384):
        tunnel.send(data(content[at : at + 16384]))


# Bytes


def test_what_either_end_says_the_other_end_hears(connect):
    tunnel, machine = connect()
    machine.sendall(b"SSH-2.0")
    assert tunnel.receive_data(7) == b"SSH-2.0"
    tunnel.send(data(b"hello"))
    assert read_exactly(machine, 5) == b"hello"
    tunnel.wait_ack(5)
    tunnel.send_frame(PING, b"there?")
    assert tunnel.receive_frame() == (PONG, b"there?")


def test_the_machine_hears_when_the_client_closes_and_has_all_that_it_said(emulator, connect):
    tunnel, machine = connect()
    tunnel.send(data(b"the end"))
    tunnel.send_close()
    assert read_all(machine) == b"the end"
    assert tunnel.wait_close() == 1000
    wait_until(lambda: emulator.tunnels.open == 0)
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel)
    assert caught.value.code == 4001


def test_the_client_hears_when_the_machine_closes_and_has_all_that_it_said(connect):
    tunnel, machine = connect()
    machine.sendall(b"the end")
    machine.shutdown(socket.SHUT_WR)
    assert tunnel.wait_close() == 1000
    assert tunnel.received == b"the end"


def test_much_goes_down_while_it_is_acknowledged(connect):
    tunnel, machine = connect()
    sending = in_thread(machine.sendall, MUCH)
    while len(tunnel.received) < len(MUCH):
        tunnel.receive()
        tunnel.send(ack(len(tunnel.received)))
    sending.join()
    assert seal(tunnel.received) == seal(MUCH)


def test_much_goes_up_and_is_acknowledged_in_order(connect):
    tunnel, machine = connect()
    sending = in_thread(send_in_pieces, tunnel, MUCH)
    assert seal(read_exactly(machine, len(MUCH))) == seal(MUCH)
    sending.join()
    tunnel.wait_ack(len(MUCH))
    assert tunnel.acks == sorted(set(tunnel.acks))
    assert tunnel.acks[-1] == len(MUCH)


def test_little_is_acknowledged_too(connect):
    tunnel, machine = connect()
    tunnel.send(data(b"x"))
    tunnel.wait_ack(1)
    assert read_exactly(machine, 1) == b"x"


# Back-pressure


def test_who_acknowledges_nothing_gets_no_more_than_the_window(connect):
    tunnel, machine = connect()
    sending = in_thread(machine.sendall, MUCH)
    tunnel.receive_data(WINDOW)
    # Nothing says that no more will come: what has come by now must not be beyond.
    while select.select([tunnel.socket], [], [], 0.2)[0]:
        tunnel.receive()
    assert len(tunnel.received) <= WINDOW + PIECE
    while len(tunnel.received) < len(MUCH):
        tunnel.send(ack(len(tunnel.received)))
        tunnel.receive()
    sending.join()
    assert seal(tunnel.received) == seal(MUCH)


def test_who_is_not_listened_to_has_to_wait_and_is_heard_to_the_end(connect):
    tunnel, machine = connect()
    content = MUCH * 3
    pieces = (content[at : at + 16384] for at in range(0, len(content), 16384))
    stream = b"".join(
        struct.pack("!BBH", 0x82, 0xFE, len(piece) + 6) + bytes(4) + data(piece) for piece in pieces
    )
    sent = 0
    tunnel.socket.setblocking(False)
    while select.select([], [tunnel.socket], [], 0.2)[1]:
        sent += tunnel.socket.send(stream[sent : sent + 2**20])
        assert sent < len(stream), "somebody holds all of it"
    tunnel.socket.setblocking(True)

    def go_on():
        tunnel.socket.sendall(memoryview(stream)[sent:])
        tunnel.send_close()
        tunnel.socket.shutdown(socket.SHUT_WR)

    going = in_thread(go_on)
    assert seal(read_all(machine)) == seal(content)
    going.join()


# Sessions


def test_a_session_goes_on_where_it_was_cut_off(emulator, connect):
    tunnel, machine = connect()
    machine.sendall(MUCH[:100_000])
    tunnel.receive_data(40_000)
    tunnel.send(ack(20_000))
    tunnel.send(data(b"one "))
    tunnel.wait_ack(4)
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    del tunnel.received[30_000:]  # what it has not kept it asks for again
    machine.sendall(MUCH[100_000:200_000])
    with resume(emulator, tunnel) as after:
        assert after.resumed_from == 4
        assert seal(after.receive_data(200_000)) == seal(MUCH[:200_000])
        after.send(data(b"two"))
        assert read_exactly(machine, 7) == b"one two"
        after.wait_ack(7)
    assert (emulator.tunnels.connects, emulator.tunnels.reconnects) == (1, 1)


def test_the_last_words_of_a_machine_that_has_ended_are_kept(emulator, connect):
    tunnel, machine = connect()
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    machine.sendall(b"the end")
    machine.close()
    with resume(emulator, tunnel) as after:
        assert after.wait_close() == 1000
        assert after.received == b"the end"


def test_who_did_not_hear_the_end_hears_it_again(emulator, connect):
    tunnel, machine = connect()
    machine.sendall(b"the end")
    machine.close()
    wait_until(lambda: emulator.tunnels.closes(1000) == 1)
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    with resume(emulator, tunnel) as after:
        assert after.wait_close() == 1000
        assert after.received == b"the end"


def test_a_machine_that_breaks_off_is_told_apart(connect):
    tunnel, machine = connect()
    machine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    machine.close()
    assert tunnel.wait_close() == 4010


def test_a_session_is_remembered_for_a_while_and_then_its_connection_ends():
    with (
        serving() as backend,
        ComputeEmulator(HostKind(), timings=Timings(resuming=0.05)) as emulator,
    ):
        Rest(emulator).insert(name="a")
        with Tunnel(emulator.endpoint, **target(backend.port)) as tunnel:
            tunnel.receive()
            machine = backend.accept()
        assert read_all(machine) == b""
        with pytest.raises(Closed) as caught:
            resume(emulator, tunnel)
    assert caught.value.code == 4001


def test_a_session_has_one_websocket_at_a_time(emulator, connect):
    tunnel, machine = connect()
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel)
    assert caught.value.code == 4002
    tunnel.send(data(b"still there"))
    assert read_exactly(machine, 11) == b"still there"


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells")
def test_a_websocket_that_is_deserted_is_none_though_nobody_looked_at_it(emulator, connect):
    tunnel, machine = connect()
    tunnel.socket.setblocking(False)
    frame = struct.pack("!BBH", 0x82, 0xFE, 16384 + 6) + bytes(4) + data(bytes(16384))
    stream, sent = frame * 2048, 0
    while select.select([], [tunnel.socket], [], 0.2)[1]:
        sent += tunnel.socket.send(stream[sent : sent + 2**20])
        assert sent < len(stream), "somebody holds all of it"
    # The machine takes nothing, so the websocket is not read, and its end not noticed.
    tunnel.break_off()
    with resume(emulator, tunnel) as after:
        assert after.resumed_from is not None
        machine.sendall(b"hello")
        assert after.receive_data(5) == b"hello"


@pytest.mark.parametrize(
    ("given", "code"),
    [({"ack": 11}, 4006), ({"ack": 3}, 4074), ({"sid": "another"}, 4001)],
)
def test_what_is_no_place_to_go_on_at_is_refused(emulator, connect, given, code):
    tunnel, machine = connect()
    machine.sendall(b"ten bytes.")
    tunnel.receive_data(10)
    tunnel.send(ack(4))
    tunnel.send(data(b"x"))
    tunnel.wait_ack(1)
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel, **given)
    assert caught.value.code == code
    resume(emulator, tunnel).break_off()


def test_a_session_does_not_outlive_its_instance(emulator, connect):
    tunnel, machine = connect()
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    rest = Rest(emulator)
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    rest.insert(name="a")
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel)
    assert caught.value.code == 4051
    assert read_all(machine) == b""


def test_the_end_is_told_when_the_client_has_acknowledged(connect, monkeypatch):
    monkeypatch.setattr(session_module, "_LINGER", 10 * PATIENCE)
    tunnel, machine = connect()
    machine.sendall(MUCH[:100_000])
    machine.shutdown(socket.SHUT_WR)
    tunnel.receive_data(100_000)
    # What is said now is heard after the machine's end, and answered: nothing was closed by that.
    tunnel.send(data(b"x"))
    tunnel.wait_ack(1)
    tunnel.send(ack(100_000))
    assert tunnel.wait_close() == 1000


def test_the_end_is_told_though_the_client_acknowledges_seldom(connect, monkeypatch):
    monkeypatch.setattr(session_module, "_LINGER", 0.05)
    tunnel, machine = connect()
    machine.sendall(MUCH[:100_000])
    machine.close()
    assert tunnel.wait_close() == 1000
    assert seal(tunnel.received) == seal(MUCH[:100_000])


def test_tunnels_end_with_the_emulator(backend):
    with ComputeEmulator(HostKind()) as emulator:
        Rest(emulator).insert(name="a")
        tunnel = Tunnel(emulator.endpoint, **target(backend.port))
        deserted = Tunnel(emulator.endpoint, **target(backend.port))
        tunnel.receive(), deserted.receive()
        machines = [backend.accept(), backend.accept()]
        deserted.break_off()
        wait_until(lambda: emulator.tunnels.open == 1)
    assert [read_all(one) for one in machines] == [b"", b""]
    assert tunnel.wait_close() == 1006
    tunnel.break_off()


# Who keeps to the protocol, and who does not


def test_a_long_close_is_no_reason_to_close(connect):
    tunnel, machine = connect()
    tunnel.send(struct.pack("!H", LONG_CLOSE) + b"whatever")
    tunnel.send(data(b"x"))
    assert read_exactly(machine, 1) == b"x"


@pytest.mark.parametrize(
    ("opcode", "message", "code"),
    [
        (TEXT, b"hello", 4007),
        (BINARY, struct.pack("!H", 99), 4008),
        (BINARY, struct.pack("!HI", 1, 0), 4008),
        (BINARY, b"", 4013),
        (BINARY, b"\0", 4013),
        (BINARY, struct.pack("!HI", 4, 3) + b"four", 4013),
        (BINARY, struct.pack("!HI", 4, 5) + b"four", 4013),
        (BINARY, data(bytes(16385)), 4013),
        (BINARY, struct.pack("!HI", 7, 0), 4013),
        (BINARY, ack(11), 4006),
        (BINARY, ack(3), 4005),
    ],
)
def test_who_breaks_the_protocol_is_told_how_and_has_no_session_any_more(
    emulator, connect, opcode, message, code
):
    tunnel, machine = connect()
    machine.sendall(b"ten bytes.")
    tunnel.receive_data(10)
    tunnel.send(ack(4))
    tunnel.send_frame(opcode, message)
    assert tunnel.wait_close() == code
    assert read_all(machine) == b""
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel)
    assert caught.value.code == 4001


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Origin": None}, {}, 403),
        ({"Origin": "https://example.org"}, {}, 403),
        ({"Host": "example.org"}, {}, 403),
        ({"Sec-WebSocket-Protocol": None}, {}, 400),
        ({"Sec-WebSocket-Protocol": "chat"}, {}, 400),
        ({"Upgrade": None}, {}, 400),
        ({}, {"port": "ssh"}, 400),
        ({}, {"port": "0"}, 400),
        ({}, {"port": "65536"}, 400),
        ({}, {"instance": ""}, 400),
        ({}, {"project": ""}, 400),
    ],
)
def test_what_is_no_request_for_a_tunnel_gets_none(emulator, headers, query, status):
    with pytest.raises(Refusal) as caught:
        Tunnel(emulator.endpoint, headers=headers, **{**target(1), **query})
    assert caught.value.status == status
    assert emulator.tunnels.connects == 0


@pytest.mark.parametrize("query", [{"sid": "x"}, {"sid": "x", "ack": "-1"}, {"ack": "0"}])
def test_what_is_no_request_for_a_session_gets_none(emulator, query):
    with pytest.raises(Refusal) as caught:
        Tunnel(emulator.endpoint, "reconnect", **query)
    assert caught.value.status == 400


def test_the_origin_of_tunnels_opens_nothing_else(emulator):
    rest = Rest(emulator)
    headers = {"Origin": "bot:iap-tunneler"}
    status, _, _ = rest.raw("GET", f"/compute/v1/projects/{PROJECT}/zones", headers=headers)
    assert status == 403


def test_who_must_bear_a_token_gets_no_tunnel_without(backend):
    with ComputeEmulator(HostKind(), token="secret") as emulator:
        rest, headers = Rest(emulator), {"Authorization": "Bearer secret"}
        for token in ("", "other"):
            with pytest.raises(Refusal) as caught:
                Tunnel(emulator.endpoint, token=token, **target(backend.port))
            assert caught.value.status == 401
        assert rest.raw("GET", "/client-address")[0] == 401
        assert rest.raw("GET", "/client-address", headers=headers)[1] == b"127.0.0.1"
        with Tunnel(emulator.endpoint, token="secret", **target(backend.port)) as tunnel:
            assert tunnel.wait_close() == 4047


def test_who_may_not_use_tunnels_is_told_so(emulator, connect):
    tunnel, machine = connect()
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    emulator.permissions.deny("iap.tunnelInstances.accessViaIAP")
    for attempt in (connect, lambda: resume(emulator, tunnel)):
        with pytest.raises(Closed) as caught:
            attempt()
        assert caught.value.code == 4033
    emulator.permissions.clear()
    machine.sendall(b"x")
    with resume(emulator, tunnel) as after:
        assert after.receive_data(1) == b"x"


@pytest.mark.parametrize(
    "given",
    [
        {"instance": "b"},
        {"zone": "us-central1-b"},
        {"project": "another-project"},
        {"interface": "nic1"},
    ],
)
def test_where_there_is_no_such_instance_there_is_no_way(connect, given):
    with pytest.raises(Closed) as caught:
        connect(**given)
    assert caught.value.code == 4047


def test_an_instance_that_is_off_is_not_reached(emulator, connect):
    rest = Rest(emulator)
    rest.wait(rest.post(f"zones/{ZONE}/instances/a/stop"))
    with pytest.raises(Closed) as caught:
        connect()
    assert caught.value.code == 4047


def test_where_nobody_listens_the_far_end_says_so(connect):
    with pytest.raises(Closed) as caught:
        connect(port=quiet_port())
    assert caught.value.code == 4003


def test_a_machine_of_paper_is_not_reached(backend):
    with ComputeEmulator("paper") as emulator:
        Rest(emulator).insert(name="a")
        with Tunnel(emulator.endpoint, **target(backend.port)) as tunnel:
            assert tunnel.wait_close() == 4003


def test_a_machine_of_processes_is_reached_at_its_own_address(process_emulator):
    rest = Rest(process_emulator)
    script = """#!/bin/bash
exec python3 -c "
import socket
server = socket.create_server(('', 8786))
while True:
    connection, _ = server.accept()
    with connection:
        connection.sendall(connection.getsockname()[0].encode())
"
"""
    metadata = {"items": [{"key": "startup-script", "value": script}]}
    rest.insert(name="a", metadata=metadata)
    address = rest.instance("a")["networkInterfaces"][0]["networkIP"]
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with Tunnel(process_emulator.endpoint, **target(8786)) as tunnel:
            if tunnel.wait_close() == 1000:
                assert tunnel.received.decode() == address
                break
            assert not tunnel.received
    else:
        pytest.fail("the machine does not answer")
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


# The script


def test_every_cut_is_got_over(emulator, connect):
    emulator.tunnels.cut_every(5 * 2**20)
    tunnel, machine = connect()
    heard = []
    sending = in_thread(machine.sendall, MUCH)
    hearing = in_thread(lambda: heard.append(read_exactly(machine, 2**20)))
    sent, acknowledged = 0, 0
    while len(tunnel.received) < len(MUCH) or acknowledged < 2**20:
        try:
            if sent < 2**20:
                tunnel.send(data(MUCH[sent : sent + 16384]))
                sent += 16384
            tunnel.receive()
            acknowledged = max([acknowledged, *tunnel.acks])
            tunnel.send(ack(len(tunnel.received)))
        except (Closed, OSError):
            tunnel.break_off()
            tunnel = resume(emulator, tunnel)
            sent = acknowledged = tunnel.resumed_from
    sending.join()
    hearing.join()
    tunnel.break_off()
    assert seal(tunnel.received) == seal(MUCH)
    assert seal(heard[0]) == seal(MUCH[: 2**20])
    assert emulator.tunnels.reconnects >= 4
    # The last one may come with the last bytes, so that nobody goes on.
    assert emulator.tunnels.cuts - emulator.tunnels.reconnects in (0, 1)


def test_websockets_are_closed_as_often_as_it_was_said(emulator, connect):
    emulator.tunnels.close_next(4003, times=2)
    emulator.tunnels.close_next(4047)
    for left, code in (([4003, 4047], 4003), ([4047], 4003), ([], 4047)):
        with pytest.raises(Closed) as caught:
            connect()
        assert caught.value.code == code
        assert emulator.tunnels.unused() == left
    tunnel, machine = connect()
    assert emulator.tunnels.closes(4003) == 2
    tunnel.break_off()
    wait_until(lambda: emulator.tunnels.open == 0)
    emulator.tunnels.close_next(4002)
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel)
    assert caught.value.code == 4002
    machine.sendall(b"x")
    with resume(emulator, tunnel) as after:
        assert after.receive_data(1) == b"x"


def test_a_token_expires_and_another_one_goes_on(emulator, connect):
    emulator.tunnels.require_fresh_token_after(50_000)
    tunnel, machine = connect(token="first")
    machine.sendall(MUCH[:80_000])
    assert tunnel.wait_close() == 4004
    tunnel.send_close()
    wait_until(lambda: emulator.tunnels.open == 0)
    with pytest.raises(Closed) as caught:
        resume(emulator, tunnel, token="first")
    assert caught.value.code == 4004
    emulator.tunnels.clear()
    with resume(emulator, tunnel, token="second") as after:
        machine.sendall(MUCH[80_000:100_000])
        assert seal(after.receive_data(100_000)) == seal(MUCH[:100_000])


def test_who_bears_no_token_needs_no_fresh_one(emulator, connect):
    emulator.tunnels.require_fresh_token_after(1)
    tunnel, machine = connect()
    machine.sendall(b"hello")
    assert tunnel.receive_data(5) == b"hello"
    machine.close()
    assert tunnel.wait_close() == 1000


def test_all_that_are_open_can_be_cut_or_closed_at_once(emulator, connect):
    both = [connect() for _ in range(2)]
    emulator.tunnels.cut()
    for tunnel, _ in both:
        assert tunnel.wait_close() == 1006
    wait_until(lambda: emulator.tunnels.open == 0)
    assert emulator.tunnels.cuts == 2
    after = [resume(emulator, tunnel) for tunnel, _ in both]
    emulator.tunnels.close(4000)
    for tunnel in after:
        assert tunnel.wait_close() == 4000
        tunnel.send_close()
    for tunnel, machine in both:
        assert read_all(machine) == b""
        with pytest.raises(Closed) as caught:
            resume(emulator, tunnel)
        assert caught.value.code == 4001
    for tunnel in after:
        tunnel.break_off()


@pytest.mark.parametrize(
    "deed",
    [
        lambda tunnels: tunnels.cut_every(0),
        lambda tunnels: tunnels.require_fresh_token_after(-1),
        lambda tunnels: tunnels.close_next(1006),
        lambda tunnels: tunnels.close_next(4003, times=0),
        lambda tunnels: tunnels.close(5000),
    ],
)
def test_what_cannot_go_wrong_is_refused(deed):
    with pytest.raises(ValueError):
        deed(Tunnels())


# TLS, and the client's own address


def test_the_same_is_answered_over_tls_by_whom_the_certificate_names(backend):
    with ComputeEmulator(HostKind(), tls_port=0) as emulator:
        Rest(emulator).insert(name="a")
        trust = emulator.tls_certificate
        with Tunnel(emulator.tls_endpoint, trust=trust, **target(backend.port)) as tunnel:
            assert tunnel.receive() == SID
            machine = backend.accept()
            tunnel.send(data(b"hello"))
            assert read_exactly(machine, 5) == b"hello"
            machine.sendall(MUCH[: 2**20])
            assert seal(tunnel.receive_data(2**20)) == seal(MUCH[: 2**20])
        assert emulator.endpoint != emulator.tls_endpoint.replace("https", "http")


def test_without_a_port_there_is_no_tls(emulator):
    with pytest.raises(RuntimeError, match="tls_port"):
        emulator.tls_endpoint  # noqa: B018 # that it cannot be had is the point
    with pytest.raises(RuntimeError, match="tls_port"):
        emulator.tls_certificate  # noqa: B018


def test_a_client_is_told_its_own_address(emulator):
    rest = Rest(emulator)
    assert rest.raw("GET", "/client-address")[:2] == (200, b"127.0.0.1")
    for headers in ({"Host": "example.org"}, {"Origin": "https://example.org"}):
        status, body, _ = rest.raw("GET", "/client-address", headers=headers)
        assert status == json.loads(body)["error"]["code"] == 403
