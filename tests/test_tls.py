"""Certificates are judged by those who meet them: OpenSSL, Python's ssl and Dask itself."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, get_args

import cloudpickle
import dask
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from distributed import Client, Scheduler, Worker
from distributed.comm import connect

from dask_gce.startup import Tls
from dask_gce.tls import CLOCK_SKEW, DEFAULT_LIFETIME, ClusterCertificates, Leaf, Role
from dask_gce.trust import client_security

ROLES = get_args(Role)
LISTENERS = ("scheduler", "worker")


@pytest.fixture(scope="module")
def certificates() -> ClusterCertificates:
    return ClusterCertificates.create("dask-3f9a")


@pytest.fixture(scope="module")
def stranger() -> ClusterCertificates:
    """Another cluster that even bears the same name."""
    return ClusterCertificates.create("dask-3f9a")


def strict_context(
    ca_pem: str, leaf: Leaf | None, protocol: ssl._SSLMethod, folder: Path
) -> ssl.SSLContext:
    """Return a context as strict as Python 3.13's default one, on every version of Python."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca_pem)
    if leaf is not None:
        (folder / "certificate").write_text(leaf.certificate)
        (folder / "key").write_text(leaf.key)
        context.load_cert_chain(folder / "certificate", folder / "key")
    return context


class Outcome(NamedTuple):
    """What came of a conversation: the answer, or who refused it and why."""

    said: str
    server_error: Exception | None
    client_error: Exception | None


def talk(folder: Path, server: tuple[str, Leaf], client: tuple[str, Leaf | None]) -> Outcome:
    """Say ping over TLS on loopback; each side is (authority it trusts, leaf it shows)."""
    server_context = strict_context(*server, ssl.PROTOCOL_TLS_SERVER, folder)
    client_context = strict_context(*client, ssl.PROTOCOL_TLS_CLIENT, folder)

    def answer(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        accepted.settimeout(60)
        with accepted, server_context.wrap_socket(accepted, server_side=True) as tls:
            tls.sendall(tls.recv(4).replace(b"ping", b"pong"))

    said, refusal = "", None
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(answer, listener)
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=60) as plain,
                client_context.wrap_socket(plain) as tls,
            ):
                tls.sendall(b"ping")
                # TLS 1.3 tells a client with its first read that its certificate was refused.
                said = tls.recv(4).decode()
        except OSError as error:
            refusal = error
        return Outcome(said, serving.exception(), refusal)


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("caller", ROLES)
def test_every_role_talks_to_every_listener(certificates, tmp_path, listener, caller):
    ca = certificates.ca_pem
    outcome = talk(tmp_path, (ca, certificates.leaf(listener)), (ca, certificates.leaf(caller)))
    assert outcome == ("pong", None, None)


def test_client_certificate_cannot_pose_as_a_server(certificates, tmp_path):
    ca = certificates.ca_pem
    outcome = talk(tmp_path, (ca, certificates.client), (ca, certificates.worker))
    assert isinstance(outcome.client_error, ssl.SSLCertVerificationError)
    assert "purpose" in str(outcome.client_error)


def test_caller_refuses_another_clusters_server(certificates, stranger, tmp_path):
    outcome = talk(
        tmp_path,
        (certificates.ca_pem, certificates.scheduler),
        (stranger.ca_pem, certificates.client),
    )
    assert isinstance(outcome.client_error, ssl.SSLCertVerificationError)


def test_server_refuses_another_clusters_caller(certificates, stranger, tmp_path):
    ca = certificates.ca_pem
    outcome = talk(tmp_path, (ca, certificates.scheduler), (ca, stranger.client))
    assert isinstance(outcome.server_error, ssl.SSLCertVerificationError)
    assert outcome.said == ""


def test_server_refuses_a_caller_without_certificate(certificates, tmp_path):
    ca = certificates.ca_pem
    outcome = talk(tmp_path, (ca, certificates.scheduler), (ca, None))
    assert isinstance(outcome.server_error, ssl.SSLError)
    assert outcome.said == ""


def test_expired_certificates_are_refused(tmp_path):
    old = ClusterCertificates.create(
        "dask-old",
        lifetime=timedelta(hours=1),
        now=datetime.now(timezone.utc) - timedelta(hours=2),
    )
    outcome = talk(tmp_path, (old.ca_pem, old.scheduler), (old.ca_pem, old.client))
    assert "expired" in str(outcome.client_error)


# -- What is in the certificates


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension:
    return certificate.extensions.get_extension_for_class(kind)


