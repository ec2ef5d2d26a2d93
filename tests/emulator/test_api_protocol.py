"""Who is answered, in which version, and what goes wrong on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import sys
import time
from urllib.parse import urlencode

import pytest
from rest import ACCOUNT, PROJECT, ZONE, ObservedKind, Refused, Rest, instance

from dask_gce.emulator import ComputeEmulator, Exchange, Fault, Timings
from dask_gce.emulator.machines import peers

only_linux_tells = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who asks")

LIST = f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def port(emulator):
    return int(emulator.endpoint.rsplit(":", 1)[1])


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.org"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "169.254.169.254"},
        {"Origin": "http://evil.example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
    ],
)
def test_web_pages_and_foreign_hosts_are_refused(rest, headers, discovery):
    for verb, path in (("GET", LIST), ("POST", LIST), ("POST", "/batch/compute/v1")):
        status, body, _ = rest.raw(verb, path, headers=headers, body=b"{}")
        assert status == 403
        assert json.loads(body)["error"]["errors"][0]["reason"] == "forbidden"
    assert not rest.emulator.requests
    # A batch is no method of the document; nothing else was wrong.
    assert {fault.split(":")[0] for fault in discovery.take()} == {"POST /batch/compute/v1"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_loopback_hosts_are_answered(rest, host):
    headers = {"Host": f"{host}:{port(rest.emulator)}"}
    assert rest.raw("GET", LIST, headers=headers)[0] == 200


def test_a_token_is_demanded(discovery):
    with ComputeEmulator("paper", token="s3cret") as emulator:
        rest = Rest(emulator)
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer s3cretx"},
        ):
            with pytest.raises(Refused) as caught:
                rest.call("GET", LIST, headers=headers)
            assert (caught.value.status, caught.value.reason) == (401, "authError")
        assert not emulator.requests
        assert "s3cret" not in repr(emulator)
        rest.call("GET", LIST, headers={"Authorization": "Bearer s3cret"})
        assert emulator.requests["compute.instances.list"] == 1


@only_linux_tells
def test_other_users_of_the_host_are_refused_unless_they_bear_the_token(monkeypatch, discovery):
    own = os.geteuid()
    with (
        ComputeEmulator("paper") as emulator,
        ComputeEmulator("paper", token="s3cret") as guarded,
    ):
        # To an emulator of another user it is the tests' user who is the stranger.
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        for verb, path in (("GET", LIST), ("POST", LIST), ("POST", "/batch/compute/v1")):
            status, body, _ = Rest(emulator).raw(verb, path, body=b"{}")
            assert status == 403
            assert "--token" in json.loads(body)["error"]["message"]
        assert not emulator.requests
        headers = {"Authorization": "Bearer s3cret"}
        assert Rest(guarded).raw("GET", LIST, headers=headers)[0] == 200
        monkeypatch.undo()
        assert Rest(emulator).raw("GET", LIST)[0] == 200
    discovery.take()


@only_linux_tells
def test_who_asks_is_found_out_once_a_connection(emulator, monkeypatch):
    asked = []
    monkeypatch.setattr(peers, "socket_owner", lambda *ends: asked.append(ends) or os.geteuid())
    connection = http.client.HTTPConnection("127.0.0.1", port(emulator))
    for _ in range(3):
        connection.request("GET", LIST)
        assert connection.getresponse().read()
    assert len(asked) == 1
    connection.close()


def test_guests_may_ask(process_emulator):
    rest = Rest(process_emulator)
    script = f"curl -s -o /dev/null -w '%{{http_code}} answered' {process_emulator.endpoint}{LIST}"
    items = [{"key": "startup-script", "value": script}]
    body = instance("m", metadata={"items": items})
    rest.call("POST", f"zones/{ZONE}/instances", body)
    deadline = time.monotonic() + 30
    text = ""
    while "answered" not in text and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(Refused):
            text = rest.get(f"zones/{ZONE}/instances/m/serialPort")["contents"]
    assert "200 answered" in text


def test_machines_may_use_their_own_tokens(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, token="s3cret") as emulator:
        rest = Rest(emulator)
        for name in ("a", "b"):
            rest.call(
                "POST",
                f"zones/{ZONE}/instances",
                instance(name, serviceAccounts=[ACCOUNT]),
                headers={"Authorization": "Bearer s3cret"},
            )
        tokens = [kind.token(name) for name in ("a", "b")]
        assert len({*tokens}) == 2
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            assert rest.raw("GET", LIST, headers=headers)[0] == 200
        for token in (tokens[0] + "x", tokens[0][:-1], "ya29.local-machine.x"):
            headers = {"Authorization": f"Bearer {token}"}
            assert rest.raw("GET", LIST, headers=headers)[0] == 401


def test_a_machine_of_another_emulator_is_not_taken_for_a_client(rest, discovery):
    headers = {"Authorization": "Bearer ya29.local-machine.of-another"}
    assert rest.raw("GET", LIST, headers=headers)[0] == 401


def test_access_scopes_limit_what_a_machine_reaches(discovery):
    kind = ObservedKind()
    reached = {}
    with ComputeEmulator(kind) as emulator:
        rest = Rest(emulator)
        for name in ("cloud-platform", "compute", "compute.readonly", "devstorage.read_only"):
            scope = f"https://www.googleapis.com/auth/{name}"
            account = {"email": "default", "scopes": [scope]}
            one = "m-" + name.replace(".", "-").replace("_", "-")
            rest.insert(name=one, serviceAccounts=[account])
            headers = {"Authorization": f"Bearer {kind.token(one)}"}
            calls = [
                ("GET", LIST),
                ("DELETE", f"{LIST}/nobody"),
                ("GET", f"/v1/projects/{PROJECT}"),
            ]
            reached[name] = [rest.raw(*call, headers=headers)[0] for call in calls]
    assert reached == {
        "cloud-platform": [200, 404, 200],
        "compute": [200, 404, 403],
        "compute.readonly": [200, 403, 403],
        "devstorage.read_only": [403, 403, 403],
    }


def test_unknown_paths_are_not_found(rest, discovery):
    for path in (
        "/",
        "/compute/v1/",
        f"/{LIST}",
        f"{LIST}/a/explode",
        f"{LIST}/%0A",
        "/computeMetadata/v1/",
        "/v1/",
        "/v3/nothing",
    ):
        status, body, _ = rest.raw("GET", path)
        assert (status, json.loads(body)["error"]["code"]) == (404, 404), path
    assert all("no such method" in fault for fault in discovery.take())


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, {}, 200),
        ({"X-Goog-Api-Version": "2026-09-01"}, {}, 200),
        ({"X-Goog-Api-Version": "2026-11-01"}, {}, 200),
        ({"X-Goog-Api-Version": "2026-10-01-preview"}, {}, 200),
        ({}, {"$apiVersion": "2026-09-01"}, 200),
        ({"X-Goog-Api-Version": "2026-09-01"}, {"$apiVersion": "2026-09-01"}, 400),
        ({"X-Goog-Api-Version": "2026-08-01"}, {}, 400),
        ({"X-Goog-Api-Version": "2026-09-02"}, {}, 400),
        ({"X-Goog-Api-Version": "2999-01-01"}, {}, 400),
        ({"X-Goog-Api-Version": "v1"}, {}, 400),
        ({"X-Goog-Api-Version": ""}, {}, 400),
        ({}, {"returnPartialSuccess": "true"}, 200),
        ({"X-Goog-Api-Version": "2026-09-01"}, {"returnPartialSuccess": "true"}, 400),
    ],
)
def test_api_versions(headers, query, status, discovery):
    seen: list[Exchange] = []
    with ComputeEmulator("paper", observers=[seen.append]) as emulator:
        got, _, _ = Rest(emulator).raw("GET", LIST, headers=headers, query=query)
    assert got == status
    if status == 200:
        assert seen[0].version == (headers.get("X-Goog-Api-Version") or query.get("$apiVersion"))
    if "returnPartialSuccess" in query and headers:
        assert discovery.take() == [
            "compute.instances.list (400): unknown query parameter 'returnPartialSuccess'"
        ]


def test_unknown_parameters_and_fields_are_refused(rest, discovery):
    with pytest.raises(Refused, match='Unknown name "maxresults"'):
        rest.get(f"zones/{ZONE}/instances", maxresults=3)
    with pytest.raises(Refused, match='Unknown name "machinetype"'):
        rest.post(f"zones/{ZONE}/instances", instance(machinetype="x"))
    assert len(discovery.take()) == 2
    status, body, _ = rest.raw("POST", LIST, body=b"{nonsense")
    assert (status, json.loads(body)["error"]["errors"][0]["reason"]) == (400, "parseError")
    assert "no JSON" in discovery.take()[0]
    with pytest.raises(Refused, match="resource"):
        rest.post(f"zones/{ZONE}/instances")
    assert "no body" in discovery.take()[0]


def test_a_body_too_large_is_refused(rest):
    with pytest.raises(Refused) as caught:
        rest.post(f"zones/{ZONE}/instances", instance(description="x" * 9_000_000))
    assert caught.value.status == 413


def test_observers_see_the_exchange_but_not_the_token(discovery):
    seen: list[Exchange] = []
    with ComputeEmulator("paper", token="s3cret", observers=[seen.append]) as emulator:
        rest = Rest(emulator)
        headers = {"Authorization": "Bearer s3cret", "X-Goog-Request-Reason": "why"}
        rest.call("POST", f"zones/{ZONE}/disks", {"name": "d"}, headers=headers)
        emulator.faults.add(Fault("compute.disks.list", status=503))
        with pytest.raises(Refused):
            rest.call("GET", f"zones/{ZONE}/disks", headers=headers)
    first, second = seen
    assert (first.method_id, first.verb, first.status) == ("compute.disks.insert", "POST", 200)
    assert first.request == {"name": "d"} and first.response["kind"] == "compute#operation"
    assert first.headers["x-goog-request-reason"] == "why"
    assert "s3cret" not in repr(first)
    assert (second.status, second.response["error"]["code"]) == (503, 503)


def test_refusals_happen_in_order_and_as_often_as_scripted(rest):
    quota = Fault(
        "compute.instances.insert", status=403, reason="quotaExceeded", message="Quota 'CPUS'."
    )
    twice = Fault(
        "compute.instances.insert",
        status=403,
        reason="rateLimitExceeded",
        times=2,
        match=lambda name: name == "b",
    )
    rest.emulator.faults.add(twice, quota)
    reasons = []
    for name in ("a", "b", "b", "b"):
        try:
            rest.insert(name=name)
        except Refused as refusal:
            reasons.append(refusal.reason)
    assert reasons == ["quotaExceeded", "rateLimitExceeded", "rateLimitExceeded"]
    assert not rest.emulator.faults.unused()
    rest.wait(rest.delete(f"zones/{ZONE}/instances/b"))
    assert rest.emulator.requests["compute.instances.insert"] == 4


def test_an_accepted_insert_can_fail_later(rest):
    error = {
        "code": "QUOTA_EXCEEDED",
        "message": "Quota 'CPUS' exceeded.",
        "errorDetails": [{"quotaInfo": {"metricName": "compute.googleapis.com/cpus", "limit": 8}}],
    }
    rest.emulator.faults.add(Fault("compute.instances.insert", operation_errors=[error]))
    done = rest.insert()
    assert done["error"]["errors"] == [error]
    assert (done["httpErrorStatusCode"], done["httpErrorMessage"]) == (403, "FORBIDDEN")
    assert not rest.emulator.leftovers()
    # Once, as scripted: the next one lives.
    assert "error" not in rest.insert()
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def test_a_late_answer_and_a_dropped_connection(rest):
    rest.emulator.faults.add(Fault("compute.instances.list", delay=0.3))
    began = time.monotonic()
    rest.names()
    assert time.monotonic() - began >= 0.3
    rest.emulator.faults.add(Fault("compute.instances.insert", drop=True))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        rest.insert()
    assert not rest.names()


@pytest.mark.parametrize(
    "options", [{}, {"status": 403, "drop": True}, {"status": 403, "times": 0}]
)
def test_a_senseless_fault_is_refused(options):
    with pytest.raises(ValueError, match="Fault"):
        Fault("compute.instances.insert", **options)


def batch(parts):
    lines = []
    for index, (verb, path, body) in enumerate(parts):
        text = json.dumps(body) if body is not None else ""
        lines += [
            "--b", "Content-Type: application/http", f"Content-ID: <x+{index}>", "",
            f"{verb} {path} HTTP/1.1", "Content-Type: application/json", "", text,
        ]  # fmt: skip
    return "\r\n".join([*lines, "--b--", ""]).encode()


def test_a_batch_answers_each_part(rest):
    parts = [("POST", LIST, instance(name=name)) for name in ("a", "b", "B")]
    parts.append(("GET", f"{LIST}?fields=kind", None))
    headers = {"Content-Type": 'multipart/mixed; boundary="b"'}
    status, body, answered = rest.raw(
        "POST", "/batch/compute/v1", body=batch(parts), headers=headers
    )
    assert status == 200 and answered["Content-Type"].startswith("multipart/mixed")
    boundary = answered["Content-Type"].split('"')[1]
    found = [one for one in body.decode().split(f"--{boundary}") if "HTTP/1.1" in one]
    ids = [one.split("Content-ID: ")[1].split("\r\n")[0] for one in found]
    assert ids == [f"<response-x+{index}>" for index in range(4)]
    assert [one.split("HTTP/1.1 ")[1][:3] for one in found] == ["200", "200", "400", "200"]
    assert '{"kind": "compute#instanceList"}' in found[3]
    assert rest.emulator.requests["compute.instances.insert"] == 3
    for name in ("a", "b"):
        rest.wait(rest.delete(f"zones/{ZONE}/instances/{name}"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--",
        b"--b\r\n\r\nnothing\r\n--b--\r\n",
        pytest.param(batch([("GET", "http://[x/", None)]), id="malformed URL"),
    ],
)
def test_a_malformed_batch_is_refused(rest, body, discovery):
    headers = {"Content-Type": 'multipart/mixed; boundary="b"'}
    status, _, _ = rest.raw("POST", "/batch/compute/v1", body=body, headers=headers)
    assert status == 400
    assert all("no such method" in fault for fault in discovery.take())


def test_the_parts_of_a_batch_are_asked_in_the_name_of_the_whole(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a", serviceAccounts=[ACCOUNT])
        emulator.permissions.deny("compute.instances.list", member="client")
        path = f"/v1/projects/{PROJECT}/services:batchGet"
        names = [f"projects/{PROJECT}/services/{one}.googleapis.com" for one in ("iap", "iam")]
        parts = [
            ("GET", LIST, None),
            ("GET", f"{path}?{urlencode({'names': names}, doseq=True)}", None),
        ]
        headers = {"Content-Type": 'multipart/mixed; boundary="b"'}
        found = []
        for token in ({}, {"Authorization": f"Bearer {kind.token('a')}"}):
            _, body, _ = rest.raw(
                "POST", "/batch/compute/v1", body=batch(parts), headers={**headers, **token}
            )
            found.append(re.findall(rb"HTTP/1.1 ([0-9]+)", body))
            assert body.count(b'"state": "ENABLED"') == 2
    assert found == [[b"403", b"200"], [b"200", b"200"]]


def test_operations_by_zone_region_and_everywhere(rest):
    rest.insert()
    subnet = {"name": "s", "network": "global/networks/default", "ipCidrRange": "10.1.0.0/24"}
    regional = rest.wait(rest.post("regions/us-central1/subnetworks", subnet))
    rest.wait(rest.delete("regions/us-central1/subnetworks/s"))
    everywhere = rest.get("aggregated/operations")["items"]
    assert set(everywhere) == {f"zones/{ZONE}", "regions/us-central1"}
    assert len(rest.get("regions/us-central1/operations")["items"]) == 2
    assert "items" not in rest.get("global/operations")
    path = f"regions/us-central1/operations/{regional['name']}"
    assert rest.get(path) == regional
    # Google takes the number as well.
    assert rest.get(f"regions/us-central1/operations/{regional['id']}") == regional
    assert rest.delete(path) is None
    with pytest.raises(Refused) as caught:
        rest.get(path)
    assert caught.value.status == 404
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def test_waiting_ends_at_its_cap(discovery):
    timings = Timings(provisioning=60, operation_wait=0.1)
    with ComputeEmulator("paper", timings=timings) as emulator:
        rest = Rest(emulator)
        operation = rest.post(f"zones/{ZONE}/instances", instance())
        began = time.monotonic()
        path = f"zones/{ZONE}/operations/{operation['name']}"
        assert rest.post(f"{path}/wait")["status"] == "RUNNING"
        assert 0.1 <= time.monotonic() - began < 30
        assert rest.get(path)["status"] == "RUNNING"
