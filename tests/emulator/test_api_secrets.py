"""Secret Manager: what secrets keep, for how long, and who reads them. By Google's own client."""

from __future__ import annotations

import base64
import http.client
import time
from datetime import datetime, timedelta, timezone

import httplib2
import pytest
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from rest import ACCOUNT, PROJECT, ObservedKind, Refused, Rest

from dask_gce.emulator import ComputeEmulator, Fault, Timings

PARENT = f"projects/{PROJECT}"
BUNDLE = f"{PARENT}/secrets/bundle"
PATH = f"/v1/{BUNDLE}"
AUTOMATIC = {"replication": {"automatic": {}}}


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


@pytest.fixture
def api(emulator):
    """Return google-api-python-client's secrets of the project."""
    service = build(
        "secretmanager",
        "v1",
        http=httplib2.Http(),
        client_options={"api_endpoint": f"{emulator.endpoint}/"},
    )
    yield service.projects().secrets()
    service.close()


def create(api, name="bundle", **fields):
    return api.create(parent=PARENT, secretId=name, body={**AUTOMATIC, **fields}).execute()


def payload(data, **fields):
    return {"payload": {"data": base64.b64encode(data).decode(), **fields}}


def add(api, data, **fields):
    return api.addVersion(parent=BUNDLE, body=payload(data, **fields)).execute()


def read(api, version="latest"):
    found = api.versions().access(name=f"{BUNDLE}/versions/{version}").execute()
    return base64.b64decode(found["payload"]["data"])


def refused(request):
    with pytest.raises(HttpError) as caught:
        request.execute()
    return caught.value.status_code, caught.value.reason


def test_a_secret_from_its_creation_to_its_end(emulator, api):
    made = create(api, labels={"dask-gce": "c-1"}, annotations={"x": "Y"})
    number = made["name"].split("/")[1]
    assert number.isdecimal() and made["name"] == f"projects/{number}/secrets/bundle"
    assert made["labels"] == {"dask-gce": "c-1"} and made["annotations"] == {"x": "Y"}
    assert "expireTime" not in made
    assert emulator.leftovers() == [f"secret bundle in {PROJECT} exists"]
    first = add(api, b"\x00one")
    assert (first["name"], first["state"]) == (f"{made['name']}/versions/1", "ENABLED")
    assert read(api) == read(api, 1) == b"\x00one"
    assert api.get(name=made["name"]).execute() == made
    assert api.delete(name=BUNDLE).execute() == {}
    assert refused(api.get(name=BUNDLE)) == (404, f"Secret [{made['name']}] not found.")
    assert not emulator.leftovers()


def test_versions(api):
    create(api)
    status, message = refused(api.versions().access(name=f"{BUNDLE}/versions/latest"))
    assert status == 404 and "has no versions" in message
    for data in (b"one", b"two", b"three"):
        add(api, data)
    versions = api.versions()
    listed = versions.list(parent=BUNDLE, pageSize=2).execute()
    assert [one["name"][-1] for one in listed["versions"]] == ["3", "2"]
    assert listed["totalSize"] == 3
    rest = versions.list_next(versions.list(parent=BUNDLE, pageSize=2), listed).execute()
    assert [one["name"][-1] for one in rest["versions"]] == ["1"] and "nextPageToken" not in rest

    gone = versions.destroy(name=f"{BUNDLE}/versions/3").execute()
    assert gone["state"] == "DESTROYED" and gone["destroyTime"].endswith("Z")
    # The latest is the newest, whatever its state.
    assert refused(versions.access(name=f"{BUNDLE}/versions/latest")) == (
        400,
        f"Secret Version [{gone['name']}] is in DESTROYED state.",
    )
    assert refused(versions.destroy(name=f"{BUNDLE}/versions/3"))[0] == 400
    assert read(api, 2) == b"two"
    assert versions.disable(name=f"{BUNDLE}/versions/2").execute()["state"] == "DISABLED"
    assert refused(versions.access(name=f"{BUNDLE}/versions/2"))[0] == 400
    stale = {"etag": '"stale"'}
    assert refused(versions.enable(name=f"{BUNDLE}/versions/2", body=stale))[0] == 400
    etag = versions.get(name=f"{BUNDLE}/versions/2").execute()["etag"]
    versions.enable(name=f"{BUNDLE}/versions/2", body={"etag": etag}).execute()
    assert read(api, 2) == b"two"
    enabled = versions.list(parent=BUNDLE, filter="state:ENABLED").execute()
    assert [one["name"][-1] for one in enabled["versions"]] == ["2", "1"]
    assert refused(versions.get(name=f"{BUNDLE}/versions/4"))[0] == 404


