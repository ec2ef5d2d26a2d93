"""A start that fails says why, in time, and leaves nothing."""

from __future__ import annotations

import asyncio
import math
import pickle
import time

import pytest
from clusters import PATIENCE, until
from distributed import Client

import dask_gce.fleet
from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import (
    InstanceError,
    OperationError,
    OutOfCapacity,
    PermissionDenied,
    QuotaExceeded,
    StartTimeout,
    WorkersFailed,
)

HANGS = "import time\nwhile True:\n    time.sleep(1)\n"


@pytest.fixture
def settings(process_emulator):
    return {"api_endpoint": process_emulator.endpoint, "machine_type": "e2-small", "quiet": True}


def assert_all_gone(emulator):
    deadline = time.monotonic() + PATIENCE
    while left := emulator.leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_missing_image():
    with ComputeEmulator("process", container_images=("ghcr.io/dask/*",)) as emulator:
        with pytest.raises(InstanceError) as caught:
            GCECluster(
                api_endpoint=emulator.endpoint,
                container_image="registry.example/missing:1",
                quiet=True,
            )
        assert_all_gone(emulator)
    error = caught.value
    assert error.phase.startswith(
        "failed: container_image registry.example/missing:1 cannot be pulled: "
    )
    assert "pull access denied" in error.phase
    assert "registry.example/missing:1" in error.serial_tail
    for part in (error.name, error.zone, error.phase, error.serial_tail, "container_image"):
        assert part in str(error)
    assert pickle.loads(pickle.dumps(error)).serial_tail == error.serial_tail  # noqa: S301


def test_scheduler_that_ends_at_once(process_emulator, settings):
    words = "print('\\x1b[31mlast\\x1b[0m words\\x07', flush=True); raise SystemExit(7)"
    with pytest.raises(InstanceError) as caught:
        GCECluster(scheduler_options={"preload": words}, **settings)
    assert caught.value.phase.startswith("failed: Dask ended with exit status")
    assert "phase: starting" in caught.value.serial_tail
    # What a machine writes does not command the terminal that shows the error.
    assert "last words\n" in caught.value.serial_tail
    assert_all_gone(process_emulator)


async def test_port_that_never_opens(process_emulator, settings, monkeypatch):
    monkeypatch.setattr(dask_gce.fleet, "PHASE_AFTER", 0.0)
    cluster = GCECluster(
        scheduler_options={"preload": HANGS}, start_timeout="6 s", asynchronous=True, **settings
    )
    starting = asyncio.ensure_future(cluster._start())
    await until(lambda: cluster._fleet is not None and cluster._fleet.members)
    (scheduler,) = cluster._fleet.members.values()
    # Its time begins when it has got as far as Dask, which takes long on a busy machine.
    scheduler.inserted = math.inf
    await until(lambda: scheduler.phase == "starting")
    began = scheduler.inserted = time.monotonic()
    with pytest.raises(StartTimeout, match="within 6 s") as caught:
        await starting
    assert time.monotonic() - began < 40
    assert caught.value.phase == "starting"
    assert "dask-gce phase: starting" in caught.value.serial_tail
    assert_all_gone(process_emulator)


def test_worker_that_fails(process_emulator, settings):
    with GCECluster(
        worker_options={"preload": "raise SystemExit(7)"}, worker_start_failure_limit=1, **settings
    ) as cluster:
        cluster.scale(1)
        with Client(cluster) as client, pytest.raises(WorkersFailed) as caught:
            client.wait_for_workers(1, timeout=PATIENCE)
        reason = caught.value.__cause__
        assert isinstance(reason, InstanceError)
        assert reason.phase.startswith("failed")
        assert reason in cluster.failures
        assert str(reason) in str(caught.value)
        assert not cluster.plan
        # Asked again after the fact: the failure, and no endless wait for a worker nobody asks for.
        with pytest.raises(WorkersFailed):
            cluster.wait_for_workers(1)
        # Whoever scales without having waited is told too, once.
        with pytest.raises(WorkersFailed):
            cluster.scale(1)
        assert not cluster.plan
        cluster.scale(1)
        assert len(cluster.plan) == 1
    assert_all_gone(process_emulator)


def test_worker_that_never_registers(process_emulator, settings):
    with GCECluster(
        worker_options={"preload": HANGS},
        worker_start_timeout="3 s",
        worker_start_failure_limit=1,
        **settings,
    ) as cluster:
        cluster.scale(1)
        with Client(cluster) as client, pytest.raises(WorkersFailed, match="within 3 s") as caught:
            client.wait_for_workers(1, timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, StartTimeout)
    assert_all_gone(process_emulator)


@pytest.mark.parametrize(
    ("reason", "error"), [("quotaExceeded", QuotaExceeded), ("forbidden", PermissionDenied)]
)
def test_refused_insert(process_emulator, settings, reason, error):
    process_emulator.faults.add(
        Fault(
            method="compute.instances.insert",
            status=403,
            reason=reason,
            message="Quota 'CPUS' exceeded.  Limit: 8.0 in region us-central1.",
        )
    )
    with pytest.raises(error, match="Limit: 8"):
        GCECluster(**settings)
    assert not process_emulator.faults.unused()
    assert_all_gone(process_emulator)


def test_stock_out(process_emulator, settings):
    process_emulator.faults.add(
        Fault(
            method="compute.instances.insert",
            operation_errors=[
                {
                    "code": "ZONE_RESOURCE_POOL_EXHAUSTED",
                    "message": "The zone does not have enough resources available.",
                }
            ],
        )
    )
    with pytest.raises(InstanceError, match="enough resources") as caught:
        GCECluster(**settings)
    assert isinstance(caught.value.__cause__, OutOfCapacity)
    assert not process_emulator.faults.unused()
    assert_all_gone(process_emulator)


def test_refused_worker_leaves_the_others(process_emulator, settings):
    """One machine of a bulk insert is not to be had; it is asked for again, a little later."""
    with GCECluster(**settings) as cluster:
        process_emulator.faults.add(
            Fault(
                method="compute.instances.bulkInsert",
                operation_errors=[{"code": "INTERNAL_ERROR", "message": "Internal error."}],
            )
        )
        cluster.scale(2)
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
        (failure,) = cluster.failures
        assert isinstance(failure, InstanceError)
        assert isinstance(failure.__cause__, OperationError)
        assert failure.name not in cluster.plan
        assert len(cluster.plan) == 2
    assert not process_emulator.faults.unused()
    assert_all_gone(process_emulator)
