"""The Compute verbs: against the local Compute Engine, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import psutil
import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials
from scripted_api import Answer, Request, ScriptedAPI, operation, refusal

from dask_gce import errors, operations
from dask_gce.calls import Clock
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.operation import Operation
from dask_gce.policy import RetryPolicy

PROJECT = "my-project"
ZONE = "us-central1-a"
RUNNING = Operation("operation-1", "z", "insert", "RUNNING", "i")


class FastClock(Clock):
    """Sleeping takes no time, but the clock says it did."""

    def __init__(self, now: float = 50.0) -> None:
        self.passed = 0.0
        self.slept: list[float] = []
        self._start = now

    def monotonic(self) -> float:
        return super().monotonic() + self.passed

    def time(self) -> float:
        return self._start + self.passed

    def pause(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds

    async def sleep(self, seconds: float) -> None:
        self.pause(seconds)
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def make_compute(endpoint: str, **options: Any) -> Compute:
    options.setdefault("credentials", AnonymousCredentials())
    return Compute(PROJECT, endpoint=endpoint, **options)


@pytest.fixture
def paper(emulator: ComputeEmulator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine all of whose faults must happen."""
    yield emulator
    assert emulator.faults.unused() == []


@pytest.fixture
async def compute(paper: ComputeEmulator) -> AsyncIterator[Compute]:
    async with make_compute(paper.endpoint, clock=FastClock()) as compute:
        yield compute


@asynccontextmanager
async def scripted(
    script: Callable[[Request], Answer], **options: Any
) -> AsyncIterator[tuple[Compute, ScriptedAPI]]:
    with ScriptedAPI(script) as api:
        async with make_compute(api.endpoint, **options) as compute:
            yield compute, api


def instance(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/e2-standard-2",
        "labels": {"dask-gce-cluster": "c"},
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/cos-cloud/global/images/family/cos-stable"
                },
            }
        ],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "metadata": {"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]},
        **more,
    }


def bulk(*names: str) -> dict[str, Any]:
    properties = instance("x")
    del properties["name"]
    properties["machineType"] = "e2-standard-2"
    return {
        "count": str(len(names)),
        "perInstanceProperties": {name: {} for name in names},
        "instanceProperties": properties,
    }


# Against the local Compute Engine ------------------------------------------------------------


async def test_the_life_of_an_instance(compute: Compute, paper: ComputeEmulator) -> None:
    accepted = await compute.insert_instance(ZONE, instance("dask-1"))
    assert (accepted.type, accepted.target, accepted.zone) == ("insert", "dask-1", ZONE)
    assert not accepted.done
    done = await compute.wait_operation(accepted, 10)
    assert done.done
    assert not done.failed
    # The wait went to the endpoint; a library's own would have gone to googleapis.com.
    assert paper.requests["compute.zoneOperations.wait"] > 0

    found = await compute.get_instance(ZONE, "dask-1")
    assert found["labels"] == {"dask-gce-cluster": "c"}
    assert found["id"].isdigit()  # 64-bit integers are strings, as the API has them
    assert await compute.get_instance(ZONE, "dask-1", "name,zone") == {
        "name": "dask-1",
        "zone": found["zone"],
    }
    text, following = await compute.get_serial_port_output(ZONE, "dask-1")
    assert following == len(text)
    assert await compute.get_guest_attributes(ZONE, "dask-1", "dask-gce/") == {}

    deleting = await compute.delete_instance(ZONE, "dask-1")
    assert deleting is not None
    await compute.wait_operation(deleting, 10)
    assert await compute.delete_instance(ZONE, "dask-1") is None
    with pytest.raises(errors.NotFound, match="dask-1"):
        await compute.get_instance(ZONE, "dask-1")


async def test_looking_things_up(compute: Compute) -> None:
    assert (await compute.get_project())["name"] == PROJECT
    assert (await compute.get_zone(ZONE))["name"] == ZONE
    shape = await compute.get_machine_type(ZONE, "n2-custom-8-16384")
    assert (shape["guestCpus"], shape["memoryMb"]) == (8, 16384)
    image = await compute.get_image_from_family("cos-cloud", "cos-stable")
    assert image["name"].startswith("cos-stable-")
    with pytest.raises(errors.NotFound, match="no-such-zone"):
        await compute.get_zone("no-such-zone")


