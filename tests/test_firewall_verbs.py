"""The verbs for firewall rules, over HTTP."""

from __future__ import annotations

import asyncio
import time

import pytest
from clusters import until
from fleets import QUICK, Cloud
from records import compute_of

from dask_gce.compute import Compute
from dask_gce.emulator import Fault, Timings
from dask_gce.errors import AlreadyExists, OperationError, TransportError

INSERT, DELETE = "compute.firewalls.insert", "compute.firewalls.delete"
NETWORK = "projects/local-project/global/networks/default"
RULE = {"network": NETWORK, "allowed": [{"IPProtocol": "tcp", "ports": ["8786"]}]}


@pytest.fixture
async def cloud():
    async with Cloud(QUICK) as running:
        yield running


@pytest.fixture
async def compute(cloud):
    async with compute_of(cloud) as compute:
        yield compute


async def names_of(compute: Compute, **more) -> list[str]:
    found = await compute.list_firewalls('name eq "rule-.*"', **more)
    return [each["name"] for each in found]


async def test_a_rule_comes_and_goes(compute):
    operation = await compute.insert_firewall({"name": "rule-1", **RULE})
    assert operation.what == "insert firewall rule rule-1"
    assert (await compute.wait_operation(operation, 60)).done
    assert await names_of(compute) == ["rule-1"]
    operation = await compute.delete_firewall("rule-1")
    await compute.wait_operation(operation, 60)
    assert await names_of(compute) == []
    assert await compute.delete_firewall("rule-1") is None


async def test_lists_are_whole_and_carry_what_is_wanted(compute):
    for number in range(3):
        await compute.insert_firewall({"name": f"rule-{number}", **RULE})
    found = await compute.list_firewalls('name eq "rule-.*"', fields="name,priority")
    assert found == [{"name": f"rule-{number}", "priority": 1000} for number in range(3)]
    everything = await compute.list_firewalls()
    assert {"default-allow-internal", "rule-0"} < {each["name"] for each in everything}


async def test_another_project_has_rules_of_its_own(compute):
    network = NETWORK.replace("local-project", "a-host")
    operation = await compute.insert_firewall(
        {"name": "rule-1", **RULE, "network": network}, project="a-host"
    )
    # It is waited for where it runs.
    assert (await compute.wait_operation(operation, 60)).project == "a-host"
    assert await names_of(compute) == []
    assert await names_of(compute, project="a-host") == ["rule-1"]
    assert await compute.delete_firewall("rule-1") is None
    assert await compute.delete_firewall("rule-1", project="a-host") is not None


async def test_a_request_that_is_repeated_makes_one_rule(cloud, compute):
    cloud.faults.add(Fault(INSERT, drop="after"))
    await compute.insert_firewall({"name": "rule-1", **RULE})
    assert cloud.requests[INSERT] == 2
    with pytest.raises(AlreadyExists, match="make firewall rule rule-1 of project local-project"):
        await compute.insert_firewall({"name": "rule-1", **RULE})


async def test_an_operation_that_fails_says_of_what(cloud, compute):
    error = {"code": "QUOTA_EXCEEDED", "message": "Quota 'FIREWALLS' exceeded."}
    cloud.faults.add(Fault(INSERT, operation_errors=[error]))
    operation = await compute.insert_firewall({"name": "rule-1", **RULE})
    with pytest.raises(OperationError, match="insert firewall rule rule-1") as caught:
        await compute.wait_operation(operation, 60)
    assert caught.value.code == "QUOTA_EXCEEDED"


@pytest.mark.parametrize("now", [False, True])
async def test_a_delete_does_not_overtake_the_insert_that_it_is_to_undo(cloud, compute, now):
    cloud.faults.add(Fault(INSERT, delay=0.3))
    inserting = asyncio.ensure_future(compute.insert_firewall({"name": "rule-1", **RULE}))
    await until(lambda: cloud.requests[INSERT])
    inserting.cancel()
    await asyncio.wait({inserting})
    if now:
        deadline = time.monotonic() + 60
        await asyncio.to_thread(compute.delete_firewall_now, "rule-1", deadline)
    else:
        assert await compute.delete_firewall("rule-1") is not None
    await until(lambda: not cloud.leftovers())
    assert await names_of(compute) == []


async def test_what_is_gone_is_deleted_on_the_calling_thread_too(cloud):
    async with compute_of(cloud) as compute:
        pass
    # After the client was closed, as at the interpreter's exit.
    await asyncio.to_thread(compute.delete_firewall_now, "rule-1", time.monotonic() + 60)
    assert cloud.requests[DELETE] == 1
    with pytest.raises(TransportError, match="No time was left"):
        compute.delete_firewall_now("rule-1", time.monotonic() - 1)
    compute.close_now()


async def test_what_is_still_being_made_is_deleted_once_it_can_be():
    timings = Timings(latency=0.001, pending=0.002, creating=0.3)
    async with Cloud(timings) as cloud, compute_of(cloud) as compute:
        await compute.insert_firewall({"name": "rule-1", **RULE})
        assert await compute.delete_firewall("rule-1") is not None
        await until(lambda: not cloud.leftovers())
        assert await names_of(compute) == []
