"""gcloud's own ``start-iap-tunnel`` carries bytes through the local Compute Engine, unchanged.

As `docs/emulator.md` says.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from clusters import PATIENCE, wait_until
from ports import quiet_port
from rest import PROJECT, ZONE, Rest
from tunnel_client import HostKind, read_all, read_exactly, serving

from dask_gce.emulator import ComputeEmulator

pytestmark = [
    pytest.mark.gcloud,
    pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not on this machine"),
]


@pytest.fixture
def emulator():
    with ComputeEmulator(HostKind(), tls_port=0) as running:
        Rest(running).insert(name="a")
        yield running


@pytest.fixture
def backend():
    with serving() as running:
        yield running


@pytest.fixture
def port(emulator, backend, tmp_path):
    """Return the port on which gcloud listens, once it has tried its tunnel."""
    token = tmp_path / "token"
    token.write_text("ya29.anything")
    settings = {
        "core/project": PROJECT,
        "core/disable_usage_reporting": "true",
        "core/disable_prompts": "true",
        "component_manager/disable_update_check": "true",
        "api_endpoint_overrides/compute": f"{emulator.endpoint}/compute/v1/",
        "auth/access_token_file": str(token),
        "compute/zone": ZONE,
    }
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("CLOUDSDK_")
    }
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    for name, value in settings.items():
        section, key = name.split("/")
        environment[f"CLOUDSDK_{section.upper()}_{key.upper()}"] = value
    local = quiet_port()
    far_end = emulator.tls_endpoint.replace("https:", "wss:")
    with (tmp_path / "output").open("w+") as output:
        gcloud = subprocess.Popen(
            [
                *("gcloud", "compute", "start-iap-tunnel", "a", str(backend.port)),
                f"--local-host-port=127.0.0.1:{local}",
                # Both are hidden, and TLS is all that it speaks.
                f"--iap-tunnel-url-override={far_end}/v4",
                "--iap-tunnel-insecure-disable-websocket-cert-check",
            ],
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            # It tries a tunnel first, and listens when that was made.
            assert read_all(backend.accept()) == b""
            yield local
        finally:
            gcloud.send_signal(signal.SIGINT)
            gcloud.wait(PATIENCE)
            output.seek(0)
            print(output.read())


def dial(port):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "gcloud does not listen"
            time.sleep(0.05)
        else:
            return connection


def test_bytes_go_both_ways_and_the_last_of_them_too(emulator, backend, port):
    down, up = secrets.token_bytes(8_000_000), secrets.token_bytes(1_000_001)

    with dial(port) as client:
        machine = backend.accept()
        client.sendall(b"hello")
        assert read_exactly(machine, 5) == b"hello"

        def say():
            machine.sendall(down)
            machine.close()

        saying = threading.Thread(target=say)
        saying.start()
        found = read_all(client)
        saying.join()
    assert (len(found), hashlib.sha256(found).digest()) == (
        len(down),
        hashlib.sha256(down).digest(),
    )

    with dial(port) as client:
        machine = backend.accept()
        client.sendall(up)
        client.shutdown(socket.SHUT_WR)
        found = read_all(machine)
    assert (len(found), hashlib.sha256(found).digest()) == (len(up), hashlib.sha256(up).digest())
    wait_until(lambda: emulator.tunnels.open == 0)
    assert emulator.tunnels.connects == 3
    assert emulator.tunnels.reconnects == 0


def test_a_connection_outlives_a_cut_and_its_token(emulator, backend, port):
    tunnels = emulator.tunnels
    with dial(port) as client:
        machine = backend.accept()
        # What it was told to send it sends once it knows that it is connected.
        client.sendall(b"hello")
        assert read_exactly(machine, 5) == b"hello"
        ends = ((b"cut", tunnels.cut), (b"closed", lambda: tunnels.close(4004)))
        for count, (word, deed) in enumerate(ends, 1):
            machine.sendall(b"before ")
            assert read_exactly(client, 7) == b"before "
            deed()
            wait_until(lambda count=count: tunnels.cuts + tunnels.closes(4004) == count)
            machine.sendall(word)
            assert read_exactly(client, len(word)) == word
        machine.close()
        assert read_all(client) == b""
    assert (tunnels.cuts, tunnels.closes(4004), tunnels.reconnects) == (1, 1, 2)
