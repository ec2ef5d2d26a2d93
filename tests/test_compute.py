"""The Compute verbs: against the local Compute Engine, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote

import psutil
import pytest
from clusters import machine_stalls
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials
from scripted_api import (
    PROJECT,
    Answer,
    FastClock,
    Request,
    ScriptedAPI,
    instance,
    make_compute,
    operation,
    refusal,
    run_python,
)

from dask_gce import errors, operations
from dask_gce.clock import Clock
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.operation import Operation, explain_end
from dask_gce.policy import RetryPolicy

ZONE = "us-central1-a"
RUNNING = Operation("operation-1", "z", "insert", "RUNNING", "i")
DELETING = operation(operationType="delete")


class HurriedClock(Clock):
    """Time passes fifty times as fast, for many that wait at the same time."""

    def __init__(self) -> None:
        self.slept = 0

    def monotonic(self) -> float:
        return super().monotonic() * 50

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        await asyncio.sleep(seconds / 50)


class IdleClock(FastClock):
    """Time passes by sleeping only: an answer takes none, however busy the machine is."""

    def monotonic(self) -> float:
        return self.passed


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


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
    done = await compute.wait_operation(accepted, 60)
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
    await compute.wait_operation(deleting, 60)
    assert await compute.delete_instance(ZONE, "dask-1") is None
    with pytest.raises(errors.NotFound, match="dask-1"):
        await compute.get_instance(ZONE, "dask-1")


async def test_looking_things_up(compute: Compute) -> None:
    shape = await compute.get_machine_type(ZONE, "n2-custom-8-16384")
    assert (shape["guestCpus"], shape["memoryMb"]) == (8, 16384)
    image = await compute.get_image_from_family("cos-cloud", "cos-stable")
    assert image["name"].startswith("cos-stable-")
    with pytest.raises(errors.NotFound, match="no-such-type"):
        await compute.get_machine_type(ZONE, "no-such-type")


async def test_a_bulk_insert_and_lists(compute: Compute) -> None:
    names = [f"dask-{number}" for number in range(5)]
    accepted = await compute.bulk_insert_instances(ZONE, bulk(*names))
    assert accepted.target == ""
    await compute.wait_operation(accepted, 60)
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
    await compute.wait_operation(await compute.insert_instance(ZONE, instance("dask-1")), 60)
    assert paper.requests["compute.instances.insert"] == 2
    assert [item["name"] for item in paper.instances()] == ["dask-1"]


async def test_over_the_rate_limit_a_call_waits_for_the_next_minute(paper: ComputeEmulator) -> None:
    refused = Fault("compute.machineTypes.get", status=403, reason="rateLimitExceeded", times=2)
    paper.faults.add(refused)
    clock = FastClock(now=50.0)
    policy = RetryPolicy(draw=lambda: 0.5)
    async with make_compute(paper.endpoint, clock=clock, policy=policy) as compute:
        assert (await compute.get_machine_type(ZONE, "e2-standard-2"))["name"] == "e2-standard-2"
    assert clock.slept == pytest.approx([12.5, 60.0], abs=5)


async def test_nothing_goes_out_while_the_rate_is_used_up_and_no_stampede_follows() -> None:
    """A thousand deletes must not all come back at the first second of the new minute."""
    clock = HurriedClock()
    sent: list[tuple[float, str]] = []

    def script(request: Request) -> Answer:
        sent.append((clock.monotonic(), request.path.rpartition("/")[2]))
        return refusal(403, "rateLimitExceeded", Retry_After="30") if len(sent) == 5 else DELETING

    policy = RetryPolicy(draw=lambda: 0.0)
    options = {"clock": clock, "policy": policy, "rate": 5.0, "threads": 1}
    async with scripted(script, **options) as (compute, _):
        await compute.open()
        names = [f"i-{number}" for number in range(20)]
        await asyncio.gather(*(compute.delete_instance("europe-west1-b", name) for name in names))
        assert len(sent) == 21
        assert {name for _, name in sent} == set(names)
        passed = [at - sent[4][0] for at, _ in sent[5:]]
        # One may have been on its way, however slowly; then nothing, then one at a time.
        late = [at for at in passed if at >= 29.9]
        assert len(late) >= len(passed) - 1
        assert len([at for at in late if at < 30.9]) <= 6
        assert max(late) >= 30 + (len(late) - 1) / 5 - 0.1
        # Other regions and groups have quotas of their own.
        before = clock.slept
        await compute.delete_instance("us-central1-a", "i")
        await compute.get_instance("europe-west1-b", "i")
        assert clock.slept == before


async def test_time_in_the_bucket_does_not_count_against_a_calls_deadline() -> None:
    clock = FastClock()
    options = {"clock": clock, "rate": 0.1, "call_timeout": 15.0}
    refusals: list[Answer] = []

    def script(request: Request) -> Answer:
        return refusals.pop() if refusals else operation()

    async with scripted(script, **options) as (compute, api):
        await asyncio.gather(*(compute.delete_instance("z", f"i-{n}") for n in range(10)))
        assert len(api.requests) == 10
        assert clock.passed > 80
        # Nor between two attempts: the fourth comes 30 s after the first.
        refusals = [refusal(503, "backendError")] * 3
        await compute.delete_instance("europe-west1-b", "i")
        assert refusals == []


async def test_a_call_that_is_always_over_the_rate_ends() -> None:
    clock = FastClock(now=0.0)

    def script(request: Request) -> Answer:
        return refusal(403, "rateLimitExceeded") if len(api.requests) < 10 else operation()

    async with scripted(script, clock=clock, policy=RetryPolicy(draw=lambda: 0.5)) as (
        compute,
        api,
    ):
        with pytest.raises(errors.RateLimited):
            await compute.delete_instance("z", "i")
    assert len(api.requests) == 3  # at 0, 62.5 and 122.5 s of 180
    assert clock.passed < 180


async def test_a_wait_ends_in_time_though_the_bucket_is_held() -> None:
    clock = FastClock(now=0.0)
    options = {"clock": clock, "policy": RetryPolicy(draw=lambda: 1.0)}
    answers = [refusal(403, "rateLimitExceeded")]
    async with scripted(lambda request: answers.pop(0), **options) as (compute, api):
        with pytest.raises(errors.RateLimited):
            await compute.wait_operation(RUNNING, 30)
        # The bucket is held for everybody, so this one is not even sent.
        with pytest.raises(errors.TransportError, match="20 requests a second left no time"):
            await compute.wait_operation(RUNNING, 30)
    assert len(api.requests) == 1


async def test_calls_are_charged_to_the_groups_of_googles_quotas() -> None:
    """With one request in a thousand seconds, the second of a group has to wait."""

    def script(request: Request) -> Answer:
        return operation(status="DONE") if "operations/" in request.path else Answer()

    groups: dict[str, list[Callable[[Compute], Awaitable[Any]]]] = {
        "write": [
            lambda compute: compute.insert_instance(ZONE, {"name": "i"}),
            lambda compute: compute.bulk_insert_instances(ZONE, {"count": "1"}),
            lambda compute: compute.delete_instance(ZONE, "i"),
            lambda compute: compute.get_guest_attributes(ZONE, "i"),
        ],
        "read": [
            lambda compute: compute.get_instance(ZONE, "i"),
            lambda compute: compute.list_instances(ZONE),
            lambda compute: compute.get_serial_port_output(ZONE, "i"),
            lambda compute: compute.get_machine_type(ZONE, "m"),
        ],
        "operation": [
            lambda compute: compute.list_operations(ZONE),
            lambda compute: compute.get_operation(replace(RUNNING, zone=ZONE)),
        ],
    }
    with ScriptedAPI(script) as api:
        for calls in groups.values():
            for number, call in enumerate(calls):
                clock = FastClock()
                async with make_compute(api.endpoint, clock=clock, rate=0.001) as compute:
                    for others in groups.values():
                        if others is not calls:
                            await others[0](compute)
                    assert clock.passed == 0
                    await calls[number - 1](compute)
                    assert clock.passed == 0
                    await call(compute)
                    assert clock.passed > 900
        clock = FastClock()
        async with make_compute(api.endpoint, clock=clock, rate=0.001) as compute:
            await compute.aggregated_list_instances()  # is global
            await compute.get_image_from_family("cos-cloud", "cos-stable")  # a global read
            await compute.wait_operation(replace(RUNNING, zone=ZONE), 5)
            assert clock.passed == 0
            with pytest.raises(errors.TransportError, match=r"0\.001 requests a second"):
                await compute.wait_operation(replace(RUNNING, zone=ZONE), 5)


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
        await compute.wait_operation(first, 60)
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
        await compute.wait_operation(accepted, 60)
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
    # Without being asked, a list carries no more of the metadata of its instances than a hash.
    assert usual.headers["x-goog-fieldmask"].startswith("items(name,status,")
    assert "metadata(fingerprint)" in usual.headers["x-goog-fieldmask"]
    assert usual.headers["x-goog-fieldmask"].count("metadata") == 1
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
            await compute.get_machine_type("z", "m")
    assert clock.slept[:-1] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    # The last pause is cut, so that the last attempt comes right before the deadline.
    assert 20 < clock.slept[-1] <= 27.5
    assert len(api.requests) == 8


async def test_retry_after_is_honoured() -> None:
    answers = [refusal(503, "backendError", Retry_After="9"), Answer({"name": "p"})]
    clock = FastClock()
    async with scripted(lambda request: answers.pop(0), clock=clock) as (compute, _):
        await compute.get_machine_type("z", "m")
    assert len(clock.slept) == 1
    assert 9.0 <= clock.slept[0] <= 9.5


async def test_an_answer_from_something_else_than_compute_engine() -> None:
    page = "<html>" + "x" * 5000
    answers = [Answer(text=page, status=404), Answer(text=page)]
    async with scripted(lambda request: answers.pop(0)) as (compute, api):
        with pytest.raises(errors.NotFound) as refused:
            await compute.get_machine_type("z", "m")
        with pytest.raises(errors.TransportError, match="not Compute Engine"):
            await compute.get_machine_type("z", "m")
    assert len(str(refused.value)) < 1500
    assert len(api.requests) == 2


async def test_no_connection_names_method_and_address_but_no_token() -> None:
    with ScriptedAPI(lambda request: Answer(delay=0.5)) as api:
        options: dict[str, Any] = {"credentials": Credentials("SECRET"), "call_timeout": 0.5}
        async with make_compute(api.endpoint, exchange_timeout=0.1, **options) as compute:
            with pytest.raises(errors.TransportError, match="did not come in time") as late:
                await compute.get_instance("z", "dask-1")
        # Whoever gives up soon may do so before the server has read what it was asked.
        await until(lambda: api.requests)
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
            await compute.get_machine_type("z", "m")
    assert "SECRET" not in str(info.value)
    assert api.requests == []


async def test_a_proxy_of_the_environment_is_not_asked_for_a_local_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with scripted(lambda request: Answer({"name": "p"}), call_timeout=5) as (compute, _):
        assert await compute.get_machine_type("z", "m") == {"name": "p"}


# Waiting for operations ----------------------------------------------------------------------


async def test_a_wait_that_answers_at_once_is_not_asked_without_pause() -> None:
    answers = [operation(status="RUNNING")] * 3 + [operation(status="DONE")]
    clock = IdleClock()
    async with scripted(lambda request: answers.pop(0), clock=clock) as (compute, _):
        assert (await compute.wait_operation(RUNNING, 60)).done
    assert clock.slept == [operations.WAIT_FLOOR] * 3


async def test_a_wait_ends_at_its_deadline() -> None:
    async with scripted(lambda request: operation(), clock=FastClock()) as (compute, api):
        with pytest.raises(errors.TransportError, match=r"operation-1 .*still RUNNING after 3 s"):
            await compute.wait_operation(RUNNING, 3)
    assert 2 <= len(api.requests) <= 10


async def test_a_wait_that_is_held_long_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "WAIT_SLICE", 1.0)
    answers = [Answer(operation().json, delay=1.5), operation(status="DONE")]
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
            await compute.wait_operation(RUNNING, 60)
    assert info.value.code == "QUOTA_EXCEEDED"
    assert info.value.errors == (vague, quota)
    assert api.requests[1].query == {"filter": 'operationGroupId eq ".*\\bg\\b.*"'}


async def test_a_wait_outlasts_a_long_outage() -> None:
    """A bulk insert takes minutes; nothing that passes may end the wait for it."""
    clock = FastClock()
    outage = 500.0

    def script(request: Request) -> Answer:
        if clock.passed < outage:
            return Answer(drop=True) if len(api.requests) % 2 else refusal(503, "backendError")
        return operation(status="DONE")

    options = {"clock": clock, "policy": RetryPolicy(draw=lambda: 1.0), "call_timeout": 60.0}
    async with scripted(script, **options) as (compute, api):
        assert (await compute.wait_operation(RUNNING, 600)).done
        # It costs a call in half a minute.
        assert len(api.requests) < 30
        outage = math.inf
        began = clock.passed
        with pytest.raises((errors.TransportError, errors.ServerFault)):
            await compute.wait_operation(RUNNING, 600)
        assert 570 < clock.passed - began <= 600


async def test_a_failed_bulk_insert_is_told_even_where_its_children_cannot_be_asked() -> None:
    vague = {"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 4 VMs"}
    failed = operation(
        operationType="bulkInsert", operationGroupId="g", status="DONE", error={"errors": [vague]}
    )

    def script(request: Request) -> Answer:
        return failed if request.path.endswith("/wait") else refusal(403, "forbidden")

    async with scripted(script) as (compute, _):
        with pytest.raises(errors.OperationError, match="Requested minimum count of 4 VMs"):
            await compute.wait_operation(RUNNING, 60)


async def test_a_bulk_insert_tells_how_many_it_made(
    compute: Compute, paper: ComputeEmulator
) -> None:
    stock_out = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "No more"}
    paper.faults.add(Fault("compute.instances.bulkInsert", operation_errors=[stock_out], times=2))
    body = {**bulk(*(f"dask-{number}" for number in range(5))), "minCount": "1"}
    ended = await compute.wait_operation(await compute.bulk_insert_instances(ZONE, body), 60)
    assert (ended.created, ended.missing) == (3, 2)
    assert ended.user
    assert ended.started


async def test_what_was_done_to_instances(compute: Compute, paper: ComputeEmulator) -> None:
    names = [f"dask-{number}" for number in range(4)]
    await compute.wait_operation(await compute.bulk_insert_instances(ZONE, bulk(*names)), 60)
    for name in names[:2]:
        deleting = await compute.delete_instance(ZONE, name)
        assert deleting is not None
        await compute.wait_operation(deleting, 60)
    before = paper.requests["compute.zoneOperations.list"]
    found = await compute.list_instance_operations(ZONE, [*names[1:], "dask", "gone"])
    assert [(one.type, one.target) for one in found] == [("delete", "dask-1")]
    assert explain_end(found, "dask-1").startswith("deleted by ")
    assert explain_end(found, "dask-2") == ""
    assert await compute.list_instance_operations(ZONE, ["dask-0", "dask-1"]) != []
    assert paper.requests["compute.zoneOperations.list"] == before + 2
    assert await compute.list_instance_operations(ZONE, []) == []
    assert paper.requests["compute.zoneOperations.list"] == before + 2


async def test_many_instances_are_asked_about_in_few_short_calls() -> None:
    names = [f"dask-3f9a61c2-worker-{number:08x}" for number in range(1000)]
    stranger = operation(operationType="delete", targetLink=".../zones/z/instances/x").json
    later = operation("o", operationType="delete", targetLink=f".../z/instances/{names[7]}").json

    def script(request: Request) -> Answer:
        return Answer({"items": [stranger, operation().json, later]})

    async with scripted(script) as (compute, api):
        found = await compute.list_instance_operations("z", names)
        assert {one.target for one in found} == {names[7]}
    filters = [request.query["filter"] for request in api.requests]
    assert len(filters) <= 3
    assert all(len(quote(filter)) < 6000 for filter in filters)
    asked: list[str] = []
    for filter in filters:
        match = re.fullmatch(r'targetLink eq "\.\*/instances/(.*)\((.*)\)"', filter)
        assert match is not None
        asked += [match[1] + rest for rest in match[2].split("|")]
    assert sorted(asked) == names


async def test_the_operation_of_a_request_whose_answer_was_lost() -> None:
    answers = [Answer({"items": [operation().json]}), Answer({})]
    async with scripted(lambda request: answers.pop(0)) as (compute, api):
        found = await compute.find_operation("z", "11111111-2222-4333-8444-555555555555")
        assert found is not None
        assert found.name == "operation-1"
        assert await compute.find_operation("z", "11111111-2222-4333-8444-555555555556") is None
    assert api.requests[0].query["filter"] == (
        'clientOperationId = "11111111-2222-4333-8444-555555555555"'
    )
    assert "items(name," in api.requests[0].headers["x-goog-fieldmask"]


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
        await compute.get_machine_type("z", "m")
        assert [request.path.rpartition("/")[2] for request in api.requests] == [
            "wait",
            "wait",
            "operation-1",
            "m",
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

    answer = Answer({"name": "p"}, delay=0.2)
    options = {"threads": 16, "rate": math.inf}
    async with scripted(lambda request: answer, **options) as (compute, api):
        await compute.open()
        with machine_stalls() as stalled:
            heart = asyncio.create_task(beat())
            began = time.monotonic()
            await asyncio.gather(*(compute.get_machine_type("z", "m") for _ in range(100)))
            took = time.monotonic() - began
            heart.cancel()
        assert len(api.requests) == 100
        for _ in range(2):
            await asyncio.gather(*(compute.get_machine_type("z", "m") for _ in range(16)))
    assert api.connections <= 16  # all of them are kept and used again
    assert 8 <= api.most_at_once <= 16
    assert took < 10  # one after the other they take twenty seconds
    assert max(gaps) < 0.15 + stalled()
    assert len(gaps) > 10


async def test_a_call_in_the_queue_can_be_cancelled() -> None:
    answered = threading.Event()

    def script(request: Request) -> Answer:
        answered.wait(60)
        return Answer()

    async with scripted(script, threads=1) as (compute, api):
        first = asyncio.create_task(compute.get_machine_type("z", "first"))
        second = asyncio.create_task(compute.get_machine_type("z", "second"))
        await until(lambda: api.requests)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        answered.set()
        await first
        await compute.get_machine_type("z", "third")
    assert [request.path.rpartition("/")[2] for request in api.requests] == ["first", "third"]


@pytest.mark.parametrize("now", [False, True], ids=["async", "sync"])
async def test_a_delete_does_not_overtake_an_insert_that_was_cancelled(now: bool) -> None:
    events: list[str] = []
    cancelled = threading.Event()

    def script(request: Request) -> Answer:
        events.append(f"{request.method} begins")
        if request.method == "POST":
            cancelled.wait(60)
            time.sleep(0.3)
        events.append(f"{request.method} ends")
        return operation()

    async with scripted(script) as (compute, _):
        insert = asyncio.create_task(compute.insert_instance("z", {"name": "i"}))
        await until(lambda: events)
        insert.cancel()
        with pytest.raises(asyncio.CancelledError):
            await insert
        cancelled.set()
        if now:
            assert compute.delete_instances_now([("z", "i")], time.monotonic() + 60) == []
        else:
            assert await compute.delete_instance("z", "i")
    assert events == ["POST begins", "POST ends", "DELETE begins", "DELETE ends"]


async def test_close_waits_for_what_is_under_way_and_leaves_nothing() -> None:
    cancelled, ended = threading.Event(), threading.Event()

    def script(request: Request) -> Answer:
        cancelled.wait(60)
        time.sleep(0.3)
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
        cancelled.set()
        await compute.close()
        ticking.cancel()
        assert ticks > 5  # closing does not hold the loop
        assert ended.is_set()
        assert ours() == []
        assert connections() == []
        await compute.close()
        with pytest.raises(errors.TransportError, match="closed"):
            await compute.get_machine_type("z", "m")
        # The synchronous verbs still work, and clean up after themselves too.
        assert compute.delete_instances_now([("z", "i")], time.monotonic() + 60) == []
        assert connections()
        compute.close_now()
        assert connections() == []
    del compute
    gc.collect()  # an open socket would show as a ResourceWarning here


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
