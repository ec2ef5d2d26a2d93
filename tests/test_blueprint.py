"""What a worker is given of its machine, and how the machines of a cluster are told apart."""

from __future__ import annotations

import json

import pytest

from dask_gce.blueprint import Blueprint, MachineShape
from dask_gce.instance import build_insert
from dask_gce.settings import Settings
from dask_gce.startup import PUBLIC_ENDPOINT

GIB = 2**30
SHAPE = MachineShape("e2-standard-4", 4, 16 * GIB)


def blueprint(**settings):
    return Blueprint(
        settings=Settings.load(**settings),
        project="example.com:render-farm",
        zone="us-central1-a",
        cluster="dask-1",
        identity="c0ffee",
        worker_shape=SHAPE,
        owner="Ada Lovelace",
    )


def opts(plan):
    return json.loads(plan.worker("w", "tcp://s:8786").metadata["dask-gce-spec"])["opts"]


def test_a_shape_is_read_from_the_api():
    answer = {"name": "e2-standard-4", "guestCpus": 4, "memoryMb": 16384}
    assert MachineShape.parse(answer) == SHAPE


@pytest.mark.parametrize(
    ("memory", "usable"), [(GIB, GIB - 256 * 2**20), (16 * GIB, 16 * GIB - int(0.8 * GIB))]
)
def test_the_system_keeps_some_memory(memory, usable):
    assert MachineShape("m", 1, memory).usable_memory == usable


@pytest.mark.parametrize(
    ("settings", "nthreads", "limit", "memory"),
    [
        ({}, 4, SHAPE.usable_memory, SHAPE.usable_memory),
        ({"nthreads": 2, "memory_limit": "4 GB"}, 2, "4 GB", 4 * 10**9),
        ({"worker_options": {"nthreads": 1, "memory_limit": 10**9}}, 1, 10**9, 10**9),
        ({"memory_limit": 0.5}, 4, 0.5, 8 * GIB),
        ({"memory_limit": "0.5"}, 4, "0.5", 8 * GIB),
        ({"memory_limit": 1}, 4, 1, 16 * GIB),
        ({"memory_limit": "auto"}, 4, "auto", SHAPE.usable_memory),
    ],
)
def test_threads_and_memory(settings, nthreads, limit, memory):
    plan = blueprint(**settings)
    assert (plan.nthreads, plan.memory) == (nthreads, memory)
    assert opts(plan)["nthreads"] == nthreads
    assert opts(plan)["memory_limit"] == limit


def test_workers_find_the_scheduler_by_a_name_known_beforehand():
    plan = blueprint()
    address = plan.address("dask-1-scheduler-2")
    host = "dask-1-scheduler-2.us-central1-a.c.render-farm.example.com.internal"
    assert address == f"tcp://{host}:8786"
    metadata = plan.worker("w", address).metadata
    assert json.loads(metadata["dask-gce-scheduler"]) == {
        "host": host,
        "port": 8786,
        "timeout": 600,
    }
    assert json.loads(metadata["dask-gce-spec"])["args"] == [address]


def test_every_machine_and_disk_carries_the_clusters_labels():
    body = build_insert(blueprint(labels={"team": "nine"}).scheduler("dask-1-scheduler-2"))
    expected = {
        "team": "nine",
        "dask-gce-cluster": "dask-1",
        "dask-gce-id": "c0ffee",
        "dask-gce-role": "scheduler",
        "dask-gce-owner": "ada-lovelace",
    }
    assert body["labels"] == expected
    assert body["disks"][0]["initializeParams"]["labels"] == expected


def test_roles_can_have_machine_types_of_their_own():
    plan = blueprint(scheduler_machine_type="e2-small", worker_machine_type="n2-standard-8")
    assert plan.scheduler("s").machine_type == "e2-small"
    assert plan.worker("w", "tcp://s:1").machine_type == "n2-standard-8"


def test_machines_delete_themselves_where_they_were_made():
    assert blueprint().scheduler("s").metadata["dask-gce-api"] == PUBLIC_ENDPOINT
    local = blueprint(api_endpoint="http://127.0.0.1:1234")
    assert local.scheduler("s").metadata["dask-gce-api"] == "http://127.0.0.1:1234"
