"""What a worker is given of its machine, and how the machines of a cluster are told apart."""

from __future__ import annotations

import copy
import dataclasses
import json
import tracemalloc

import pytest

from dask_gce.blueprint import Blueprint
from dask_gce.instance import build_insert
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.startup import PUBLIC_ENDPOINT, Tls

GIB = 2**30
ZONE = "us-central1-a"
SHAPE = MachineShape("e2-standard-4", 4, 16 * GIB)
HERE = Location(ZONE, SHAPE)
#: What the workers on that machine share when the scheduler is there too: 5 % each for the system
#: and the scheduler.
LOCAL = SHAPE.usable_memory - int(SHAPE.usable_memory * 0.05)


def blueprint(**settings):
    return Blueprint(
        settings=Settings.load(**settings),
        project="example.com:render-farm",
        cluster="dask-1",
        identity="c0ffee",
        owner="Ada Lovelace",
    )


def opts(plan, location=HERE):
    metadata = plan.worker("w", location, "tcp://s:8786").metadata
    return json.loads(metadata["dask-gce-spec"])["opts"]


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
        ({"memory_limit": "auto", "nthreads": 1}, 1, "auto", SHAPE.usable_memory // 4),
        ({"memory_limit": "auto", "nthreads": 9}, 9, "auto", SHAPE.usable_memory),
        ({"memory_limit": 0}, 4, 0, SHAPE.usable_memory),
        ({"processes": 2}, 2, SHAPE.usable_memory // 2, SHAPE.usable_memory // 2),
        ({"processes": 3}, 1, SHAPE.usable_memory // 3, SHAPE.usable_memory // 3),
        ({"processes": 8}, 1, SHAPE.usable_memory // 8, SHAPE.usable_memory // 8),
        ({"processes": 2, "memory_limit": 0}, 2, 0, SHAPE.usable_memory // 2),
        # A user's choice, even where it is more than there is.
        ({"processes": 4, "nthreads": 4, "memory_limit": "9GiB"}, 4, "9GiB", 9 * GIB),
    ],
)
def test_threads_and_memory(settings, nthreads, limit, memory):
    plan = blueprint(**settings)
    assert (plan.nthreads(SHAPE), plan.memory(SHAPE)) == (nthreads, memory)
    assert plan.memory_limit(SHAPE) == limit
    assert opts(plan)["nthreads"] == nthreads
    assert opts(plan)["memory_limit"] == limit


def test_workers_have_what_their_own_machine_offers():
    plan = blueprint()
    small = Location(ZONE, MachineShape("e2-small", 2, 2 * GIB))
    assert (opts(plan)["nthreads"], opts(plan, small)["nthreads"]) == (4, 2)
    assert opts(plan, small)["memory_limit"] == 2 * GIB - 256 * 2**20


@pytest.mark.parametrize(("processes", "suffixes"), [(1, ()), (3, ("-0", "-1", "-2"))])
def test_a_machine_may_run_several_workers(processes, suffixes):
    plan = blueprint(processes=processes)
    assert (plan.processes, plan.suffixes) == (processes, suffixes)
    assert plan.worker("w", HERE, "tcp://s:1").metadata["dask-gce-processes"] == str(processes)
    assert plan.scheduler("s", HERE).metadata["dask-gce-processes"] == "1"


@pytest.mark.parametrize(
    ("settings", "nthreads", "limit"),
    [
        ({"single_node": True}, 4, LOCAL),
        ({"single_node": True, "processes": 2}, 2, LOCAL // 2),
        ({"workers_on_scheduler": 3, "processes": 2}, 1, LOCAL // 3),
        ({"workers_on_scheduler": 2, "nthreads": 1, "memory_limit": "2 GB"}, 1, "2 GB"),
        ({"workers_on_scheduler": 2, "worker_options": {"memory_limit": 0.25}}, 2, 0.25),
    ],
)
def test_workers_on_the_scheduler_share_its_machine(settings, nthreads, limit):
    plan = blueprint(**settings)
    metadata = plan.scheduler("s", HERE).metadata
    spec = json.loads(metadata["dask-gce-local-spec"])
    assert (spec["opts"]["nthreads"], spec["opts"]["memory_limit"]) == (nthreads, limit)
    # Where the scheduler is the machine knows.
    assert spec.keys() == {"cls", "opts"}
    assert metadata["dask-gce-local-processes"] == str(plan.local_workers)
    assert plan.local_suffixes == tuple(f"-{number}" for number in range(plan.local_workers))
    share = plan.local_share(SHAPE)
    assert (share.nthreads, share.memory_limit) == (nthreads, limit)
    # The scheduler itself is told nothing of them.
    assert json.loads(metadata["dask-gce-spec"]) == json.loads(
        blueprint().scheduler("s", HERE).metadata["dask-gce-spec"]
    )


def test_a_scheduler_alone_hears_nothing_of_workers():
    plan = blueprint(processes=4)
    assert (plan.local_workers, plan.local_suffixes) == (0, ())
    assert not any("local" in key for key in plan.scheduler("s", HERE).metadata)


def test_workers_on_the_scheduler_leave_it_some_memory():
    for memory in (GIB, 16 * GIB, 600 * GIB):
        shape = MachineShape("m", 8, memory)
        plan = blueprint(workers_on_scheduler=4)
        assert plan.local_share(shape).memory * 4 <= shape.usable_memory - 256 * 2**20
        assert plan.local_share(shape).memory * 4 > shape.usable_memory * 0.6


def test_workers_on_the_scheduler_have_the_certificates_of_workers():
    roles = {role: Tls("the ca", f"{role}'s", f"{role}'s key") for role in ("scheduler", "worker")}
    plan = dataclasses.replace(blueprint(single_node=True), tls=roles)
    metadata = plan.scheduler("s", HERE).metadata
    assert json.loads(metadata["dask-gce-tls"])["cert"] == "scheduler's"
    assert json.loads(metadata["dask-gce-local-tls"])["cert"] == "worker's"
    assert json.loads(metadata["dask-gce-local-tls"])["key"] == "worker's key"
    assert metadata["dask-gce-secrets"] == "tls local-tls"


def test_machines_beyond_a_single_node_have_processes_each():
    plan = blueprint(single_node=True, workers_on_scheduler=3, processes=2)
    assert plan.suffixes == ("-0", "-1")
    assert plan.worker("w", HERE, "tcp://s:1").metadata["dask-gce-processes"] == "2"
    assert opts(plan)["nthreads"] == 2


def test_workers_find_the_scheduler_by_a_name_known_beforehand():
    plan = blueprint()
    address = plan.address("dask-1-scheduler-2", ZONE)
    host = "dask-1-scheduler-2.us-central1-a.c.render-farm.example.com.internal"
    assert address == f"tcp://{host}:8786"
    metadata = plan.worker("w", Location("us-east1-b", SHAPE), address).metadata
    assert json.loads(metadata["dask-gce-scheduler"]) == {
        "host": host,
        "port": 8786,
        "timeout": 600,
    }
    assert json.loads(metadata["dask-gce-spec"])["args"] == [address]


def test_every_machine_and_disk_carries_the_clusters_labels():
    spec = blueprint(labels={"team": "nine"}).scheduler("dask-1-scheduler-2", HERE)
    body = build_insert(spec)
    expected = {
        "team": "nine",
        "dask-gce-cluster": "dask-1",
        "dask-gce-id": "c0ffee",
        "dask-gce-role": "scheduler",
        "dask-gce-owner": "ada-lovelace",
    }
    assert body["labels"] == expected
    assert body["disks"][0]["initializeParams"]["labels"] == expected


def test_machines_are_made_where_they_are_wanted():
    plan = blueprint()
    there = Location("us-east1-b", MachineShape("n2-standard-8", 8, 32 * GIB))
    for spec in (plan.scheduler("s", there), plan.worker("w", there, "tcp://s:1")):
        assert (spec.zone, spec.machine_type) == ("us-east1-b", "n2-standard-8")


def test_machines_delete_themselves_where_they_were_made():
    assert blueprint().scheduler("s", HERE).metadata["dask-gce-api"] == PUBLIC_ENDPOINT
    local = blueprint(api_endpoint="http://127.0.0.1:1234")
    assert local.scheduler("s", HERE).metadata["dask-gce-api"] == "http://127.0.0.1:1234"


def test_workers_of_one_place_share_all_but_the_name():
    plan = blueprint()
    first, second = (plan.worker(name, HERE, "tcp://s:1") for name in "ab")
    assert (first.name, second.name) == ("a", "b")
    assert first.metadata is second.metadata
    assert first.labels is second.labels
    # Another place, another scheduler: nothing of it is shared by mistake.
    there = Location("us-east1-b", SHAPE)
    assert plan.worker("c", there, "tcp://s:1").zone == "us-east1-b"
    assert "tcp://t:1" in plan.worker("d", HERE, "tcp://t:1").metadata["dask-gce-spec"]


def test_a_thousand_workers_are_small():
    plan = blueprint(env_vars={"BIG": "x" * 100_000})
    plan.worker("first", HERE, "tcp://s:1")
    names = [f"dask-3f9a61c2-worker-{number:04x}" for number in range(1000)]
    tracemalloc.start()
    try:
        specs = [plan.worker(name, HERE, "tcp://s:1") for name in names]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(specs) == 1000
    assert used < 1000 * 240  # bytes, the names not counted


def test_what_is_shared_is_no_part_of_what_a_blueprint_says():
    plan = blueprint()
    spec = plan.worker("w", HERE, "tcp://s:1")
    # By the way that pickles go.
    again = copy.deepcopy(plan)
    assert again == plan == blueprint()
    assert again.worker("w", HERE, "tcp://s:1") == spec == copy.deepcopy(spec)
    assert "tcp://s:1" not in repr(plan)
