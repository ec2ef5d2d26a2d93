"""The synchronous verbs: on one thread, on several, and when the interpreter exits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from scripted_api import (
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

from dask_gce import errors, instances_now
from dask_gce.emulator import ComputeEmulator
from dask_gce.library import Call, Library
from dask_gce.operation import Operation
from dask_gce.policy import RetryPolicy

RUNNING = Operation("operation-1", "z", "insert", "RUNNING", "i")


def test_lists_and_deletes_are_repeated_and_give_up_in_time() -> None:
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
        assert compute.delete_instances_now([("z", "i")], clock.monotonic() + 60) == []
        assert compute.delete_instances_now([("z", "i")], clock.monotonic() + 60) == []
        assert answers == []
        assert api.requests[3].query["requestId"] == api.requests[4].query["requestId"]
        answers += [refusal(503, "backendError")] * 2
        (failed,) = compute.delete_instances_now([("z", "i")], clock.monotonic() + 1)
        assert type(failed) is errors.ServerFault
        assert len(answers) == 1  # no time for a second attempt
        (late,) = compute.delete_instances_now([("z", "i")], clock.monotonic())
        assert type(late) is errors.TransportError
        assert "No time was left to delete instance i" in str(late)
        assert len(answers) == 1
        compute.close_now()


def test_the_instances_of_all_zones() -> None:
    pages = [
        Answer(
            {
                "items": {
                    "zones/a": {"instances": [{"name": "i"}]},
                    "zones/b": {"warning": {"code": "UNREACHABLE"}},
                },
                "nextPageToken": "2",
            }
        ),
        Answer({"items": {"zones/d": {"instances": [{"name": "j"}]}}}),
    ]
    with ScriptedAPI(lambda request: pages.pop(0)) as api:
        compute = make_compute(api.endpoint)
        found, unreachable = compute.aggregated_list_instances_now("f", time.monotonic() + 10)
        compute.close_now()
    assert [item["name"] for item in found] == ["i", "j"]
    assert unreachable == {"b"}
    assert api.requests[0].path.endswith("/aggregated/instances")
    assert api.requests[0].query == {"filter": "f"}
    assert "items/*/instances(name," in api.requests[0].headers["x-goog-fieldmask"]


def test_deletes_run_side_by_side_and_each_failure_is_told() -> None:
    def script(request: Request) -> Answer:
        name = request.path.rpartition("/")[2]
        if name.endswith("3"):
            return refusal(403, "forbidden")
        return Answer(operation().json, delay=0.4)

    with ScriptedAPI(script) as api:
        compute = make_compute(api.endpoint, rate=1000.0)
        compute.list_instances_now("z", "", time.monotonic() + 10)  # the import is not timed
        began = time.monotonic()
        items = [("z", f"i-{number}") for number in range(24)]
        failed = compute.delete_instances_now(items, began + 60, parallel=8)
        assert time.monotonic() - began < 8  # one after the other they take 8.4 s
        compute.close_now()
    assert {request.path.rpartition("/")[2] for request in api.requests[1:]} == {
        name for _, name in items
    }
    assert 4 <= api.most_at_once <= 8
    assert [type(error) for error in failed] == [errors.PermissionDenied] * 3
    assert [
        name
        for name, error in zip(("i-3", "i-13", "i-23"), failed, strict=True)
        if f"instance {name} " in str(error)
    ] == ["i-3", "i-13", "i-23"]


def test_without_threads_the_caller_deletes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with ScriptedAPI(lambda request: operation()) as api:
        compute = make_compute(api.endpoint)
        compute.list_instances_now("z", "", time.monotonic() + 10)
        # The scripted API answers an open connection without a new thread.
        monkeypatch.setattr(threading.Thread, "start", refuse)
        names = ["b", "a", "c"]
        items = [("z", name) for name in names]
        assert compute.delete_instances_now(items, time.monotonic() + 10) == []
        monkeypatch.undo()
        compute.close_now()
    assert [request.path.rpartition("/")[2] for request in api.requests[1:]] == names


def test_a_thread_that_hangs_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of a name knows no timeout; a server that sends a byte a second meets none."""
    monkeypatch.setattr(instances_now, "PATIENCE", 0.1)
    taken, release = threading.Event(), threading.Event()

    def exchange(self: Library, call: Call, timeout: float) -> dict[str, Any]:
        if threading.current_thread() is threading.main_thread():
            taken.wait(5)
        else:
            taken.set()
            release.wait(5)
        return {}

    monkeypatch.setattr(Library, "exchange", exchange)
    compute = make_compute("http://127.0.0.1:1")
    began = time.monotonic()
    failed = compute.delete_instances_now([("z", "a"), ("z", "b")], began + 1.0)
    assert time.monotonic() - began < 4
    assert len(failed) == 1
    assert "No answer came in time to delete instance " in str(failed[0])
    release.set()
    compute.close_now()


