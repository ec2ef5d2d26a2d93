"""Each side gets what it needs of the `security` setting, and no more."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import dask
import pytest
from distributed.security import Security

from dask_gce.errors import SettingsError
from dask_gce.startup import Tls
from dask_gce.tls import CLOCK_SKEW, DEFAULT_LIFETIME, ClusterCertificates
from dask_gce.trust import client_tls, end_of, establish_trust


def own_security(certificates, tmp_path=None):
    fields = {"tls_ca_file": certificates.ca_pem}
    for role in ("client", "scheduler", "worker"):
        leaf = certificates.leaf(role)
        fields |= {f"tls_{role}_cert": leaf.certificate, f"tls_{role}_key": leaf.key}
    if tmp_path is not None:
        for name, text in fields.items():
            (tmp_path / name).write_text(text)
            fields[name] = str(tmp_path / name)
    return Security(require_encryption=True, **fields)


def test_certificates_of_its_own():
    trust = establish_trust(True, "dask-1")
    assert trust.client.require_encryption
    assert set(trust.machines) == {"scheduler", "worker"}
    keys = {trust.client.tls_client_key, *(each.key for each in trust.machines.values())}
    assert len(keys) == 3
    assert trust.client.tls_scheduler_key is None


def test_plain_tcp_ignores_certificates_in_the_users_config(tmp_path):
    with dask.config.set({"distributed.comm.tls.ca-file": str(tmp_path / "ca.pem")}):
        trust = establish_trust(False, "dask-1")
    assert trust.machines == {}
    assert not trust.client.require_encryption
    assert trust.client.tls_ca_file is None


@pytest.mark.parametrize("as_files", [True, False])
def test_a_users_own(tmp_path, as_files):
    certificates = ClusterCertificates.create("dask-1")
    security = own_security(certificates, tmp_path if as_files else None)
    trust = establish_trust(security, "dask-1")
    assert trust.client is security
    assert trust.machines["worker"].key == certificates.worker.key
    assert trust.machines["scheduler"].certificate == certificates.scheduler.certificate
    assert trust.machines["scheduler"].ca == certificates.ca_pem


def test_a_users_own_without_encryption():
    security = Security(require_encryption=False)
    assert establish_trust(security, "dask-1").machines == {}


def test_a_missing_part_is_named():
    certificates = ClusterCertificates.create("dask-1")
    security = own_security(certificates)
    security.tls_worker_key = None
    with pytest.raises(SettingsError, match="tls_worker_key is missing"):
        establish_trust(security, "dask-1")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    security = own_security(ClusterCertificates.create("dask-1"), tmp_path)
    (tmp_path / "tls_worker_key").unlink()
    with pytest.raises(SettingsError, match=r"tls_worker_key = .* cannot be read"):
        establish_trust(security, "dask-1")


# -- How long


@pytest.mark.parametrize(
    ("max_lifetime", "lifetime"),
    [
        (math.inf, DEFAULT_LIFETIME),
        (3600.0, timedelta(hours=1) + CLOCK_SKEW),
        (30 * 86400.0, timedelta(days=30) + CLOCK_SKEW),
    ],
)
def test_certificates_last_as_long_as_the_cluster(max_lifetime, lifetime):
    before = datetime.now(timezone.utc).replace(microsecond=0)
    trust = establish_trust(True, "dask-1", max_lifetime=max_lifetime)
    after = datetime.now(timezone.utc)
    for tls in (*trust.machines.values(), client_tls(trust.client)):
        assert before + lifetime <= end_of(tls) <= after + lifetime


def test_the_first_to_end_counts():
    short = ClusterCertificates.create("dask-1", lifetime=timedelta(hours=1)).client
    long = ClusterCertificates.create("dask-1", lifetime=timedelta(hours=2)).client
    held = [Tls("", each.certificate, each.key) for each in (long, short)]
    assert end_of(None, *held) == end_of(held[1]) < end_of(held[0])


def test_no_certificate_has_no_end():
    assert end_of(None) is None
    assert end_of(Tls("", "what a user took for one", "")) is None


@pytest.mark.parametrize("role", ["client", "scheduler", "worker"])
def test_a_users_own_that_has_ended_is_named(role):
    ago = datetime.now(timezone.utc) - timedelta(hours=2)
    ended = ClusterCertificates.create("dask-1", lifetime=timedelta(hours=1), now=ago)
    security = own_security(ClusterCertificates.create("dask-1"))
    setattr(security, f"tls_{role}_cert", ended.leaf(role).certificate)
    with pytest.raises(SettingsError, match=f"tls_{role}_cert ended at .* UTC"):
        establish_trust(security, "dask-1")