async def test_a_bulk_insert_and_lists(compute: Compute) -> None:
    names = [f"dask-{number}" for number in range(5)]
    accepted = await compute.bulk_insert_instances(ZONE, bulk(*names))
    assert accepted.target == ""
    await compute.wait_operation(accepted, 10)
    children = await compute.list_group_operations(accepted)
    assert sorted(child.target for child in children) == names

    label = "labels.dask-gce-cluster = c"
    listed = await compute.list_instances(ZONE, label, "items(name,status)")
    assert sorted(item["name"] for item in listed) == names
    assert {frozenset(item) for item in listed} == {frozenset({"name", "status"})}
    assert await compute.list_instances(ZONE, "labels.dask-gce-cluster = other") == []
    everywhere, unreachable = await compute.aggregated_list_instances(label, "name")
    assert sorted(item["name"] for item in everywhere) == names
    assert unreachable == frozenset()


@pytest.mark.parametrize("drop", [True, "after"])
async def test_a_repeat_after_a_broken_connection_makes_one_instance(
    compute: Compute, paper: ComputeEmulator, drop: bool | Literal["after"]
) -> None:
    paper.faults.add(Fault("compute.instances.insert", drop=drop))
    await compute.wait_operation(await compute.insert_instance(ZONE, instance("dask-1")), 10)
    assert paper.requests["compute.instances.insert"] == 2
    assert [item["name"] for item in paper.instances()] == ["dask-1"]


async def test_over_the_rate_limit_a_call_waits_for_the_next_minute(paper: ComputeEmulator) -> None:
    refused = Fault("compute.zones.get", status=403, reason="rateLimitExceeded", times=2)
    paper.faults.add(refused)
    clock = FastClock(now=50.0)
    policy = RetryPolicy(draw=lambda: 0.5)
    async with make_compute(paper.endpoint, clock=clock, policy=policy) as compute:
        assert (await compute.get_zone(ZONE))["name"] == ZONE
    assert clock.slept == [12.5, 60.0]


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "invalid", errors.APIError),
        (403, "forbidden", errors.PermissionDenied),
        (403, "accessNotConfigured", errors.PermissionDenied),
        (403, "quotaExceeded", errors.QuotaExceeded),
        (409, "alreadyExists", errors.AlreadyExists),
        (503, "insufficientCapacity", errors.OutOfCapacity),
    ],
)
async def test_a_refusal_that_stays_is_raised_at_once(
    compute: Compute,
    paper: ComputeEmulator,
    status: int,
    reason: str,
    kind: type[errors.GCEError],
) -> None:
    paper.faults.add(
        Fault("compute.instances.insert", status=status, reason=reason, message="Because.")
    )
    with pytest.raises(kind, match=f"dask-1 in zone {ZONE} of project {PROJECT}: Because") as info:
        await compute.insert_instance(ZONE, instance("dask-1"))
    assert type(info.value) is kind
    assert info.value.__cause__ is not None
    assert paper.requests["compute.instances.insert"] == 1
    if isinstance(info.value, errors.APIError):
        assert (info.value.method, info.value.reason) == ("POST", reason)
        assert info.value.url == (
            f"{paper.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
        )


async def test_a_failed_operation_is_raised_by_its_code(
    compute: Compute, paper: ComputeEmulator
) -> None:
    stock_out = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "No e2 today"}
    paper.faults.add(Fault("compute.instances.insert", operation_errors=[stock_out], times=2))
    first = await compute.insert_instance(ZONE, instance("dask-1"))
    with pytest.raises(errors.OutOfCapacity, match="insert instance dask-1 in zone") as info:
        await compute.wait_operation(first, 10)
    assert info.value.operation == first.name
    second = await compute.insert_instance(ZONE, instance("dask-2"))
    with pytest.raises(errors.OutOfCapacity, match="No e2 today"):
        for _ in range(200):
            await compute.get_operation(second)


