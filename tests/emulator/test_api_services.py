"""Service Usage: which APIs a project has enabled, and what becomes of calls to the others."""

from __future__ import annotations

import time

import httplib2
import pytest
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from rest import PROJECT, ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator, Timings

PARENT = f"projects/{PROJECT}"
COMPUTE = "compute.googleapis.com"
SECRETS = "secretmanager.googleapis.com"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


@pytest.fixture
def api(emulator):
    """Return google-api-python-client's Service Usage."""
    service = build(
        "serviceusage",
        "v1",
        http=httplib2.Http(),
        client_options={"api_endpoint": f"{emulator.endpoint}/"},
    )
    yield service
    service.close()


def refused(request):
    with pytest.raises(HttpError) as caught:
        request.execute()
    return caught.value.status_code


def test_the_state_of_services(emulator, api):
    services = api.services()
    found = services.get(name=f"{PARENT}/services/{COMPUTE}").execute()
    assert found["state"] == "ENABLED" and found["config"]["name"] == COMPUTE
    assert found["name"] == f"{found['parent']}/services/{COMPUTE}"
    emulator.services.disable(SECRETS, project=PROJECT)
    names = [f"{PARENT}/services/{one}" for one in (SECRETS, COMPUTE)]
    both = services.batchGet(parent=PARENT, names=names).execute()["services"]
    assert [one["state"] for one in both] == ["DISABLED", "ENABLED"]
    other = services.get(name=f"projects/another-project/services/{SECRETS}").execute()
    assert other["state"] == "ENABLED"
    assert refused(services.get(name=f"{PARENT}/services/nonsense.googleapis.com")) == 403
    for wrong in ([], [f"projects/another-project/services/{COMPUTE}"], ["x"], ["x"] * 31):
        assert refused(services.batchGet(parent=PARENT, names=wrong)) == 400
    emulator.permissions.deny("serviceusage.*")
    assert refused(services.get(name=f"{PARENT}/services/{COMPUTE}")) == 403


def test_services_are_listed_by_state_and_page(api):
    services = api.services()

    def names(**query):
        request, found = services.list(parent=PARENT, **query), []
        while request is not None:
            answer = request.execute()
            found += [one["config"]["name"] for one in answer.get("services", [])]
            request = services.list_next(request, answer)
        return found

    everything = names()
    assert COMPUTE in everything and everything == sorted(everything)
    assert names(pageSize=3) == everything
    off = names(filter="state:DISABLED")
    assert off and sorted([*off, *names(filter="state:ENABLED")]) == everything
    assert refused(services.list(parent=PARENT, filter="title:x")) == 400


def test_a_disabled_api_answers_as_googles(rest):
    rest.emulator.services.disable(COMPUTE, project=PROJECT)
    with pytest.raises(Refused) as caught:
        rest.names()
    error = caught.value.error
    number = rest.get(f"/v1/projects/{PROJECT}")["projectNumber"]
    assert (error["code"], error["status"]) == (403, "PERMISSION_DENIED")
    assert error["message"].startswith(
        f"Compute Engine API has not been used in project {number} before or it is disabled."
    )
    assert [(one["domain"], one["reason"]) for one in error["errors"]] == [
        ("usageLimits", "accessNotConfigured")
    ]
    details = {one["@type"].rpartition(".")[2]: one for one in error["details"]}
    assert details["ErrorInfo"]["reason"] == "SERVICE_DISABLED"
    assert details["ErrorInfo"]["metadata"]["service"] == COMPUTE
    assert details["ErrorInfo"]["metadata"]["consumer"] == f"projects/{number}"
    # Another project, and another API of this one.
    assert rest.get(f"/compute/v1/projects/another-project/zones/{ZONE}/instances")
    assert rest.get(f"/v1/{PARENT}/secrets") == {}
    rest.emulator.services.disable(SECRETS)
    with pytest.raises(Refused) as caught:
        rest.get(f"/v1/{PARENT}/secrets")
    assert caught.value.error["details"][1]["reason"] == "SERVICE_DISABLED"
    rest.emulator.services.clear()
    assert rest.get(f"/v1/{PARENT}/secrets") == {} and rest.names() == []


def test_a_service_is_enabled_by_an_operation(discovery):
    with ComputeEmulator("paper", timings=Timings(creating=0.2)) as emulator:
        rest = Rest(emulator)
        emulator.services.disable(SECRETS)
        path = f"/v1/{PARENT}/services/{SECRETS}"
        operation = rest.post(f"{path}:enable", {})
        assert set(operation) == {"name"}
        deadline = time.monotonic() + 60
        while not (found := rest.get(f"/v1/{operation['name']}")).get("done"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert found["response"]["service"]["state"] == "ENABLED"
        assert rest.get(path)["state"] == "ENABLED"
        assert rest.get(f"/v1/{PARENT}/secrets") == {}
        again = rest.post(f"{path}:enable")
        assert again["name"] == "operations/noop.DONE_OPERATION" and again["done"]
        for wrong in ("/v1/operations/nobody", f"/v1/{PARENT}/services/x:enable"):
            with pytest.raises(Refused) as caught:
                rest.call("GET" if "operations" in wrong else "POST", wrong)
            assert caught.value.status in (403, 404)


def test_only_apis_that_there_are_can_be_disabled(emulator):
    with pytest.raises(ValueError, match="nonsense"):
        emulator.services.disable("nonsense")
    emulator.services.disable(COMPUTE, project=PROJECT)
    # What is said of all projects replaces what was said of one.
    emulator.services.enable(COMPUTE)
    assert emulator.services.enabled(COMPUTE, PROJECT)