def test_payloads_are_checked(api):
    create(api)
    # The checksum of RFC 3720: that of 32 bytes of zeroes is 8A9136AA.
    zeroes = bytes(32)
    good = add(api, zeroes, dataCrc32c=str(0x8A9136AA))
    assert good["clientSpecifiedPayloadChecksum"] is True
    found = api.versions().access(name=f"{BUNDLE}/versions/1").execute()["payload"]
    assert found["dataCrc32c"] == str(0x8A9136AA)
    for wrong in (
        payload(zeroes, dataCrc32c="1"),
        payload(zeroes, dataCrc32c="-1"),
        payload(b""),
        payload(bytes(65_537)),
        {"payload": {"data": "a"}},
        {"payload": {"data": "%%%%"}},
        {},
    ):
        assert refused(api.addVersion(parent=BUNDLE, body=wrong))[0] == 400
    assert len(add(api, bytes(65_536))) > 0 and len(read(api)) == 65_536


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("bundle", {}),
        ("bundle", {"replication": {"automatic": {}, "userManaged": {}}}),
        ("bundle", {"replication": {"userManaged": {"replicas": []}}}),
        ("bad/id", AUTOMATIC),
        ("x" * 256, AUTOMATIC),
        ("", AUTOMATIC),
        ("bundle", {**AUTOMATIC, "labels": {"Upper": "x"}}),
        ("bundle", {**AUTOMATIC, "ttl": "59s"}),
        ("bundle", {**AUTOMATIC, "ttl": "1h"}),
        ("bundle", {**AUTOMATIC, "ttl": "3153600001s"}),
        ("bundle", {**AUTOMATIC, "expireTime": "2020-01-01T00:00:00Z"}),
        ("bundle", {**AUTOMATIC, "expireTime": "tomorrow"}),
        ("bundle", {**AUTOMATIC, "ttl": "90s", "expireTime": "2030-01-01T00:00:00Z"}),
        ("bundle", {**AUTOMATIC, "rotation": {"rotationPeriod": "3600s"}}),
    ],
)
def test_malformed_secrets_are_refused(emulator, api, name, body):
    assert refused(api.create(parent=PARENT, secretId=name, body=body))[0] == 400
    assert not emulator.leftovers()


def test_a_name_is_taken_once(api):
    create(api)
    assert refused(api.create(parent=PARENT, secretId="bundle", body=AUTOMATIC))[0] == 409


def test_where_secrets_are_replicated(api):
    replicas = {"userManaged": {"replicas": [{"location": "europe-west1"}]}}
    assert create(api, replication=replicas)["replication"] == replicas
    assert add(api, b"x")["replicationStatus"] == {"userManaged": {}}


def test_secrets_are_listed_the_newest_first_and_filtered(api):
    for index in range(5):
        create(api, f"s-{index}", labels={"cluster": f"c-{index % 2}"})
    request, names = api.list(parent=PARENT, pageSize=2), []
    while request is not None:
        answer = request.execute()
        assert answer["totalSize"] == 5
        names += [one["name"].rpartition("/")[2] for one in answer["secrets"]]
        request = api.list_next(request, answer)
    assert names == [f"s-{index}" for index in (4, 3, 2, 1, 0)]
    found = api.list(parent=PARENT, filter="labels.cluster=c-1").execute()["secrets"]
    assert [one["name"][-1] for one in found] == ["3", "1"]
    assert api.list(parent=PARENT, filter="name:s-9").execute() == {}
    assert refused(api.list(parent=PARENT, pageToken="%"))[0] == 400
    assert refused(api.list(parent=PARENT, filter="(("))[0] == 400


def test_an_old_etag_deletes_nothing(api):
    made = create(api)
    assert refused(api.delete(name=BUNDLE, etag='"stale"'))[0] == 400
    assert api.delete(name=BUNDLE, etag=made["etag"]).execute() == {}


def test_a_secret_expires_by_itself(discovery):
    # A minute passes in 60 milliseconds.
    with ComputeEmulator("paper", timings=Timings(run_duration_scale=0.001)) as emulator:
        rest = Rest(emulator)
        query = {"secretId": "bundle"}
        made = rest.call("POST", f"/v1/{PARENT}/secrets", {**AUTOMATIC, "ttl": "60s"}, query=query)
        assert made["expireTime"] > made["createTime"] and "ttl" not in made
        deadline = time.monotonic() + 60
        while emulator.leftovers():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Refused) as caught:
            rest.get(PATH)
        assert caught.value.status == 404
        assert rest.get(f"/v1/{PARENT}/secrets") == {}
        rest.call("POST", f"/v1/{PARENT}/secrets", AUTOMATIC, query=query)