def test_authority_may_sign_leaves_and_nothing_else(certificates):
    ca = load(certificates.ca_pem)
    constraints = extension(ca, x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = extension(ca, x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    ca.verify_directly_issued_by(ca)


@pytest.mark.parametrize("role", ROLES)
def test_leaf_extensions(certificates, role):
    ca, leaf = load(certificates.ca_pem), load(certificates.leaf(role).certificate)
    leaf.verify_directly_issued_by(ca)

    constraints = extension(leaf, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is False
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign

    client_only = [ExtendedKeyUsageOID.CLIENT_AUTH]
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == (
        client_only if role == "client" else both
    )
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{role}.dask-3f9a.dask-gce.internal"]
    authority = extension(leaf, x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == extension(ca, x509.SubjectKeyIdentifier).value.digest
    own = extension(leaf, x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())


def test_no_key_and_no_serial_number_is_used_twice(certificates, stranger):
    made = [
        load(pem)
        for one in (certificates, stranger)
        for pem in (one.ca_pem, *(one.leaf(role).certificate for role in ROLES))
    ]
    assert len({each.serial_number for each in made}) == len(made)
    assert len({each.public_key().public_numbers() for each in made}) == len(made)


def test_serial_numbers_are_random_and_of_a_length_that_everybody_takes():
    # RFC 5280, section 4.1.2.2: positive, and at most 20 octets with the sign.
    serials = [
        load(pem).serial_number
        for made in (ClusterCertificates.create(f"dask-{number}") for number in range(8))
        for pem in (made.ca_pem, *(made.leaf(role).certificate for role in ROLES))
    ]
    assert len(set(serials)) == len(serials)
    assert all(each > 0 and (each.bit_length() + 8) // 8 <= 20 for each in serials)
    # 32 draws of 159 bits: that all are below 64 bits happens to nobody.
    assert max(serials).bit_length() > 64


def test_validity_covers_the_lifetime_and_slow_clocks():
    now = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
    certificates = ClusterCertificates.create("dask-x", now=now)
    assert certificates.not_after == now + DEFAULT_LIFETIME
    for pem in (certificates.ca_pem, *(certificates.leaf(role).certificate for role in ROLES)):
        certificate = load(pem)
        assert certificate.not_valid_before_utc == now - CLOCK_SKEW
        assert certificate.not_valid_after_utc == certificates.not_after


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1)])
def test_lifetime_must_be_positive(lifetime):
    with pytest.raises(ValueError, match="lifetime must be positive"):
        ClusterCertificates.create("dask-x", lifetime=lifetime)


def test_longest_cluster_name_fits():
    certificates = ClusterCertificates.create("d" + 62 * "x")
    assert certificates.ca_pem


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not here")
@pytest.mark.parametrize(
    ("role", "purpose", "accepted"),
    [
        ("scheduler", "sslserver", True),
        ("scheduler", "sslclient", True),
        ("worker", "sslserver", True),
        ("worker", "sslclient", True),
        ("client", "sslclient", True),
        ("client", "sslserver", False),
    ],
)
def test_openssl_verifies_strictly(certificates, tmp_path, role, purpose, accepted):
    (tmp_path / "ca").write_text(certificates.ca_pem)
    (tmp_path / "leaf").write_text(certificates.leaf(role).certificate)
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca", "leaf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is accepted, done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not here")
@pytest.mark.parametrize("role", ROLES)
def test_openssl_refuses_what_has_ended_and_what_another_cluster_signed(
    certificates, stranger, tmp_path, role
):
    (tmp_path / "ca").write_text(certificates.ca_pem)
    (tmp_path / "foreign").write_text(stranger.leaf(role).certificate)
    (tmp_path / "own").write_text(certificates.leaf(role).certificate)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "ca"]
    at = str(int((certificates.not_after + timedelta(seconds=1)).timestamp()))
    for arguments, reason in (
        (["own"], None),
        (["foreign"], "unable to get local issuer certificate|certificate signature failure"),
        (["-attime", at, "own"], "certificate has expired"),
    ):
        done = subprocess.run(
            [*verify, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) is (reason is None)
        assert reason is None or re.search(reason, done.stderr), done.stderr


# -- Keys stay where they are


@pytest.mark.parametrize("what", ["certificates", "leaf"])
@pytest.mark.parametrize("way", [pickle.dumps, cloudpickle.dumps, copy.copy, copy.deepcopy])
def test_keys_are_not_pickled(certificates, what, way):
    with pytest.raises(TypeError, match="holds a private key"):
        way(certificates if what == "certificates" else certificates.client)


def test_representation_shows_no_key(certificates):
    shown = "".join(
        f"{each!r} {each}"
        for each in (
            certificates,
            *(certificates.leaf(role) for role in ROLES),
            *(certificates.security(role) for role in ROLES),
        )
    )
    assert "dask-3f9a" in shown
    assert "PRIVATE" not in shown
    for role in ROLES:
        body = certificates.leaf(role).key.splitlines()[1]
        assert body not in shown


def test_authoritys_key_is_kept_nowhere(certificates):
    held = [certificates.ca_pem, *(certificates.leaf(role).key for role in ROLES)]
    assert "PRIVATE" not in certificates.ca_pem
    assert sorted(vars(certificates)) == [
        "ca_pem",
        "client",
        "cluster",
        "not_after",
        "scheduler",
        "worker",
    ]
    assert len(set(held)) == len(held)


# -- Dask


@pytest.mark.parametrize("role", ROLES)
def test_security_holds_one_role_and_ignores_the_users_files(certificates, role):
    files = {
        f"distributed.comm.tls.{each}.{part}": "/nowhere"
        for each in ROLES
        for part in ("cert", "key")
    }
    with dask.config.set({**files, "distributed.comm.tls.ca-file": "/nowhere"}):
        before = copy.deepcopy(dask.config.config)
        security = certificates.security(role)
        assert dask.config.config == before
    assert security.require_encryption is True
    assert security.tls_ca_file == certificates.ca_pem
    for each in ROLES:
        leaf = certificates.leaf(each)
        expected = (leaf.certificate, leaf.key) if each == role else (None, None)
        found = security.get_tls_config_for_role(each)
        assert (found["cert"], found["key"]) == expected


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory here")
@pytest.mark.parametrize("role", ROLES)
def test_no_disk_sees_a_key(certificates, monkeypatch, tmp_path, role):
    # What is killed while it makes a context would leave its key there.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    leaf = certificates.leaf(role)
    joined = client_security(Tls(certificates.ca_pem, leaf.certificate, leaf.key))
    assert joined.get_connection_args("client")["ssl_context"].get_ca_certs()
    context = certificates.security(role).get_connection_args(role)["ssl_context"]
    assert context.get_ca_certs()
    opened = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    assert not [each for each in opened if "memfd:dask-gce" in each]


def test_without_files_in_memory_the_key_is_still_read(certificates, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    context = certificates.security("client").get_connection_args("client")["ssl_context"]
    assert isinstance(context, ssl.SSLContext)


def test_unknown_role(certificates):
    with pytest.raises(ValueError, match="the roles are scheduler, worker, client"):
        certificates.security("nanny")


def scheduler_of(certificates: ClusterCertificates) -> Scheduler:
    return Scheduler(
        host="127.0.0.1",
        port=0,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        security=certificates.security("scheduler"),
    )


def worker_of(certificates: ClusterCertificates, scheduler: Scheduler) -> Worker:
    return Worker(
        scheduler.address,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        security=certificates.security("worker"),
    )


@pytest.fixture(autouse=True)
def scratch_space(tmp_path):
    """Let Dask write where pytest cleans up."""
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


async def test_dask_computes_between_all_roles(certificates):
    async with scheduler_of(certificates) as scheduler:
        assert scheduler.address.startswith("tls://")
        async with (
            worker_of(certificates, scheduler) as first,
            worker_of(certificates, scheduler) as second,
            Client(
                scheduler.address, security=certificates.security("client"), asynchronous=True
            ) as client,
        ):
            for worker in (first, second):
                # Its heartbeats take this connection from here on. A worker that is closed while
                # one makes its own leaves that open, as Tornado does with what it was to secure.
                await worker.scheduler.identity()
            # The sum runs on one worker and fetches from the other; the client fetches directly.
            there = client.submit(int, 1, workers=[first.address])
            here = client.submit(int, 2, workers=[second.address])
            total = client.submit(sum, [there, here], workers=[first.address])
            assert await client.gather(total, direct=True) == 3


async def assert_only_the_right_key_opens(
    certificates: ClusterCertificates, address: str, wrong: dict[str, object]
) -> None:
    with pytest.raises(OSError):
        await connect(address, timeout=0.3, **wrong)
    # The same door opens for the right key: it was the key that was missing.
    right = certificates.security("client").get_connection_args("client")
    comm = await connect(address.replace("tcp://", "tls://"), timeout=60, **right)
    await comm.close()


@pytest.mark.parametrize("trusts", ["its own authority", "the cluster's authority"])
async def test_dask_scheduler_refuses_a_stranger(certificates, stranger, trusts):
    foreign = stranger.security("client")
    if trusts == "the cluster's authority":
        foreign.tls_ca_file = certificates.ca_pem
    async with scheduler_of(certificates) as scheduler:
        await assert_only_the_right_key_opens(
            certificates, scheduler.address, foreign.get_connection_args("client")
        )


async def test_dask_scheduler_refuses_plain_tcp(certificates):
    async with scheduler_of(certificates) as scheduler:
        await assert_only_the_right_key_opens(
            certificates, scheduler.address.replace("tls://", "tcp://"), {}
        )
