"""Tunnels and clients of namespace machines: whom the enforced firewall rules let through."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest
from clusters import PATIENCE, wait_until
from namespace_guests import NEEDS_NAMESPACES, Guest, emulate, open_port
from rest import Rest
from tunnel_client import SID, Tunnel, data, target

from dask_gce.emulator.iap import far_end

pytestmark = NEEDS_NAMESPACES

#: https://cloud.google.com/iap/docs/using-tcp-forwarding
TUNNELS = "35.235.240.0/20"


@pytest.fixture
def rest(monkeypatch):
    # However busy this machine is; what is to fail is given less.
    monkeypatch.setattr(far_end, "_CONNECTING", PATIENCE)
    with emulate() as emulator:
        yield Rest(emulator)
    assert emulator.leftovers() == []


def attempt(rest, port, instance="a"):
    """Return how a tunnel ended, and what it brought."""
    with Tunnel(rest.emulator.endpoint, **target(port, instance=instance)) as tunnel:
        return tunnel.wait_close(), bytes(tunnel.received).decode()


def test_a_tunnel_needs_a_rule_for_where_tunnels_come_from(rest, monkeypatch):
    # Most of all a machine that nobody reaches otherwise.
    a = Guest(rest, "a", external=False, tags={"items": ["scheduler"]})
    b = Guest(rest, "b")
    for one in (a, b):
        one.serve(8000)
    open_port(rest, "elsewhere", sourceRanges=["35.235.224.0/20", "198.51.100.0/24"])
    with monkeypatch.context() as patched:
        # Nobody says no: whom no rule admits waits to the end.
        patched.setattr(far_end, "_CONNECTING", 0.5)
        assert attempt(rest, 8000) == (4003, "")
    open_port(rest, "tunnels", sourceRanges=[TUNNELS], targetTags=["scheduler"])
    code, seen = attempt(rest, 8000)
    assert code == 1000
    assert ip_address(seen) in ip_network(TUNNELS)
    with monkeypatch.context() as patched:
        patched.setattr(far_end, "_CONNECTING", 0.5)
        assert attempt(rest, 8000, "b") == (4003, "")
    # There is a rule for the port, but nobody listens any more.
    a.run("pkill -f '[/]run/serve-8000.py'")
    a.run("while bash -c '</dev/tcp/127.0.0.1/8000' 2>/dev/null; do sleep 0.02; done")
    assert attempt(rest, 8000) == (4003, "")


def test_much_goes_through_a_tunnel_and_back(rest):
    a = Guest(rest, "a", external=False)
    a.serve(
        8000,
        "while piece := connection.recv(2**18):\n    connection.sendall(piece)",
    )
    open_port(rest, sourceRanges=[TUNNELS])
    content = bytes(range(256)) * 2**12
    with Tunnel(rest.emulator.endpoint, **target(8000)) as tunnel:
        assert tunnel.receive() == SID
        for at in range(0, len(content), 16384):
            tunnel.send(data(content[at : at + 16384]))
        assert tunnel.receive_data(len(content)) == content


def test_machines_do_not_get_to_where_tunnels_come_from(rest):
    a = Guest(rest, "a")
    a.serve(8000)
    open_port(rest, sourceRanges=[TUNNELS])
    with Tunnel(rest.emulator.endpoint, **target(8000)) as tunnel:
        tunnel.wait_close()
        where = bytes(tunnel.received).decode()
    assert not a.reaches(where, 8000)
    gateway = str(ip_network(TUNNELS)[1])
    assert not a.reaches(gateway, 80)


def test_a_rule_for_the_clients_own_address_lets_the_client_in_and_one_for_another_does_not(rest):
    a = Guest(rest, "a")
    for port in (8000, 8001):
        a.serve(port)
    status, address, _ = rest.raw("GET", "/client-address")
    own = ip_address(address.decode())
    assert status == 200
    open_port(rest, "another", 8000, sourceRanges=[f"{own + 1}/32"])
    open_port(rest, "own", 8001, sourceRanges=[f"{own}/32"])

    def ask(port):
        try:
            with socket.create_connection((a.external, port), PATIENCE) as connection:
                return connection.recv(100).decode()
        except ConnectionError:
            return ""

    # The host listens for both at once, if it does.
    wait_until(lambda: ask(8001))
    assert ask(8001) == str(own)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((a.external, 8000), PATIENCE)


def test_a_session_goes_on_after_a_cut(rest):
    a = Guest(rest, "a", external=False)
    a.serve(8000, "while piece := connection.recv(2**18):\n    connection.sendall(piece)")
    open_port(rest, sourceRanges=[TUNNELS])
    with Tunnel(rest.emulator.endpoint, **target(8000)) as tunnel:
        assert tunnel.receive() == SID
        tunnel.send(data(b"before"))
        tunnel.receive_data(6)
    wait_until(lambda: rest.emulator.tunnels.open == 0)
    query = {"sid": tunnel.sid, "ack": 2}
    with Tunnel(rest.emulator.endpoint, "reconnect", **query) as after:
        after.send(data(b" and after"))
        assert after.receive_data(14) == b"fore and after"
        assert after.resumed_from == 6