def test_a_secret_can_be_given_another_end(api):
    made = create(api, ttl="3600s", labels={"a": "b"})
    later = "2040-01-01T00:00:00Z"

    def change(mask, **fields):
        return api.patch(name=BUNDLE, updateMask=mask, body=fields)

    changed = change("expireTime", expireTime=later, labels={"a": "c"}).execute()
    assert changed["expireTime"] == "2040-01-01T00:00:00.000000Z"
    assert changed["labels"] == {"a": "b"}
    assert changed["etag"] != made["etag"]
    assert change("labels", labels={}).execute().get("labels") is None
    assert api.get(name=BUNDLE).execute()["expireTime"] == changed["expireTime"]
    assert "expireTime" not in change("ttl").execute()
    for wrong in (
        change("", expireTime=later),
        change("replication", replication={"automatic": {}}),
        change("expireTime", expireTime="2020-01-01T00:00:00Z"),
        change("labels", labels={}, etag='"older"'),
    ):
        assert refused(wrong)[0] == 400
    assert (
        refused(api.patch(name=f"{PARENT}/secrets/other", updateMask="labels", body={}))[0] == 404
    )


def test_a_secret_can_expire_at_a_time(api):
    moment = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = create(api, expireTime=moment)
    assert datetime.fromisoformat(made["expireTime"].replace("Z", "+00:00")) == (
        datetime.fromisoformat(moment.replace("Z", "+00:00"))
    )


def test_a_policy_is_read_changed_and_written(api):
    create(api)
    policy = api.getIamPolicy(resource=BUNDLE).execute()
    assert policy == {"version": 1, "etag": "ACAB"}
    member = "serviceAccount:worker@example.iam.gserviceaccount.com"
    policy["bindings"] = [{"role": "roles/secretmanager.secretAccessor", "members": [member]}]
    written = api.setIamPolicy(resource=BUNDLE, body={"policy": policy}).execute()
    assert written["bindings"] == policy["bindings"] and written["etag"] != policy["etag"]
    assert api.getIamPolicy(resource=BUNDLE).execute() == written
    # Somebody else was faster.
    assert refused(api.setIamPolicy(resource=BUNDLE, body={"policy": policy}))[0] == 409
    for wrong in (
        {},
        {"policy": {"bindings": [{"role": "roles/nonsense", "members": [member]}]}},
        {"policy": {"bindings": [{"role": "roles/viewer", "members": ["worker"]}]}},
        {
            "policy": {
                "bindings": [
                    {"role": "roles/viewer", "members": [member], "condition": {"title": "t"}}
                ]
            }
        },
    ):
        assert refused(api.setIamPolicy(resource=BUNDLE, body=wrong))[0] == 400
    asked = ["secretmanager.versions.access", "secretmanager.secrets.delete"]
    body = {"permissions": asked}
    assert api.testIamPermissions(resource=BUNDLE, body=body).execute() == body


class Machines:
    """An emulator with two machines, and what each may ask."""

    def __init__(self, rest, kind):
        self.rest, self.kind = rest, kind
        rest.insert(name="a", serviceAccounts=[ACCOUNT])
        rest.insert(
            name="b",
            serviceAccounts=[{**ACCOUNT, "email": "other@my-project.iam.gserviceaccount.com"}],
        )
        rest.insert(name="c")

    def email(self, name):
        return self.rest.instance(name)["serviceAccounts"][0]["email"]

    def asks(self, name, path=f"{PATH}/versions/latest:access", verb="GET", body=None):
        """Return the status of an answer to a machine."""
        headers = {"Authorization": f"Bearer {self.kind.token(name)}"}
        try:
            self.rest.call(verb, path, body, headers=headers)
        except Refused as refusal:
            self.refusal = refusal
            return refusal.status
        return 200


@pytest.fixture
def machines(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, timings=Timings(latency=0)) as emulator:
        rest = Rest(emulator)
        rest.call("POST", f"/v1/{PARENT}/secrets", AUTOMATIC, query={"secretId": "bundle"})
        rest.post(f"{PATH}:addVersion", payload(b"key"))
        yield Machines(rest, kind)