async def test_a_bulk_insert_that_was_rolled_back_tells_why(
    compute: Compute, paper: ComputeEmulator
) -> None:
    quota = {"code": "QUOTA_EXCEEDED", "message": "Quota 'CPUS' exceeded"}
    paper.faults.add(Fault("compute.instances.bulkInsert", operation_errors=[quota]))
    accepted = await compute.bulk_insert_instances(ZONE, bulk("dask-1", "dask-2"))
    with pytest.raises(errors.OperationError, match="Quota 'CPUS' exceeded") as info:
        await compute.wait_operation(accepted, 10)
    assert info.value.code == "QUOTA_EXCEEDED"
    assert "VM_MIN_COUNT_NOT_REACHED" in {error["code"] for error in info.value.errors}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"machinetype": "x"}, "'machinetype'. Did you mean 'machineType'?"),
        ({"machine_type": "x"}, "'machine_type'. Did you mean 'machineType'?"),
        ({"scheduling": {"onHostMaintenace": "x"}}, "'scheduling.onHostMaintenace'"),
        ({"disks": [{}, {"initializeParams": {"size": 1}}]}, "'disks[1].initializeParams.size'"),
        ({"scheduling": {"automaticRestart": "true"}}, "Instance.scheduling.automaticRestart"),
        ({"labels": {"a": 1}}, "labels"),
    ],
)
async def test_a_field_that_nobody_knows_is_named_and_nothing_is_sent(
    compute: Compute, paper: ComputeEmulator, more: dict[str, Any], named: str
) -> None:
    with pytest.raises(errors.SettingsError) as info:
        await compute.insert_instance(ZONE, instance("dask-1", **more))
    assert named in str(info.value)
    assert info.value.key == "instance_overrides"
    assert paper.requests["compute.instances.insert"] == 0


async def test_unknown_fields_inside_a_map_are_named_too(compute: Compute) -> None:
    body = bulk("dask-1")
    body["perInstanceProperties"]["dask-1"] = {"hostnam": "x"}
    with pytest.raises(errors.SettingsError) as info:
        await compute.bulk_insert_instances(ZONE, body)
    assert "perInstanceProperties['dask-1'].hostnam" in str(info.value)


# What goes over the wire ---------------------------------------------------------------------


async def test_version_mask_and_request_id_are_sent() -> None:
    request_id = "11111111-2222-4333-8444-555555555555"

    def script(request: Request) -> Answer:
        return operation() if request.method == "POST" else Answer()

    async with scripted(script) as (compute, api):
        await compute.list_instances("z", "labels.a = b", "items(name,status)")
        await compute.aggregated_list_instances("", "name")
        await compute.insert_instance("z", {"name": "i"}, request_id)
        await compute.insert_instance("z", {"name": "i"})
        await compute.list_instances("z")
        await compute.list_instances("z", fields="*")
        await compute.aggregated_list_instances(fields="*")
    listed, everywhere, given, made, usual, *unmasked = api.requests
    assert listed.headers["x-goog-fieldmask"] == "items(name,status),nextPageToken"
    assert listed.query == {"filter": "labels.a = b"}
    assert everywhere.headers["x-goog-fieldmask"] == (
        "items/*/instances(name),items/*/warning,unreachables,nextPageToken"
    )
    assert everywhere.query == {}
    # Without being asked, a list does not carry the metadata of its instances.
    assert usual.headers["x-goog-fieldmask"].startswith("items(name,status,")
    assert "metadata" not in usual.headers["x-goog-fieldmask"]
    assert [request.headers.get("x-goog-fieldmask") for request in unmasked] == [None, None]
    assert {request.headers["x-goog-api-version"] for request in api.requests} == {"2026-09-01"}
    assert all("dask-gce/" in request.headers["x-goog-api-client"] for request in api.requests)
    assert given.query["requestId"] == request_id
    assert len(made.query["requestId"]) == 36
    assert made.query["requestId"] != request_id


async def test_a_body_arrives_as_it_was_given() -> None:
    body = instance(
        "dask-1", scheduling={"automaticRestart": False, "maxRunDuration": {"seconds": "60"}}
    )
    body["networkInterfaces"] = [{"accessConfigs": [{}], "networkIP": "10.128.0.2"}]
    body["metadata"]["items"] += [{"key": "k", "value": "'\"$(x)`\n\u00e9\u4e16\x01"}]
    async with scripted(lambda request: operation()) as (compute, api):
        await compute.insert_instance("z", body)
        await compute.bulk_insert_instances("z", bulk("dask-1"))
    assert api.requests[0].body == body
    assert api.requests[1].body == bulk("dask-1")


