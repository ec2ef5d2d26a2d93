"""The metadata server of a machine, asked as guests and Google's own client ask it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest

from dask_gce.emulator.machines import peers
from dask_gce.emulator.machines.metadata import VALUE_SIZE, MetadataServer
from dask_gce.emulator.machines.peers import Peers, socket_owner
from dask_gce.emulator.record import InstanceRecord

FLAVOR = {"Metadata-Flavor": "Google"}


@dataclass
class Guest:
    """Asks a metadata server."""

    session: aiohttp.ClientSession
    server: MetadataServer
    record: InstanceRecord

    async def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] = FLAVOR, **options: object
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        url = f"http://127.0.0.1:{self.server.port}{path}"
        async with self.session.request(
            method, url, headers=headers, allow_redirects=False, **options
        ) as response:
            return response.status, await response.text(), response

    async def get(self, path: str) -> str:
        status, text, _ = await self.ask(f"/computeMetadata/v1/{path}")
        assert status == 200, text
        return text


def make_record() -> InstanceRecord:
    resource = {
        "name": "m1",
        "id": "8675309",
        "machineType": "https://www.googleapis.com/compute/v1/projects/p/zones/z/machineTypes/e2-medium",
        "tags": {"items": ["dask", "http-server"]},
        "metadata": {
            "items": [
                {"key": "startup-script", "value": "#!/bin/sh\necho 'ü'\n"},
                {"key": "Mixed_Case-key", "value": "v"},
                {"key": "enable-guest-attributes", "value": "TRUE"},
            ]
        },
        "networkInterfaces": [
            {
                "network": "projects/p/global/networks/default",
                "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "natIP": "198.18.0.2"}],
            }
        ],
        "disks": [{"deviceName": "boot", "index": 0, "mode": "READ_WRITE", "type": "PERSISTENT"}],
        "scheduling": {"provisioningModel": "SPOT", "automaticRestart": False},
        "serviceAccounts": [
            {"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        ],
    }
    return InstanceRecord("my-project", 1234, "us-central1-a", resource, access_token="ya29.test")


def spell_request(server: MetadataServer, method: str, path: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} /computeMetadata/v1/{path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Metadata-Flavor: Google\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


only_linux_tells = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who asks")


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    record = make_record()
    server = MetadataServer(record, "127.0.0.1", [os.geteuid()])
    await server.start()
    async with aiohttp.ClientSession() as session:
        yield Guest(session, server, record)
    await server.close()
    await server.close()


@only_linux_tells
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_other_users_of_the_host_get_no_answer(family, monkeypatch):
    asked = []

    def spy(*ends):
        asked.append(ends)
        return socket_owner(*ends)

    monkeypatch.setattr(peers, "socket_owner", spy)
    for users, status in (([os.geteuid() + 1], 403), ([os.geteuid()], 200)):
        server = MetadataServer(make_record(), "127.0.0.1", users)
        await server.start()
        host = "127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1"
        try:
            reader, writer = await asyncio.open_connection(host, server.port, family=family)
        except OSError:
            await server.close()
            pytest.skip("no IPv6 here")
        # Both requests of a connection, although the kernel is asked once.
        for _ in range(2):
            writer.write(spell_request(server, "GET", "instance/id"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            assert (b"8675309" in await reader.readexactly(size)) == (status == 200)
        assert len(asked) == 1
        asked.clear()
        writer.close()
        await writer.wait_closed()
        await server.close()


@only_linux_tells
async def test_who_has_said_all_is_still_there_until_they_close():
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1")
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        ends = client.getsockname(), client.getpeername()
        transport = (await accepted).transport
        client.shutdown(socket.SHUT_WR)
        assert socket_owner(*ends) == os.geteuid()
    assert socket_owner(*ends) is None
    transport.close()
    server.close()
    await server.wait_closed()


@only_linux_tells
@pytest.mark.parametrize("lingers", [False, True])
async def test_nobody_holds_the_other_end_of_a_closed_connection(lingers):
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1")
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        ends = client.getsockname(), client.getpeername()
        transport = (await accepted).transport
        assert await Peers().admit(transport, [os.geteuid()])
        assert not await Peers().admit(transport, [os.geteuid() + 1])
        assert socket_owner(*ends) == os.geteuid()
        if not lingers:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # What is left of the socket says user 0, whoever it was.
    assert socket_owner(*ends) is None
    assert not await Peers().admit(transport, [os.geteuid(), 0])
    assert not await Peers().admit(None, [os.geteuid(), 0])
    transport.close()
    server.close()
    await server.wait_closed()


@only_linux_tells
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_who_hangs_up_at_once_changes_nothing(method, reset):
    # Only a guest who waits for the answer can be told from another user of the host.
    record = make_record()
    record.guest_attributes["dask-gce"] = {"phase": "running"}
    server = MetadataServer(record, "127.0.0.1", [os.geteuid(), 0])
    await server.start()
    path = "instance/guest-attributes/dask-gce/phase"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(spell_request(server, method, path, b"evil"))
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Served after them.
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}/computeMetadata/v1/instance/id"
        async with session.get(url, headers=FLAVOR) as response:
            assert response.status == 200
    await server.close()
    assert record.guest_attributes == {"dask-gce": {"phase": "running"}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.org"},
        {"Host": "evil.example.org:80"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Host": "metadata.google.internal.evil.example.org"},
        {"Origin": "http://evil.example.org"},
        {"Origin": "null"},
    ],
)
async def test_web_pages_and_foreign_hosts_are_refused(guest, headers):
    for method, path in (
        ("GET", "instance/attributes/startup-script"),
        ("PUT", "instance/guest-attributes/ns/key"),
    ):
        url = f"/computeMetadata/v1/{path}"
        status, text, _ = await guest.ask(url, method, headers={**FLAVOR, **headers})
        assert status == 403
        assert "echo" not in text
    assert guest.record.guest_attributes == {}


@pytest.mark.parametrize(
    "host", ["metadata.google.internal", "metadata:80", "169.254.169.254", "Metadata"]
)
async def test_the_names_of_the_metadata_server_are_answered(guest, host):
    url = "/computeMetadata/v1/instance/id"
    assert (await guest.ask(url, headers={**FLAVOR, "Host": host}))[1] == "8675309"


async def test_the_root_answers_anybody_so_that_it_can_be_detected(guest):
    status, text, response = await guest.ask("/", headers={})
    assert (status, text) == (200, "computeMetadata/\n")
    assert response.headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Metadata-Flavor": "Amazon"}, 403),
        ({"Metadata-Flavor": "Google"}, 200),
        ({"X-Google-Metadata-Request": "True"}, 200),
        ({"Metadata-Flavor": "Google", "X-Forwarded-For": "10.0.0.1"}, 403),
    ],
)
async def test_the_flavor_header_is_demanded_and_forwarded_requests_are_refused(
    guest, headers, status
):
    answered, _, response = await guest.ask("/computeMetadata/v1/instance/id", headers=headers)
    assert answered == status
    assert response.headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", "instance/\nproject/\n"),
        ("instance/name", "m1"),
        ("instance/id", "8675309"),
        ("instance/hostname", "m1.us-central1-a.c.my-project.internal"),
        ("instance/zone", "projects/1234/zones/us-central1-a"),
        ("instance/machine-type", "projects/1234/machineTypes/e2-medium"),
        ("instance/tags", '["dask", "http-server"]'),
        ("instance/preempted", "FALSE"),
        ("instance/maintenance-event", "NONE"),
        ("instance/scheduling/preemptible", "TRUE"),
        ("instance/scheduling/automatic-restart", "FALSE"),
        ("instance/attributes/", "Mixed_Case-key\nenable-guest-attributes\nstartup-script\n"),
        ("instance/attributes/startup-script", "#!/bin/sh\necho 'ü'\n"),
        ("instance/attributes/Mixed_Case-key", "v"),
        ("instance/disks/", "0/\n"),
        ("instance/disks/0/device-name", "boot"),
        ("instance/licenses/", ""),
        ("instance/network-interfaces/0/ip", "127.0.0.1"),
        ("instance/network-interfaces/0/dns-servers", "169.254.169.254\n"),
        ("instance/network-interfaces/0/access-configs/0/external-ip", "198.18.0.2"),
        ("instance/service-accounts/", "1234-compute@developer.gserviceaccount.com/\ndefault/\n"),
        ("instance/service-accounts/default/", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        (
            "instance/service-accounts/default/scopes",
            "https://www.googleapis.com/auth/cloud-platform\n",
        ),
        ("project/project-id", "my-project"),
        ("project/numeric-project-id", "1234"),
        ("/instance//name", "m1"),
        ("instance/scheduling/?recursive=true&alt=text", None),
    ],
)
async def test_paths_have_googles_names_and_forms(guest, path, text):
    if text is None:
        text = "automatic-restart FALSE\non-host-maintenance MIGRATE\npreemptible TRUE\n"
    assert await guest.get(path) == text


async def test_recursion_answers_camel_case_json(guest):
    for spelling in ("true", "True"):
        instance = json.loads(await guest.get(f"instance/?recursive={spelling}"))
        assert instance["machineType"].endswith("e2-medium")
        assert instance["attributes"]["Mixed_Case-key"] == "v"
        assert instance["networkInterfaces"][0]["accessConfigs"][0]["externalIp"] == "198.18.0.2"
        assert instance["id"] == 8675309
    assert json.loads(await guest.get("instance/tags?alt=json")) == ["dask", "http-server"]
    assert json.loads(await guest.get("instance/attributes/?alt=json"))[0] == "Mixed_Case-key"


async def test_folders_without_a_slash_redirect_and_unknown_paths_do_not_exist(guest):
    status, _, response = await guest.ask("/computeMetadata/v1/instance/disks?recursive=true")
    assert status == 301
    assert response.headers["Location"] == "/computeMetadata/v1/instance/disks/?recursive=true"
    for path in (
        "/computeMetadata/v2/",
        "/computeMetadata/v1/instance/nothing",
        "/computeMetadata/v1/instance/machineType",
        "/computeMetadata/v1/instance/name/",
        "/computeMetadata/v1/instance/disks/1/",
        "/computeMetadata/v1/instance/attributes/startup_script",
        "/latest/meta-data/",
    ):
        assert (await guest.ask(path))[0] == 404, path


async def test_waiting_ends_with_a_change_of_what_is_watched_only(guest):
    path = "/computeMetadata/v1/instance/preempted?wait_for_change=true"
    _, _, first = await guest.ask("/computeMetadata/v1/instance/preempted")
    waiting = asyncio.create_task(guest.ask(f"{path}&last_etag={first.headers['ETag']}"))
    await asyncio.sleep(0.05)
    guest.record.resource["description"] = "something else"
    guest.record.touch()
    await asyncio.sleep(0.05)
    assert not waiting.done()
    guest.record.preempted = True
    guest.record.touch()
    status, text, second = await asyncio.wait_for(waiting, 60)
    assert (status, text) == (200, "TRUE")
    assert second.headers["ETag"] != first.headers["ETag"]
    # Whoever is behind learns it at once, whoever waits too long learns the old value.
    assert (await guest.ask(f"{path}&last_etag={first.headers['ETag']}"))[1] == "TRUE"
    assert (await guest.ask(f"{path}&timeout_sec=0"))[1] == "TRUE"


async def test_closing_ends_those_who_wait():
    server = MetadataServer(make_record(), "127.0.0.1", [os.geteuid()])
    await server.start()
    url = f"http://127.0.0.1:{server.port}/computeMetadata/v1/instance/?wait_for_change=true"
    async with aiohttp.ClientSession() as session:
        waiting = asyncio.create_task(session.get(url, headers=FLAVOR))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.close(), 60)
        with pytest.raises(aiohttp.ClientError):
            await waiting


async def test_guest_attributes_are_kept_in_the_record(guest):
    path = "/computeMetadata/v1/instance/guest-attributes/dask-gce/phase"
    version = guest.record.version
    assert (await guest.ask(path))[0] == 404
    assert (await guest.ask(path, "PUT", data="booted ü".encode()))[0] == 200
    assert guest.record.guest_attributes == {"dask-gce": {"phase": "booted ü"}}
    assert guest.record.version == version + 1
    assert await guest.get("instance/guest-attributes/dask-gce/phase") == "booted ü"
    assert await guest.get("instance/guest-attributes/dask-gce/") == "phase\n"
    assert json.loads(await guest.get("instance/guest-attributes/?recursive=true")) == {
        "dask-gce": {"phase": "booted ü"}
    }
    assert (await guest.ask(path, "DELETE"))[0] == 200
    assert (await guest.ask(path, "DELETE"))[0] == 404
    assert guest.record.guest_attributes == {}


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("ns/key", VALUE_SIZE, 200),
        ("ns/key", VALUE_SIZE + 1, 413),
        ("ns", 1, 400),
        ("a/b/c", 1, 400),
    ],
)
async def test_guest_attributes_have_limits(guest, path, size, status):
    url = f"/computeMetadata/v1/instance/guest-attributes/{path}"
    assert (await guest.ask(url, "PUT", data=b"x" * size))[0] == status
    assert bool(guest.record.guest_attributes) == (status == 200)


async def test_guest_attributes_must_be_switched_on(guest):
    guest.record.resource["metadata"]["items"] = []
    url = "/computeMetadata/v1/instance/guest-attributes/ns/key"
    assert (await guest.ask(url, "PUT", data=b"x"))[0] == 403
    assert (await guest.ask(url))[0] == 403
    assert guest.record.guest_attributes == {}


async def test_metadata_itself_cannot_be_written(guest):
    assert (await guest.ask("/computeMetadata/v1/instance/name", "PUT", data=b"x"))[0] == 405


async def test_identity_tokens_are_well_formed_and_name_their_audience(guest):
    path = "instance/service-accounts/default/identity?audience=https://x.example&format=full"
    header, claims, _ = (
        base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        for part in (await guest.get(path)).split(".")
    )
    assert json.loads(header)["alg"] == "RS256"
    assert json.loads(claims)["aud"] == "https://x.example"
    assert json.loads(claims)["google"]["compute_engine"]["instance_name"] == "m1"
    missing = "/computeMetadata/v1/instance/service-accounts/default/identity"
    assert (await guest.ask(missing))[0] == 400


async def test_an_instance_without_a_service_account_gets_no_token(guest):
    path = "instance/service-accounts/default/token"
    token = json.loads(await guest.get(path))
    assert token == {"access_token": "ya29.test", "expires_in": 3599, "token_type": "Bearer"}
    guest.record.resource["serviceAccounts"] = []
    assert (await guest.ask(f"/computeMetadata/v1/{path}"))[0] == 404
    assert await guest.get("instance/service-accounts/") == ""


GOOGLE_AUTH = """
import google.auth
from google.auth.transport.requests import Request

credentials, project = google.auth.default()
credentials.refresh(Request())
print(type(credentials).__module__, project, credentials.token, credentials.service_account_email)
"""


async def test_googles_own_library_gets_its_credentials_here(guest, tmp_path):
    server = f"127.0.0.1:{guest.server.port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        GOOGLE_AUTH,
        stdout=subprocess.PIPE,
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GCE_METADATA_HOST": server,
            "GCE_METADATA_IP": server,
            "GCE_METADATA_ROOT": server,
        },
    )
    output, _ = await process.communicate()
    assert output.decode().split() == [
        "google.auth.compute_engine.credentials",
        "my-project",
        "ya29.test",
        "1234-compute@developer.gserviceaccount.com",
    ]
