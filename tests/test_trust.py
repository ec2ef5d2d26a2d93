"""Each side gets what it needs of the `security` setting, and no more."""

from __future__ import annotations

import dask
import pytest
from distributed.security import Security

from dask_gce.errors import SettingsError
from dask_gce.tls import ClusterCertificates
from dask_gce.trust import establish_trust


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
