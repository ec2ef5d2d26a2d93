"""What an operation says, and why an instance has ended."""

from __future__ import annotations

import pytest

from dask_gce.operation import Operation, explain_end, parse_operation

LINK = "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a"


def done(kind: str, user: str, at: str, *, name: str = "i", http_status: int = 0) -> Operation:
    return Operation(
        "operation-1",
        "us-central1-a",
        kind,
        "DONE",
        name,
        user=user,
        started=at,
        http_status=http_status,
    )


def test_a_system_operation_is_read() -> None:
    found = parse_operation(
        {
            "name": "systemevent-1",
            "zone": LINK,
            "operationType": "compute.instances.preempted",
            "status": "DONE",
            "targetLink": f"{LINK}/instances/dask-1",
            "user": "system",
            "insertTime": "2026-01-01T10:00:00.000-08:00",
            "startTime": "2026-01-01T10:00:01.000-08:00",
        }
    )
    assert (found.user, found.started) == ("system", "2026-01-01T10:00:00.000-08:00")
    assert (found.target, found.created, found.missing) == ("dask-1", None, None)
    assert parse_operation({"startTime": "x"}).started == "x"


def test_a_bulk_insert_tells_how_many_it_made() -> None:
    found = parse_operation(
        {
            "name": "operation-1",
            "operationType": "bulkInsert",
            "status": "DONE",
            "targetLink": f"{LINK}/instances/bulkInsert",
            "instancesBulkInsertOperationMetadata": {
                "perLocationStatus": {
                    "zones/us-central1-a": {
                        "status": "DONE",
                        "targetVmCount": 5,
                        "createdVmCount": 3,
                        "failedToCreateVmCount": 2,
                    },
                    "zones/us-central1-b": {"createdVmCount": 4},
                }
            },
        }
    )
    assert (found.target, found.created, found.missing) == ("", 7, 2)


@pytest.mark.parametrize(
    ("kind", "user", "words"),
    [
        ("compute.instances.preempted", "system", "preempted by Compute Engine"),
        (
            "compute.instances.hostError",
            "system",
            "its host failed (compute.instances.hostError)",
        ),
        (
            "compute.instances.guestTerminate",
            "system",
            "it powered itself off (compute.instances.guestTerminate)",
        ),
        (
            "compute.instances.terminateOnHostMaintenance",
            "system",
            "its host went into maintenance (compute.instances.terminateOnHostMaintenance)",
        ),
        (
            "compute.instances.somethingNew",
            "system",
            "Compute Engine ended it (compute.instances.somethingNew)",
        ),
        ("delete", "alice@example.com", "deleted by alice@example.com"),
        ("stop", "bob@example.com", "stopped by bob@example.com"),
        ("suspend", "bob@example.com", "suspended by bob@example.com"),
        ("delete", "system", "deleted by Compute Engine"),
        ("delete", "", "deleted"),
        ("compute.instances.migrateOnHostMaintenance", "system", ""),
        ("compute.instances.automaticRestart", "system", ""),
        ("setLabels", "alice@example.com", ""),
        ("insert", "alice@example.com", ""),
    ],
)
def test_one_operation_in_words(kind: str, user: str, words: str) -> None:
    assert explain_end([done(kind, user, "2026-01-01T10:00:00Z")], "i") == words


def test_the_newest_wins_whatever_its_offset() -> None:
    operations = [
        done("stop", "early@example.com", "2026-01-01T10:00:00.000-08:00"),
        done("delete", "late@example.com", "2026-01-01T11:30:00.000-07:00"),
        done("delete", "unknown@example.com", ""),
        done("delete", "odd@example.com", "yesterday"),
    ]
    for each in (operations, operations[::-1]):
        assert explain_end(each, "i") == "deleted by late@example.com"


def test_what_failed_and_what_others_suffered_explains_nothing() -> None:
    at = "2026-01-01T10:00:00Z"
    operations = [
        done("delete", "alice@example.com", at, http_status=403),
        done("delete", "alice@example.com", at, name="j"),
    ]
    assert explain_end(operations, "i") == ""
    assert explain_end([], "i") == ""


def test_a_delete_that_follows_from_a_preemption_does_not_hide_it() -> None:
    preempted = done("compute.instances.preempted", "system", "2026-01-01T10:00:00Z")
    follows = done("delete", "system", "2026-01-01T10:00:30Z")
    assert explain_end([follows, preempted], "i") == "preempted by Compute Engine"
    # Nor does what the machine does by itself, which knows of it.
    off = done("compute.instances.guestTerminate", "system", "2026-01-01T10:00:20Z")
    itself = done("delete", "1-compute@developer.gserviceaccount.com", "2026-01-01T10:00:25Z")
    assert explain_end([follows, itself, off, preempted], "i") == "preempted by Compute Engine"
    # Somebody's own delete is another matter.
    asked = done("delete", "alice@example.com", "2026-01-01T10:00:30Z")
    assert explain_end([asked, preempted], "i") == "deleted by alice@example.com"