async def test_a_repeat_carries_the_same_request_id() -> None:
    answers = [Answer(drop=True), refusal(503, "backendError"), operation()]
    async with scripted(lambda request: answers.pop(0), clock=FastClock()) as (compute, api):
        await compute.insert_instance("z", {"name": "i"})
        assert len(api.requests) == 3
        assert len({request.query["requestId"] for request in api.requests}) == 1
        answers += [Answer(drop=True), operation()]
        await compute.delete_instance("z", "i")
    assert api.requests[3].query["requestId"] == api.requests[4].query["requestId"]
    assert api.requests[3].query["requestId"] != api.requests[2].query["requestId"]


async def test_all_pages_are_read_and_each_is_repeated_by_itself() -> None:
    pages = [
        Answer({"items": [{"name": "a"}], "nextPageToken": "2"}),
        refusal(503, "backendError"),
        Answer({"items": [{"name": "b"}], "nextPageToken": "3"}),
        Answer({"items": [{"name": "c"}]}),
    ]
    async with scripted(lambda request: pages.pop(0), clock=FastClock()) as (compute, api):
        listed = await compute.list_instances("z", "f")
    assert [item["name"] for item in listed] == ["a", "b", "c"]
    assert [request.query.get("pageToken") for request in api.requests] == [None, "2", "2", "3"]


async def test_a_zone_that_does_not_answer_is_unknown_not_empty() -> None:
    pages = [
        Answer(
            {
                "items": {
                    "zones/a": {"instances": [{"name": "i"}]},
                    "zones/b": {"warning": {"code": "NO_RESULTS_ON_PAGE"}},
                    "zones/c": {"warning": {"code": "UNREACHABLE"}},
                },
                "nextPageToken": "2",
            }
        ),
        Answer({"items": {}, "unreachables": ["projects/p/zones/d"]}),
    ]
    async with scripted(lambda request: pages.pop(0)) as (compute, _):
        found, unreachable = await compute.aggregated_list_instances()
    assert [item["name"] for item in found] == ["i"]
    assert unreachable == {"c", "d"}


async def test_where_a_mask_is_refused_whole_answers_do() -> None:
    def script(request: Request) -> Answer:
        if "x-goog-fieldmask" in request.headers or request.query.get("filter") == "bad":
            return refusal(400, "invalid")
        return Answer({"items": [{"name": "i"}]})

    async with scripted(script) as (compute, api):
        for _ in range(2):
            assert await compute.list_instances("z", "", "items(name)") == [{"name": "i"}]
        assert len(api.requests) == 3  # the second list knew
        with pytest.raises(errors.APIError):
            await compute.list_instances("z", "bad", "items(name)")
        assert len(api.requests) == 4
        with pytest.raises(errors.APIError):  # the mask was not to blame, so it is tried again
            await compute.list_instances("z", "bad", "items(name)")
    assert len(api.requests) == 6


async def test_guest_attributes_and_serial_port() -> None:
    def script(request: Request) -> Answer:
        if request.path.endswith("getGuestAttributes"):
            items = [{"namespace": "dask-gce", "key": "phase", "value": "running"}]
            return Answer({"queryValue": {"items": items}})
        return Answer({"contents": "caf\u00e9", "start": "7", "next": "12"})

    async with scripted(script) as (compute, api):
        assert await compute.get_guest_attributes("z", "i", "dask-gce/") == {"phase": "running"}
        assert await compute.get_serial_port_output("z", "i", 7) == ("caf\u00e9", 12)
    assert api.requests[0].query == {"queryPath": "dask-gce/"}
    assert api.requests[1].query == {"port": "1", "start": "7"}


# What goes wrong -----------------------------------------------------------------------------


async def test_faults_are_repeated_until_the_deadline() -> None:
    clock = FastClock()
    options = {"clock": clock, "call_timeout": 60.0, "policy": RetryPolicy(draw=lambda: 1.0)}
    async with scripted(lambda request: refusal(500, "backendError"), **options) as (compute, api):
        with pytest.raises(errors.ServerFault):
            await compute.get_project()
    assert clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(api.requests) == 7


