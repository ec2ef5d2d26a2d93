"""Who is no part of a cluster gets no word out of it, and the cluster does not mind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dask
import pytest
from authorities import Authority
from clusters import PATIENCE, cluster_on, until
from distributed import Client, Scheduler
from distributed.comm import connect, listen
from distributed.security import Security
from ports import quiet_port

from dask_gce import GCECluster, probing
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import CredentialsError
from dask_gce.probing import find_refusal
from dask_gce.startup import Tls
from dask_gce.tls import ClusterCertificates
from dask_gce.trust import client_security

NOW = datetime.now(timezone.utc)
#: A validity that is over.
OVER = {"start": NOW - timedelta(days=30), "end": NOW - timedelta(hours=1)}


@pytest.fixture(autouse=True)
def scratch_space(tmp_path: Path) -> Iterator[None]:
    """Let Dask write where pytest cleans up."""
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for a handshake than on a computer that has nothing else to do."""
    monkeypatch.setattr(probing, "PROBE_TIMEOUT", PATIENCE)
    monkeypatch.setattr(probing, "REFUSAL_TIMEOUT", PATIENCE)


def place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return host, int(port)


async def reason(address: str, security: Security) -> str:
    """Return what OpenSSL says of a client at an address; empty if it is accepted."""
    context = security.get_connection_args("client")["ssl_context"]
    return str(await find_refusal(*place(address), context) or "")


async def assert_refused(cluster: GCECluster, security: Security, why: str) -> None:
    """See a client refused, with the reason told."""
    address = cluster.scheduler_address
    with pytest.raises(OSError):
        await connect(address, timeout=PATIENCE, **security.get_connection_args("client"))
    assert why in await reason(address, security)


async def assert_works(cluster: GCECluster) -> None:
    assert await reason(cluster.scheduler_address, cluster.security) == ""
    async with Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(1, timeout=PATIENCE)
        assert await client.submit(sum, [1, 2], pure=False) == 3


def worker_security(tls: Tls) -> Security:
    """Return what a worker that holds these certificates would use."""
    return Security(
        require_encryption=True,
        tls_ca_file=tls.ca,
        tls_worker_cert=tls.certificate,
        tls_worker_key=tls.key,
        tls_client_cert=tls.certificate,
        tls_client_key=tls.key,
    )


async def test_strangers_are_refused_and_the_cluster_goes_on(
    process_emulator: ComputeEmulator,
) -> None:
    async with (
        cluster_on(process_emulator, security=True, n_workers=1) as cluster,
        cluster_on(process_emulator, security=True, n_workers=0) as other,
    ):
        address = cluster.scheduler_address
        # Another cluster's client, as it is ...
        await assert_refused(cluster, other.security, "certificate verify failed")
        # ... and one that has been told whom to trust.
        forged = client_security(
            Tls(
                cluster.security.tls_ca_file,
                other.security.tls_client_cert,
                other.security.tls_client_key,
            )
        )
        await assert_refused(cluster, forged, "unknown ca")
        # Nobody's.
        context = ssl.create_default_context(cadata=cluster.security.tls_ca_file)
        context.check_hostname = False
        refusal = await find_refusal(*place(address), context)
        assert "certificate required" in str(refusal)
        # Plain TCP, by Dask and by whoever knocks.
        plain = address.replace("tls://", "tcp://")
        with pytest.raises(OSError):
            await connect(plain, timeout=PATIENCE)
        reader, writer = await asyncio.open_connection(*place(address))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert await heard(reader) == b""
        writer.close()
        await assert_works(cluster)
        assert cluster.failures == other.failures == []


async def heard(reader: asyncio.StreamReader) -> bytes:
    """Return what is said before the connection ends, but for TLS's own word of refusal."""
    said = b""
    try:
        while piece := await asyncio.wait_for(reader.read(4096), PATIENCE):
            said += piece
    except ConnectionResetError:
        pass
    # An alert: https://www.rfc-editor.org/rfc/rfc8446#section-6
    return b"" if said[:1] == b"\x15" and len(said) == 7 else said


