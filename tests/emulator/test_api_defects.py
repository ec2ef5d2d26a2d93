"""Requests that would break a careless server are refused; what breaks all the same is answered."""

from __future__ import annotations

import http.client
import json
import sys

import pytest
from rest import PROJECT, ZONE, Refused, Rest, boot_disk, instance

from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.emulator.machines.paper import PaperKind

INSTANCES = f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def refused(rest, **request):
    """Return status, reason and message of a refusal of a request that is sent as it is."""
    status, body, headers = rest.raw(**{"verb": "POST", "path": INSTANCES, **request})
    assert headers["Content-Type"].startswith("application/json"), body
    error = json.loads(body)["error"]
    return status, error["errors"][0]["reason"], error["message"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"items": [{"key": "k", "value": "\ud800"}]},
        {"items": [{"key": "\udfff", "value": "v"}]},
        {"\ud800": "v"},
    ],
)
def test_half_a_character_is_no_text(rest, metadata, discovery):
    body = json.dumps(instance(metadata=metadata)).encode()
    assert refused(rest, body=body) == (400, "parseError", "Parse Error")
    whole = instance(metadata={"items": [{"key": "k", "value": "\U0001f600"}]})
    assert "error" not in rest.wait(rest.post(f"zones/{ZONE}/instances", whole))
    discovery.take()


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"name": ' * 50_000, b"\xed\xa0\x80", b"\xff"])
def test_what_nobody_can_read_is_a_parse_error(rest, body, discovery):
    assert refused(rest, body=body) == (400, "parseError", "Parse Error")
    assert any("no JSON" in one for one in discovery.take())


def test_a_body_as_deep_as_python_reads_is_refused(rest, discovery):
    depth = sys.getrecursionlimit() // 3
    for nested in ("[" * depth + "]" * depth, '{"disks": ' * depth + "1" + "}" * depth):
        assert refused(rest, body=f'{{"name": {nested}}}'.encode())[0] == 400
    discovery.take()


@pytest.mark.parametrize(
    "fields",
    [
        {"machineType": "http://[x/"},
        {"networkInterfaces": [{"network": "http://[x/"}]},
        {"networkInterfaces": [{"subnetwork": "http://[x/"}]},
        {
            "networkInterfaces": [
                {
                    "network": "http://[x/networks/default",
                    "subnetwork": "regions/us-central1/subnetworks/default",
                }
            ]
        },
        {"disks": [boot_disk(sourceImage="http://[x/")]},
        {"disks": [boot_disk(diskType="http://[x/")]},
        {"disks": [boot_disk(), {"source": "http://[x/"}]},
    ],
)
def test_links_that_are_no_urls_are_refused(rest, fields):
    with pytest.raises(Refused) as caught:
        rest.post(f"zones/{ZONE}/instances", instance(**fields))
    assert caught.value.status in (400, 404)
    assert not rest.emulator.leftovers()


@pytest.mark.parametrize(
    "text",
    [
        "(" * 2000,
        "(" * 1000 + "name=a" + ")" * 1000,
        "NOT " * 1000 + "name=a",
        "-" * 1000 + "name=a",
        "name eq x{99999999999999999999}",
    ],
)
def test_a_filter_too_deep_is_refused(rest, text):
    status, reason, _ = refused(rest, verb="GET", query={"filter": text})
    assert (status, reason) == (400, "invalid")


@pytest.mark.parametrize("mask", ["items/" * 1000 + "name", "items(" * 500 + "name" + ")" * 500])
def test_a_mask_too_deep_is_refused(rest, mask):
    for request in ({"query": {"fields": mask}}, {"headers": {"X-Goog-FieldMask": mask}}):
        status, reason, _ = refused(rest, verb="GET", **request)
        assert (status, reason) == (400, "invalidParameter")


class Broken(PaperKind):
    """Paper machines that have no addresses, and say so in no way that was agreed upon."""

    def allocate(self, record, requested=None):
        raise ZeroDivisionError("no addresses")


def test_a_defect_is_an_answer_that_observers_see(discovery, caplog):
    seen = []
    with ComputeEmulator(Broken(), observers=[seen.append]) as emulator:
        rest = Rest(emulator)
        body = json.dumps(instance()).encode()
        status, reason, message = refused(rest, body=body)
        assert (status, reason) == (500, "backendError")
        assert "addresses" not in message
        assert [(one.method_id, one.status) for one in seen] == [("compute.instances.insert", 500)]
        assert "ZeroDivisionError: no addresses" in caplog.text
        assert discovery.take() == [
            "compute.instances.insert (500): the emulator broke: ZeroDivisionError('no addresses')"
        ]
        # It goes on.
        assert rest.names() == []
        assert not emulator.leftovers()


def test_a_defect_spoils_one_part_of_a_batch_only(discovery):
    with ComputeEmulator(Broken()) as emulator:
        parts = [("POST", INSTANCES, json.dumps(instance())), ("GET", INSTANCES, "")]
        body = "".join(
            f"--b\r\nContent-Type: application/http\r\n\r\n{verb} {path} HTTP/1.1\r\n"
            f"Content-Type: application/json\r\n\r\n{text}\r\n"
            for verb, path, text in parts
        )
        headers = {"Content-Type": 'multipart/mixed; boundary="b"'}
        status, answer, _ = Rest(emulator).raw(
            "POST", "/batch/compute/v1", body=f"{body}--b--\r\n".encode(), headers=headers
        )
    assert status == 200
    assert b"HTTP/1.1 500" in answer and b"HTTP/1.1 200" in answer
    assert len(discovery.take()) == 1


def test_a_request_can_be_carried_out_although_its_answer_is_lost(discovery):
    seen = []
    with ComputeEmulator("paper", observers=[seen.append]) as emulator:
        rest = Rest(emulator)
        emulator.faults.add(Fault("compute.instances.insert", drop="after"))
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            rest.insert()
        assert rest.names() == ["a"]
    assert [(one.method_id, one.status, one.response) for one in seen[:1]] == [
        ("compute.instances.insert", 0, None)
    ]


def test_a_fault_drops_before_or_after_or_not_at_all():
    with pytest.raises(ValueError, match=r"Fault\.drop"):
        Fault("compute.instances.insert", drop="before")