def test_the_rate_counts_against_the_deadline() -> None:
    clock = FastClock()
    with ScriptedAPI(lambda request: operation()) as api:
        compute = make_compute(api.endpoint, clock=clock, rate=0.1)
        items = [("z", f"i-{number}") for number in range(10)]
        failed = compute.delete_instances_now(items, clock.monotonic() + 45, parallel=1)
        compute.close_now()
    assert len(api.requests) == 5
    assert len(failed) == 5
    assert "The limit of 0.1 requests a second left no time to delete instance i-5" in str(
        failed[0]
    )


def test_over_the_rate_limit_the_next_minute_is_waited_for_if_there_is_time() -> None:
    answers = [refusal(403, "rateLimitExceeded"), operation(), refusal(403, "rateLimitExceeded")]
    clock = FastClock(now=50.0)
    with ScriptedAPI(lambda request: answers.pop(0)) as api:
        compute = make_compute(api.endpoint, clock=clock, policy=RetryPolicy(draw=lambda: 0.0))
        assert compute.delete_instances_now([("z", "i")], clock.monotonic() + 30) == []
        assert clock.slept == pytest.approx([10.0], abs=5)
        (failed,) = compute.delete_instances_now([("z", "i")], clock.monotonic() + 30)
        compute.close_now()
    assert type(failed) is errors.RateLimited
    assert answers == []


def test_an_operation_is_waited_for() -> None:
    failed = {"errors": [{"code": "QUOTA_EXCEEDED", "message": "No."}]}
    answers = [operation(), refusal(503, "backendError"), operation(status="DONE", error=failed)]
    clock = FastClock()
    with ScriptedAPI(lambda request: answers.pop(0) if answers else operation()) as api:
        compute = make_compute(api.endpoint, clock=clock)
        ended = compute.wait_operation_now(RUNNING, clock.monotonic() + 60)
        assert ended.done
        assert ended.failed  # which is told, not raised: it has ended
        assert compute.wait_operation_now(ended, clock.monotonic()) is ended
        # Some time passes before it reads the clock itself.
        with pytest.raises(errors.TransportError, match=r"still RUNNING after [123](\.\d)? s"):
            compute.wait_operation_now(RUNNING, clock.monotonic() + 3)
        compute.close_now()
    assert all(request.path.endswith("/operation-1/wait") for request in api.requests)
    assert len(api.requests) <= 13


AT_EXIT = """
    import asyncio, atexit, sys, threading, time
    from google.auth.credentials import AnonymousCredentials
    from dask_gce.compute import Compute

    compute = None

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    @atexit.register
    def leave():
        if sys.argv[3] == "refused":  # as by Python 3.12.1
            threading.Thread.start = refuse
        deadline = time.monotonic() + 20
        found = compute.list_instances_now("us-central1-a", "", deadline)
        items = [("us-central1-a", each["name"]) for each in found] + [("us-central1-a", "none")]
        print(len(items), compute.delete_instances_now(items, deadline))
        compute.close_now()

    async def main():
        global compute
        compute = Compute(
            "my-project", endpoint=sys.argv[1], credentials=AnonymousCredentials()
        )
        for number in range(5):
            body = {**eval(sys.argv[2]), "name": f"dask-{number}"}
            operation = await compute.insert_instance("us-central1-a", body)
        await compute.wait_operation(operation, 60)

    asyncio.run(main())
"""


@pytest.mark.parametrize("threads", ["granted", "refused"])
def test_they_work_at_the_interpreters_exit(emulator: ComputeEmulator, threads: str) -> None:
    assert run_python(AT_EXIT, emulator.endpoint, repr(instance("x")), threads) == "6 []\n"
    assert emulator.requests["compute.instances.delete"] == 6
    deadline = time.monotonic() + 60
    while emulator.instances() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert emulator.instances() == []