async def test_keys_of_a_cluster_that_ended_open_no_other_of_its_name(
    process_emulator: ComputeEmulator,
) -> None:
    wanted: dict[str, Any] = {"security": True, "name": "grid"}
    async with cluster_on(process_emulator, n_workers=0, **wanted) as first:
        tls = first._prepared.blueprint.tls["worker"]
        client = first.security
    await until(lambda: process_emulator.instances() == [])
    async with cluster_on(process_emulator, n_workers=1, **wanted) as second:
        await assert_refused(second, client, "certificate verify failed")
        await assert_refused(second, worker_security(tls), "certificate verify failed")
        blind = Tls(second.security.tls_ca_file, tls.certificate, tls.key)
        await assert_refused(second, worker_security(blind), "unknown ca")
        await assert_works(second)


async def test_what_has_expired_is_refused_by_either_side(
    process_emulator: ComputeEmulator,
) -> None:
    authority = Authority("dask-own")
    leaves = {role: authority.leaf(role) for role in ("client", "scheduler", "worker")}
    security = authority.security(**leaves)
    expired = {role: authority.leaf(role, **OVER) for role in leaves}
    async with cluster_on(process_emulator, security=security, n_workers=1) as cluster:
        await assert_refused(
            cluster, authority.security(client=expired["client"]), "certificate expired"
        )
        await assert_works(cluster)
    # A scheduler whose certificate ended while it ran.
    async with Scheduler(
        host="127.0.0.1",
        port=0,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        security=authority.security(scheduler=expired["scheduler"]),
    ) as scheduler:
        assert "certificate has expired" in await reason(scheduler.address, security)
        with pytest.raises(OSError):
            args = security.get_connection_args("client")
            await connect(scheduler.address, timeout=PATIENCE, **args)


@pytest.mark.parametrize("role", ["scheduler", "worker"])
async def test_a_clients_certificate_serves_nobody(role: str) -> None:
    certificates = ClusterCertificates.create("dask-1")
    stolen = certificates.client
    posing = Security(
        require_encryption=True,
        tls_ca_file=certificates.ca_pem,
        **{f"tls_{role}_cert": stolen.certificate, f"tls_{role}_key": stolen.key},
    )

    async def answer(comm: Any) -> None:
        await comm.write("come in")

    async with listen("tls://127.0.0.1:0", answer, **posing.get_listen_args(role)) as listener:
        for visitor in ("worker", "client", "scheduler"):
            theirs = certificates.security(visitor).get_connection_args(visitor)
            with pytest.raises(OSError):
                await connect(listener.contact_address, timeout=PATIENCE, **theirs)
            refusal = await find_refusal(*place(listener.contact_address), theirs["ssl_context"])
            assert "unsuitable certificate purpose" in str(refusal)


def of_two_authorities() -> Security:
    """Return a user's own certificates of which the client's is another authority's."""
    ours, theirs = Authority("dask-own"), Authority("dask-own")
    leaves = {role: ours.leaf(role) for role in ("scheduler", "worker")}
    return ours.security(client=theirs.leaf("client"), **leaves)


def without_server_usage() -> Security:
    """Return a user's own certificates of which the scheduler's may not serve."""
    ours = Authority("dask-own")
    leaves = {role: ours.leaf(role) for role in ("client", "worker")}
    return ours.security(scheduler=ours.leaf("client"), **leaves)


@pytest.mark.parametrize(
    ("make", "why"),
    [(of_two_authorities, "unknown ca"), (without_server_usage, "certificate purpose")],
)
async def test_own_certificates_that_do_not_fit_are_told_of(
    process_emulator: ComputeEmulator, make: Callable[[], Security], why: str
) -> None:
    with pytest.raises(CredentialsError, match=f"accept each other's certificates: .*{why}"):
        await cluster_on(process_emulator, security=make(), n_workers=0)
    await until(lambda: process_emulator.instances() == [])


async def test_nobody_there_is_no_refusal() -> None:
    security = ClusterCertificates.create("dask-1").security("client")
    context = security.get_connection_args("client")["ssl_context"]
    assert await find_refusal("127.0.0.1", quiet_port(), context) is None