async def test_retry_after_is_honoured() -> None:
    answers = [refusal(503, "backendError", Retry_After="9"), Answer({"name": "p"})]
    clock = FastClock()
    async with scripted(lambda request: answers.pop(0), clock=clock) as (compute, _):
        await compute.get_project()
    assert len(clock.slept) == 1
    assert 9.0 <= clock.slept[0] <= 9.5


async def test_an_answer_from_something_else_than_compute_engine() -> None:
    page = "<html>" + "x" * 5000
    answers = [Answer(text=page, status=404), Answer(text=page)]
    async with scripted(lambda request: answers.pop(0)) as (compute, api):
        with pytest.raises(errors.NotFound) as refused:
            await compute.get_project()
        with pytest.raises(errors.TransportError, match="not Compute Engine"):
            await compute.get_project()
    assert len(str(refused.value)) < 1500
    assert len(api.requests) == 2


async def test_no_connection_names_method_and_address_but_no_token() -> None:
    with ScriptedAPI(lambda request: Answer(delay=0.5)) as api:
        options: dict[str, Any] = {"credentials": Credentials("SECRET"), "call_timeout": 0.5}
        async with make_compute(api.endpoint, exchange_timeout=0.1, **options) as compute:
            with pytest.raises(errors.TransportError, match="did not come in time") as late:
                await compute.get_instance("z", "dask-1")
        assert api.requests[0].headers["authorization"] == "Bearer SECRET"
    # The server is gone: now nothing listens there.
    async with make_compute(api.endpoint, **options) as compute:
        with pytest.raises(errors.TransportError, match="Connection refused") as refused:
            await compute.get_instance("z", "dask-1")
    for error in (late.value, refused.value):
        assert error.method == "GET"
        assert error.url == f"{api.endpoint}/compute/v1/projects/{PROJECT}/zones/z/instances/dask-1"
        assert "dask-1" in str(error)
        assert "SECRET" not in f"{error!r} {error} {compute!r}"
        assert error.__cause__ is not None


async def test_credentials_that_give_no_token() -> None:
    class Expired(AnonymousCredentials):  # type: ignore[misc] # google-auth has no types
        def before_request(self, *args: Any) -> None:
            raise RefreshError("Reauthentication is needed.", {"access_token": "SECRET"})

    async with scripted(lambda request: Answer(), credentials=Expired()) as (compute, api):
        with pytest.raises(errors.CredentialsError, match="Reauthentication is needed") as info:
            await compute.get_project()
    assert "SECRET" not in str(info.value)
    assert api.requests == []


async def test_a_proxy_of_the_environment_is_not_asked_for_a_local_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with scripted(lambda request: Answer({"name": "p"}), call_timeout=0.5) as (compute, _):
        assert await compute.get_project() == {"name": "p"}


# Waiting for operations ----------------------------------------------------------------------


async def test_a_wait_that_answers_at_once_is_not_asked_without_pause() -> None:
    answers = [operation(status="RUNNING")] * 3 + [operation(status="DONE")]
    clock = FastClock()
    async with scripted(lambda request: answers.pop(0), clock=clock) as (compute, _):
        assert (await compute.wait_operation(RUNNING, 60)).done
    assert len(clock.slept) == 3
    assert all(0.3 < pause <= operations.WAIT_FLOOR for pause in clock.slept)


async def test_a_wait_ends_at_its_deadline() -> None:
    async with scripted(lambda request: operation(), clock=FastClock()) as (compute, api):
        with pytest.raises(errors.TransportError, match=r"operation-1 .*still RUNNING after 3 s"):
            await compute.wait_operation(RUNNING, 3)
    assert 3 <= len(api.requests) <= 10


async def test_a_wait_that_is_held_long_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "WAIT_SLICE", 0.1)
    answers = [Answer(operation().json, delay=0.3), operation(status="DONE")]
    clock = FastClock()
    policy = RetryPolicy(first=100.0, draw=lambda: 1.0)
    async with scripted(lambda request: answers.pop(0), clock=clock, policy=policy) as (
        compute,
        api,
    ):
        assert (await compute.wait_operation(RUNNING, 60)).done
    assert len(api.requests) == 2
    # That is no failure, so there is no backoff.
    assert sum(clock.slept) < operations.WAIT_FLOOR


