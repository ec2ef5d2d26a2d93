"""Machines with labels, in a local Compute Engine and as records, to be read back in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone

from clusters import until
from fleets import WORKER, ZONE
from google.auth.credentials import AnonymousCredentials

from dask_gce import names
from dask_gce.cluster_records import ClusterRecord, Machine
from dask_gce.compute import Compute
from dask_gce.instance import build_insert

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
AGGREGATED = "compute.instances.aggregatedList"


@asynccontextmanager
async def compute_of(cloud) -> AsyncIterator[Compute]:
    """Return the Compute API of a local Compute Engine."""
    async with Compute(
        "local-project", endpoint=cloud.endpoint, credentials=AnonymousCredentials(), rate=10_000
    ) as compute:
        yield compute


def labels_of(cluster="grid", role="worker", identity="a" * 32, owner="ada", **more):
    labels = names.cluster_labels(cluster, role or None, owner)
    if identity:
        labels[names.ID_LABEL] = identity
    return {**labels, **{f"dask-gce-{key}": value for key, value in more.items()}}


async def insert(cloud, compute, name, labels, zone=ZONE, overrides=None, wait=True):
    """Make a machine with these labels."""
    spec = replace(WORKER, name=name, zone=zone, labels=labels, overrides=overrides or {})
    await compute.insert_instance(zone, build_insert(spec))
    if wait:
        await until(lambda: status_of(cloud, name) == "RUNNING")


def status_of(cloud, name):
    return next((each["status"] for each in cloud.instances() if each["name"] == name), None)


def machine(name="vm", role="worker", status="RUNNING", created=NOON, **more):
    return Machine(name, more.pop("zone", ZONE), role, status, "e2-small", False, created, **more)


def record(*machines, name="grid", identity="a" * 32, **more):
    fields = {"project": "p", "owner": "ada", "client": "", "expires": None, **more}
    return ClusterRecord(name, identity, machines=machines or (machine(),), **fields)
