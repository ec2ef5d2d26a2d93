"""The validator sees each sort of exchange that is not Compute Engine v1, and passes the others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import dask
import leftovers as leftovers_module
import psutil
import pytest
from discovery import Validator, check_exchange, document
from leftovers import Snapshot

from dask_gce.emulator import Exchange

BASE = "/compute/v1/projects/p/zones/us-central1-a/instances"


def exchange(**changes):
    """Return a good exchange but for the changes."""
    request = changes.pop("request", None)
    response = changes.pop("response", {"kind": "compute#instanceList", "items": [{"name": "a"}]})
    fields = {
        "method_id": "compute.instances.list",
        "verb": "GET",
        "path": BASE,
        "query": {},
        "headers": {},
        "request_body": b"" if request is None else json.dumps(request).encode(),
        "version": "2026-09-01",
        "status": 200,
        "response_body": b"" if response is None else json.dumps(response).encode(),
    }
    return Exchange(**{**fields, **changes})


def insert(body, **changes):
    return exchange(
        method_id="compute.instances.insert",
        verb="POST",
        request=body,
        response={"kind": "compute#operation", "name": "o", "progress": 0},
        **changes,
    )


def refusal(**changes):
    error = {
        "code": 404,
        "message": "m",
        "errors": [{"message": "m", "domain": "global", "reason": "notFound"}],
        "status": "NOT_FOUND",
    }
    defect = changes.pop("defect", None)
    error = {key: value for key, value in {**error, **changes}.items() if value is not None}
    status = 404 if defect is None else 500
    return exchange(status=status, response={"error": error}, defect=defect)


@pytest.mark.parametrize(
    "good",
    [
        exchange(),
        exchange(query={"filter": "x", "maxResults": "5", "fields": "items(name)", "alt": "json"}),
        exchange(query={"$fields": "*,items/*"}),
        exchange(headers={"x-goog-fieldmask": "items.disks(source,initializeParams.labels.x),id"}),
        exchange(
            path="/compute/v1/projects/p/aggregated/instances",
            method_id="compute.instances.aggregatedList",
            query={"fields": "items/*/instances(name,scheduling),nextPageToken"},
            response={},
        ),
        exchange(query={"returnPartialSuccess": "True"}, version=None),
        exchange(
            path="/compute/v1/projects/p/aggregated/instances",
            method_id="compute.instances.aggregatedList",
            query={"includeAllScopes": "True"},
            response={"items": {"zones/z": {"warning": {"code": "NO_RESULTS_ON_PAGE"}}}},
        ),
        insert({"name": "a", "labels": {"x": "y"}, "canIpForward": True, "id": "5"}),
        insert({"disks": [{"index": 0, "initializeParams": {"diskSizeGb": "10"}}]}),
        refusal(),
        # Dropped: nothing was answered.
        exchange(status=0, response=None),
        exchange(
            verb="DELETE",
            path="/compute/v1/projects/p/zones/z/operations/o",
            method_id="compute.zoneOperations.delete",
            response=None,
            status=204,
        ),
    ],
)
def test_good_exchanges_pass(good):
    assert check_exchange(good) == []


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (exchange(path=f"{BASE}/a/explode"), "no such method"),
        (exchange(path=BASE.replace("v1", "v2")), "no such method"),
        (exchange(verb="PATCH"), "no such method"),
        (exchange(method_id="compute.instances.get"), "answered as"),
        (exchange(query={"pagetoken": "x"}), "unknown query parameter 'pagetoken'"),
        (exchange(query={"returnPartialSuccess": "true"}), "returnPartialSuccess"),
        (exchange(query={"zone": "z"}), "unknown query parameter 'zone'"),
        (exchange(query={"maxResults": "many"}), "no integer"),
        (exchange(query={"alt": "xml"}), "'alt' cannot be 'xml'"),
        (
            exchange(
                path="/compute/v1/projects/p/aggregated/instances",
                method_id="compute.instances.aggregatedList",
                query={"includeAllScopes": "yes"},
                response={},
            ),
            "no boolean",
        ),
        (exchange(query={"fields": "items(nmae)"}), "invalid field selection items/nmae"),
        (exchange(query={"fields": "name"}), "invalid field selection name"),
        (exchange(query={"$fields": "kind/x"}), "invalid field selection kind/x"),
        (
            exchange(headers={"x-goog-fieldmask": "items.disks.sorce"}),
            "invalid field selection items/disks/sorce",
        ),
        (exchange(request={"name": "a"}), "takes no request body"),
        (insert(None), "no body"),
        (insert({}, request_body=b"{x"), "no JSON"),
        (insert({"nmae": "a"}), "request has an unknown field 'nmae'"),
        (insert({"disks": [{"initializeParams": {"x": 1}}]}), "initializeParams has an unknown"),
        (insert({"name": 5}), "request.name is no string"),
        (insert({"name": None}), "request.name is no string"),
        (insert({"canIpForward": "true"}), "request.canIpForward is no boolean"),
        (insert({"id": 5}), "request.id is no string"),
        (insert({"id": "five"}), "request.id is no integer in a string"),
        (insert({"disks": [{"index": "0"}]}), "request.disks[0].index is no integer"),
        (insert({"disks": [{"index": True}]}), "request.disks[0].index is no integer"),
        (insert({"disks": {}}), "request.disks is no list"),
        (insert({"labels": []}), "request.labels is no object"),
        (insert({"labels": {"a": 1}}), "request.labels.a is no string"),
        (insert({"scheduling": {"provisioningModel": "CHEAP"}}), "cannot be 'CHEAP'"),
        (exchange(response={"item": []}), "response has an unknown field 'item'"),
        (exchange(response={"items": [{"status": "HAPPY"}]}), "cannot be 'HAPPY'"),
        (exchange(response={"items": [{"id": 7}]}), "response.items[0].id is no string"),
        (
            exchange(
                path="/compute/v1/projects/p/regions/r",
                method_id="compute.regions.get",
                response={"quotas": [{"limit": "72"}]},
            ),
            "is no number",
        ),
        (exchange(status=500, response={"message": "x"}), "no envelope"),
        (exchange(query={"x": "y"}, status=0, response=None), "unknown query parameter 'x'"),
        (refusal(code=500, defect=KeyError("x")), "the emulator broke: KeyError('x')"),
        (refusal(code=400), "code is 400"),
        (refusal(message=None), "no message"),
        (refusal(status=None), "no status"),
        (refusal(errors=[]), "no errors"),
        (refusal(errors=[{"message": "m"}]), "incomplete"),
        (
            exchange(
                verb="DELETE",
                path="/compute/v1/projects/p/zones/z/operations/o",
                method_id="compute.zoneOperations.delete",
                response={},
            ),
            "answers nothing",
        ),
    ],
)
def test_bad_exchanges_are_seen(bad, fault):
    found = check_exchange(bad)
    assert len(found) == 1, found
    assert fault in found[0]


def test_the_validator_keeps_faults_until_they_are_taken():
    validator = Validator()
    validator(exchange())
    assert validator.take() == []
    validator(exchange(query={"x": "y"}))
    assert len(validator.take()) == 1
    assert validator.take() == []
    assert validator.exchanges == 2


def test_the_validator_reads_what_other_processes_were_told(tmp_path):
    report = tmp_path / "report"
    report.write_text('[]\n["one", "two"]\n')
    validator = Validator()
    validator.read(report)
    assert validator.exchanges == 2
    assert validator.take() == ["one", "two"]


def test_the_validator_listens_to_every_emulator(emulator, discovery):
    before = discovery.exchanges
    address = emulator.endpoint.removeprefix("http://").split(":")
    with closing(socket.create_connection((address[0], int(address[1])))) as connection:
        host = f"{address[0]}:{address[1]}"
        connection.sendall(
            f"GET /compute/v1/projects/my-project?nonsense=1 HTTP/1.1\r\nHost: {host}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        while connection.recv(4096):
            continue
    assert discovery.exchanges == before + 1
    assert discovery.take() == ["compute.projects.get (400): unknown query parameter 'nonsense'"]


def test_the_document_is_that_of_compute_v1():
    assert (document()["name"], document()["version"]) == ("compute", "v1")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(leftovers_module, "PATIENCE", 0.0)


def only(found, word):
    assert len(found) == 1, found
    assert word in found[0]


def until_zombie(pid):
    deadline = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("impatient")
def test_every_sort_of_leftover_is_seen(monkeypatch):
    folder = Path(tempfile.gettempdir())
    snapshot = Snapshot(folder)
    assert snapshot.leftovers() == []

    with subprocess.Popen(["sleep", "60"]) as child:
        only(snapshot.leftovers(), f"process {child.pid}")
        child.kill()
        until_zombie(child.pid)
        # Its owner has not waited for it.
        only(snapshot.leftovers(), f"process {child.pid} (zombie)")

    enough = threading.Event()
    thread = threading.Thread(target=enough.wait, name="forgotten")
    thread.start()
    only(snapshot.leftovers(), "forgotten")
    enough.set()
    thread.join()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        only(snapshot.leftovers(), f"socket 127.0.0.1:{listener.getsockname()[1]} -> LISTEN")

    (folder / "forgotten").touch()
    only(snapshot.leftovers(), "forgotten")
    (folder / "forgotten").unlink()

    monkeypatch.setenv("FORGOTTEN", "1")
    only(snapshot.leftovers(), "FORGOTTEN")
    monkeypatch.delenv("FORGOTTEN")
    assert "FORGOTTEN" not in os.environ

    with dask.config.set(forgotten=1):
        only(snapshot.leftovers(), "dask.config forgotten")
    assert snapshot.leftovers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans escape")
@pytest.mark.usefixtures("impatient")
def test_what_outlives_its_process_on_linux_is_seen():
    snapshot = Snapshot(Path(tempfile.gettempdir()))
    escape = "setsid sleep 60 >/dev/null 2>&1 & echo $!"
    orphan = int(subprocess.run(["sh", "-c", escape], capture_output=True, check=True).stdout)
    only(snapshot.leftovers(), f"process {orphan} (")
    os.kill(orphan, signal.SIGKILL)
    until_zombie(orphan)
    assert snapshot.leftovers() == []

    memory = Path("/dev/shm", f"forgotten-{os.getpid()}")
    memory.touch()
    only(snapshot.leftovers(), f"shared memory {memory}")
    memory.unlink()

    descriptor = os.open("/etc/hosts", os.O_RDONLY)
    only(snapshot.leftovers(), f"descriptor {descriptor} (/etc/hosts)")
    os.close(descriptor)
    assert snapshot.leftovers() == []


async def test_a_forgotten_task_is_seen():
    assert not leftovers_module.other_tasks()
    task = asyncio.create_task(asyncio.sleep(60))
    assert leftovers_module.other_tasks() == {task}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