async def test_the_operations_of_the_instances_tell_why_a_bulk_insert_failed() -> None:
    vague = {"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 4 VMs"}
    quota = {"code": "QUOTA_EXCEEDED", "message": "Quota 'CPUS' exceeded"}
    failed = operation(
        operationType="bulkInsert",
        operationGroupId="g",
        status="DONE",
        error={"errors": [vague]},
    )
    child = operation(
        "operation-2",
        "DONE",
        operationGroupId="g",
        error={"errors": [quota]},
        httpErrorStatusCode=403,
    )
    stranger = operation("operation-3", "DONE", operationGroupId="gg", error={"errors": [vague]})
    listed = Answer({"items": [failed.json, child.json, stranger.json]})

    def script(request: Request) -> Answer:
        return failed if request.path.endswith("/wait") else listed

    async with scripted(script) as (compute, api):
        with pytest.raises(errors.OperationError, match="Quota 'CPUS' exceeded") as info:
            await compute.wait_operation(RUNNING, 10)
    assert info.value.code == "QUOTA_EXCEEDED"
    assert info.value.errors == (vague, quota)
    assert api.requests[1].query == {"filter": 'operationGroupId eq ".*\\bg\\b.*"'}


async def test_waits_leave_threads_for_other_calls() -> None:
    release = threading.Event()

    def script(request: Request) -> Answer:
        if request.path.endswith("/wait"):
            release.wait(5)
        return operation(status="DONE")

    async with scripted(script, threads=4) as (compute, api):
        held = [asyncio.create_task(compute.wait_operation(RUNNING, 60)) for _ in range(2)]
        await until(lambda: len(api.requests) == 2)
        # With half the threads held, a third wait looks instead, and other calls go through.
        assert (await compute.wait_operation(RUNNING, 60)).done
        await compute.get_project()
        assert [request.path.rpartition("/")[2] for request in api.requests] == [
            "wait",
            "wait",
            "operation-1",
            PROJECT,
        ]
        release.set()
        await asyncio.gather(*held)


# Threads, cancelling, the end ----------------------------------------------------------------


async def test_the_loop_goes_on_and_the_pool_is_bounded() -> None:
    gaps: list[float] = []

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    answer = Answer({"name": "p"}, delay=0.05)
    async with scripted(lambda request: answer, threads=16) as (compute, api):
        await compute.open()
        heart = asyncio.create_task(beat())
        began = time.monotonic()
        await asyncio.gather(*(compute.get_project() for _ in range(100)))
        took = time.monotonic() - began
        heart.cancel()
        assert len(api.requests) == 100
        for _ in range(2):
            await asyncio.gather(*(compute.get_project() for _ in range(16)))
    assert api.connections <= 16  # all of them are kept and used again
    assert 8 <= api.most_at_once <= 16
    assert took < 2.5  # one after the other they take five seconds
    assert max(gaps) < 0.25
    assert len(gaps) > 10


async def test_a_call_in_the_queue_can_be_cancelled() -> None:
    async with scripted(lambda request: Answer({}, delay=0.2), threads=1) as (compute, api):
        first = asyncio.create_task(compute.get_zone("first"))
        second = asyncio.create_task(compute.get_zone("second"))
        await until(lambda: api.requests)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        await compute.get_zone("third")
    assert [request.path.rpartition("/")[2] for request in api.requests] == ["first", "third"]


@pytest.mark.parametrize("now", [False, True], ids=["async", "sync"])
async def test_a_delete_does_not_overtake_an_insert_that_was_cancelled(now: bool) -> None:
    events: list[str] = []

    def script(request: Request) -> Answer:
        events.append(f"{request.method} begins")
        if request.method == "POST":
            time.sleep(0.3)
        events.append(f"{request.method} ends")
        return operation()

    async with scripted(script) as (compute, _):
        insert = asyncio.create_task(compute.insert_instance("z", {"name": "i"}))
        await until(lambda: events)
        insert.cancel()
        with pytest.raises(asyncio.CancelledError):
            await insert
        if now:
            assert compute.delete_instance_now("z", "i", time.monotonic() + 5)
        else:
            assert await compute.delete_instance("z", "i")
    assert events == ["POST begins", "POST ends", "DELETE begins", "DELETE ends"]