def bind(machines, path, name, role="roles/secretmanager.secretAccessor"):
    bindings = [{"role": role, "members": [f"serviceAccount:{machines.email(name)}"]}]
    machines.rest.post(f"{path}:setIamPolicy", {"policy": {"bindings": bindings}})


def test_a_machine_reads_what_the_secrets_policy_grants_it(machines):
    assert machines.asks("a") == 403
    error = machines.refusal.error
    assert error["status"] == "PERMISSION_DENIED" and "errors" not in error
    assert error["message"] == (
        "Permission 'secretmanager.versions.access' denied for resource"
        f" '{BUNDLE}/versions/latest' (or it may not exist)."
    )
    assert error["details"][0]["reason"] == "IAM_PERMISSION_DENIED"
    bind(machines, PATH, "a")
    assert (machines.asks("a"), machines.asks("b")) == (200, 403)
    # A version by number, and nothing else of it: the role is for reading.
    assert machines.asks("a", f"{PATH}/versions/1:access") == 200
    assert machines.asks("a", f"{PATH}:setIamPolicy", "POST", {"policy": {}}) == 403
    bind(machines, PATH, "b")
    assert (machines.asks("a"), machines.asks("b")) == (403, 200)


def test_a_machine_reads_what_the_projects_policy_grants_it(machines):
    bind(machines, f"/v1/{PARENT}", "b")
    assert (machines.asks("a"), machines.asks("b")) == (403, 200)
    # Which secrets there are is told to those only who may read them.
    missing = f"/v1/{PARENT}/secrets/nobody/versions/latest:access"
    assert (machines.asks("a", missing), machines.asks("b", missing)) == (403, 404)


def test_a_machine_without_an_account_has_no_token(machines):
    assert machines.kind.token("c") == ""


def test_the_token_of_a_machine_that_is_gone_is_not_the_clients(machines):
    token = machines.kind.token("a")
    machines.rest.wait(machines.rest.delete("zones/us-central1-a/instances/a"))
    status, _, _ = machines.rest.raw(
        "GET", f"{PATH}/versions/latest:access", headers={"Authorization": f"Bearer {token}"}
    )
    assert status == 403


def test_a_test_denies_and_grants(machines):
    permissions, access = machines.rest.emulator.permissions, "secretmanager.versions.access"
    permissions.allow(access, member=f"serviceAccount:{machines.email('a')}")
    assert (machines.asks("a"), machines.asks("b")) == (200, 403)
    permissions.deny(access, project=PROJECT)
    assert machines.asks("a") == 403
    with pytest.raises(Refused) as caught:
        machines.rest.get(f"{PATH}/versions/latest:access")
    assert caught.value.status == 403
    permissions.clear()
    permissions.deny(access, member="client")
    permissions.allow(access, project="another-project")
    with pytest.raises(Refused):
        machines.rest.get(f"{PATH}/versions/latest:access")
    permissions.clear()
    assert machines.rest.get(f"{PATH}/versions/latest:access")


def test_projects_that_are_not_there_have_no_secrets(discovery):
    with ComputeEmulator("paper", projects=[PROJECT]) as emulator:
        rest = Rest(emulator)
        path = "/v1/projects/another-project"
        for verb, rest_of_path in (
            ("GET", "/secrets"),
            ("GET", "/secrets/bundle"),
            ("GET", "/secrets/bundle/versions/1:access"),
            ("POST", "/secrets/bundle:testIamPermissions"),
            ("POST", ":testIamPermissions"),
        ):
            with pytest.raises(Refused) as caught:
                rest.call(verb, path + rest_of_path, {} if verb == "POST" else None)
            assert caught.value.status == 403


def test_faults_and_latencies_are_those_of_every_api(discovery):
    name = "secretmanager.projects.secrets.create"
    timings = Timings(latencies={name: 0.2})
    with ComputeEmulator("paper", timings=timings) as emulator:
        emulator.faults.add(Fault(name, status=503), Fault(name, drop="after"))
        rest, query = Rest(emulator), {"secretId": "bundle"}
        began = time.monotonic()
        with pytest.raises(Refused) as caught:
            rest.call("POST", f"/v1/{PARENT}/secrets", AUTOMATIC, query=query)
        assert (caught.value.status, caught.value.error["status"]) == (503, "UNAVAILABLE")
        assert time.monotonic() - began >= 0.2
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            rest.call("POST", f"/v1/{PARENT}/secrets", AUTOMATIC, query=query)
        assert emulator.leftovers() and emulator.requests[name] == 2
