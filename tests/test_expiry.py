"""The end of a cluster's certificates is told in time, and nobody goes on hoping after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from clusters import PATIENCE, cluster_on, until
from distributed.security import Security

from dask_gce import GCECluster, expiry
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import GCEError
from dask_gce.recovery import Recovery
from dask_gce.tls import ClusterCertificates


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Return what moves the clock that certificates are followed by."""
    ahead = [timedelta(0)]
    monkeypatch.setattr(expiry, "_now", lambda: datetime.now(timezone.utc) + ahead[0])
    monkeypatch.setattr(expiry, "LOOK_AGAIN", 0.02)

    def move(by: timedelta) -> None:
        ahead[0] += by

    return move


def said(cluster: GCECluster) -> list[str]:
    """Return what was said of the cluster's certificates."""
    words = ("secured", "expiring", "expired")
    return [event.what for event in cluster.events if event.what in words]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the cluster itself warned of."""
    return [each.message for each in caplog.records if each.name == "dask_gce.attendance"]


def own_security(lifetime: timedelta) -> Security:
    certificates = ClusterCertificates.create("dask-own", lifetime=lifetime)
    fields = {"tls_ca_file": certificates.ca_pem}
    for role in ("client", "scheduler", "worker"):
        leaf = certificates.leaf(role)
        fields |= {f"tls_{role}_cert": leaf.certificate, f"tls_{role}_key": leaf.key}
    return Security(require_encryption=True, **fields)


async def test_what_is_past_is_not_waited_for() -> None:
    await expiry.wait_until(datetime.now(timezone.utc) - timedelta(days=1))


async def test_a_cluster_tells_of_its_certificates_and_ends_with_them(
    process_emulator: ComputeEmulator,
    travel: Callable[[timedelta], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = {"security": True, "n_workers": 0, "max_lifetime": math.inf}
    async with cluster_on(process_emulator, **wanted) as cluster:
        await until(lambda: said(cluster) == ["secured"])
        assert warnings(caplog) == []
        travel(timedelta(days=6, hours=1))
        await until(lambda: said(cluster) == ["secured", "expiring"])
        (approach,) = [event.why for event in cluster.events if event.what == "expiring"]
        assert "From then on nobody can connect" in approach
        cluster.scale(0)  # it is asked for nothing, and works

        travel(timedelta(days=1))
        await until(lambda: said(cluster)[-1] == "expired")
        soon, now = warnings(caplog)
        assert f"certificates of cluster {cluster.name} end at" in soon
        assert f"certificates of cluster {cluster.name} ended at" in now
        with pytest.raises(GCEError, match=r"certificates of cluster .* ended at"):
            await cluster.wait_for_workers(1, timeout=PATIENCE)
        for _ in range(2):  # asking again does not help
            with pytest.raises(GCEError, match="ended at"):
                cluster.scale(1)
        cluster.scale(0)
        assert len(process_emulator.instances()) == 1

        # Its last connection breaks: there will be no other.
        cluster._watch_worker_status_comm.abort()
        await until(lambda: cluster._lost is not None)
        assert "ended at" in str(cluster.failures[-1])
        (gave_up,) = [event for event in cluster.events if event.what == "gave up"]
        assert gave_up.instance == cluster.scheduler.name
    await until(lambda: process_emulator.instances() == [])


async def test_a_cluster_that_is_to_stay_is_left_as_it_is(
    process_emulator: ComputeEmulator, travel: Callable[[timedelta], None]
) -> None:
    wanted = {"security": True, "name": "grid", "shutdown_on_close": False, "n_workers": 0}
    async with cluster_on(process_emulator, **wanted) as cluster:
        travel(timedelta(days=8))
        await until(lambda: said(cluster)[-1:] == ["expired"])
        cluster._watch_worker_status_comm.abort()
        await until(lambda: "gave up" in [event.what for event in cluster.events])
        assert cluster._lost is None
        assert cluster.failures == []
        assert [each["status"] for each in process_emulator.instances()] == ["RUNNING"]
        await cluster.shutdown()
    await until(lambda: process_emulator.instances() == [])


async def test_a_users_own_certificates_are_followed_too(
    process_emulator: ComputeEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    security = own_security(timedelta(hours=20))
    async with cluster_on(process_emulator, security=security, n_workers=0) as cluster:
        await until(lambda: said(cluster) == ["secured", "expiring"])
    assert len(warnings(caplog)) == 1


async def test_a_cluster_that_ends_before_its_certificates_has_no_need_of_a_warning(
    process_emulator: ComputeEmulator, travel: Callable[[timedelta], None]
) -> None:
    wanted = {"security": True, "n_workers": 0, "max_lifetime": "2 hours"}
    async with cluster_on(process_emulator, **wanted) as cluster:
        await until(lambda: said(cluster) == ["secured"])
        travel(timedelta(hours=2, minutes=6))
        await until(lambda: said(cluster)[-1] == "expired")
        assert said(cluster) == ["secured", "expired"]


def test_what_is_forbidden_stays_so() -> None:
    recovery = Recovery("dask-1f", limit=2)
    recovery.forbid("its certificates ended")
    recovery.reset()
    recovery.stayed(asked=5.0)
    recovery.failed(ValueError("no machines"), asked=6.0, now=7.0, lasting=True)
    assert str(recovery.exhausted) == "its certificates ended"
    assert recovery.pause(1e9) == float("inf")