async def test_close_waits_for_what_is_under_way_and_leaves_nothing() -> None:
    ended = threading.Event()

    def script(request: Request) -> Answer:
        time.sleep(0.2)
        ended.set()
        return operation()

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("dask-gce")]

    with ScriptedAPI(script) as api:
        port = int(api.endpoint.rpartition(":")[2])

        def connections() -> list[Any]:
            found = psutil.Process().net_connections()
            return [
                c for c in found if c.raddr and c.raddr.port == port and c.status == "ESTABLISHED"
            ]

        compute = make_compute(api.endpoint)
        insert = asyncio.create_task(compute.insert_instance("z", {"name": "i"}))
        await until(lambda: api.requests)
        assert ours()
        assert connections()
        insert.cancel()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        await compute.close()
        ticking.cancel()
        assert ticks > 5  # closing does not hold the loop
        assert ended.is_set()
        assert ours() == []
        assert connections() == []
        await compute.close()
        with pytest.raises(errors.TransportError, match="closed"):
            await compute.get_project()
        # The synchronous verbs still work, and clean up after themselves too.
        assert compute.delete_instance_now("z", "i", time.monotonic() + 5)
        assert connections()
        compute.close_now()
        assert connections() == []
    del compute
    gc.collect()  # an open socket would show as a ResourceWarning here


def test_the_synchronous_verbs_repeat_and_give_up_in_time() -> None:
    answers = [
        refusal(503, "backendError"),
        Answer({"items": [{"name": "i"}], "nextPageToken": "2"}),
        Answer({"items": [{"name": "j"}]}),
        Answer(drop=True),
        operation(),
        refusal(404, "notFound"),
    ]
    clock = FastClock()
    with ScriptedAPI(lambda request: answers.pop(0)) as api:
        compute = make_compute(api.endpoint, clock=clock)
        found = compute.list_instances_now("z", "labels.a = b", clock.monotonic() + 60)
        assert [item["name"] for item in found] == ["i", "j"]
        assert compute.delete_instance_now("z", "i", clock.monotonic() + 60)
        assert not compute.delete_instance_now("z", "i", clock.monotonic() + 60)
        assert api.requests[3].query["requestId"] == api.requests[4].query["requestId"]
        answers += [refusal(503, "backendError")] * 2
        with pytest.raises(errors.ServerFault):
            compute.delete_instance_now("z", "i", clock.monotonic() + 1)
        assert len(answers) == 1  # no time for a second attempt
        with pytest.raises(errors.TransportError, match="No time was left to delete instance i"):
            compute.delete_instance_now("z", "i", clock.monotonic())
        assert len(answers) == 1
        compute.close_now()


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning,ignore::FutureWarning"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_synchronous_verbs_work_at_the_interpreters_exit(paper: ComputeEmulator) -> None:
    code = """
        import asyncio, atexit, sys, time
        from google.auth.credentials import AnonymousCredentials
        from dask_gce.compute import Compute

        compute = None

        @atexit.register
        def leave():
            deadline = time.monotonic() + 10
            for found in compute.list_instances_now("us-central1-a", "", deadline):
                compute.delete_instance_now("us-central1-a", found["name"], deadline)
                print(found["name"])
            compute.close_now()

        async def main():
            global compute
            compute = Compute(
                "my-project", endpoint=sys.argv[1], credentials=AnonymousCredentials()
            )
            body = eval(sys.argv[2])
            await compute.wait_operation(await compute.insert_instance("us-central1-a", body), 10)

        asyncio.run(main())
    """
    assert run_python(code, paper.endpoint, repr(instance("dask-1"))) == "dask-1\n"
    assert paper.requests["compute.instances.delete"] == 1
    deadline = time.monotonic() + 10
    while paper.instances() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert paper.instances() == []


def test_the_library_is_imported_late() -> None:
    code = """
        import sys
        import dask_gce.compute
        late = ("google.cloud.compute_v1", "google.auth.transport", "google.protobuf", "requests")
        print([name for name in late if name in sys.modules])
    """
    assert run_python(code) == "[]\n"


async def test_preload_imports_while_the_loop_goes_on() -> None:
    async with scripted(lambda request: Answer()) as (compute, api):
        compute.preload()
        compute.preload()
        await compute.open()
        assert "google.cloud.compute_v1" in sys.modules
        assert api.requests == []
