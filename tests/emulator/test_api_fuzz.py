"""Odd requests of the APIs beside Compute's, and of what they change: refused, never broken."""

from __future__ import annotations

import http.client
import json
from functools import lru_cache
from importlib import resources
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest import PROJECT, ZONE, Rest

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.methods import ROUTES

#: Those that take what somebody made up, and are not asked elsewhere.
FUZZED = [
    route
    for route in ROUTES
    if route.service != "compute"
    or ".routers." in route.method_id
    or ".addresses." in route.method_id
    or route.method_id
    in (
        "compute.firewalls.insert",
        "compute.images.insert",
        "compute.instances.setLabels",
        "compute.instances.setMetadata",
        "compute.subnetworks.insert",
    )
]

#: Words that mean something to one of them.
WORDS = st.sampled_from(
    [
        *("", "a", "latest", "1", "0", "01", "-1", "99999999999", "1e3", "true", "bundle", "r"),
        *("60s", "1.5s", "999999999999s", "2030-01-01T00:00:00Z", "9999-12-31T23:59:59+23:59"),
        *("0001-01-01T00:00:00-23:59", "AAAA", "a-_=", "%%%", "ACAB", "roles/viewer", "allUsers"),
        *("user:a@b.c", "serviceAccount:x", "automatic", "AUTO_ONLY", "LIST_OF_SUBNETWORKS"),
        *("global/networks/default", "projects/other/global/networks/n", "https://[", "//", "*"),
        *("regions/us-central1/subnetworks/default", "ALL_SUBNETWORKS_ALL_IP_RANGES", "10.0.0.0/8"),
        *("compute.googleapis.com", f"projects/{PROJECT}/services/compute.googleapis.com"),
        *(
            "compute.instances.get",
            "a.b.c",
            "state:ENABLED",
            "labels.a=b AND name:x",
            "((",
            "\x00",
            "\n",
        ),
    ]
)
TEXT = WORDS | st.text(max_size=20)
NUMBERS = st.integers(-(2**70), 2**70)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=8,
)


@lru_cache(maxsize=1)
def schemas():
    folder = resources.files("dask_gce.emulator")
    return json.loads(folder.joinpath("request_schemas.json").read_text("utf-8"))


def bodies(form, depth=0):
    """Return a strategy of values that have nearly the form of a schema."""
    if isinstance(form, str) and form.startswith("#"):
        form = schemas()[form[1:]]
    if depth > 6:
        return JSON
    if isinstance(form, list):
        return st.lists(bodies(form[0], depth + 1), max_size=3)
    if isinstance(form, dict):
        if "*" in form:
            return st.dictionaries(TEXT, bodies(form["*"], depth + 1), max_size=3)
        fields = {
            key: st.deferred(lambda one=one: bodies(one, depth + 1)) for key, one in form.items()
        }
        # Few at a time, or most of them would be refused for another one.
        return st.lists(st.sampled_from(sorted(fields) or [""]), max_size=4, unique=True).flatmap(
            lambda chosen: st.fixed_dictionaries({key: fields.get(key, JSON) for key in chosen})
        )
    if "|" in form:
        return st.sampled_from(form.split("|"))
    return {
        "boolean": st.booleans(),
        "integer": NUMBERS,
        "int64": NUMBERS.map(str),
        "number": NUMBERS,
        "string": TEXT,
    }.get(form, JSON)


def requests(route):
    """Return a strategy of paths, queries and bodies for a route."""
    known = {
        "project": st.sampled_from([PROJECT, PROJECT, PROJECT, "another-project", "123456789012"]),
        "zone": st.just(ZONE),
        "region": st.just("us-central1"),
        "secret": st.just("bundle"),
        "version": st.sampled_from(["latest", "1"]),
        "router": st.just("r"),
        "address": st.just("s"),
        "instance": st.just("a"),
        "service": st.just("compute.googleapis.com"),
    }
    names = [
        one[1:].partition("}")[0] for one in route.full_template.split("/") if one.startswith("{")
    ]
    params = st.fixed_dictionaries({name: known.get(name, TEXT) | TEXT for name in names})
    query = st.dictionaries(
        st.sampled_from([*sorted(route.query), "fields", "$alt"]), TEXT, max_size=2
    )
    odd = JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20)
    body = odd
    if route.body is not None:
        body = bodies(f"#{route.body}").map(json.dumps).map(str.encode) | odd
    return st.tuples(params, query, st.none() | body)


def path_of(route, params):
    segments = []
    for segment in route.full_template.split("/"):
        name, brace, suffix = segment.removeprefix("{").partition("}")
        segments.append(quote(params[name], safe="") + suffix if brace else segment)
    return "/".join(segments)


@pytest.fixture(scope="module")
def running():
    """Return an emulator that holds one of everything, and what its observer saw."""
    seen = []
    with ComputeEmulator(
        "paper", timings=Timings(latency=0, pending=0, creating=0), observers=[seen.append]
    ) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a")
        secrets = f"/v1/projects/{PROJECT}/secrets"
        rest.call("POST", secrets, {"replication": {"automatic": {}}}, query={"secretId": "bundle"})
        rest.post(f"{secrets}/bundle:addVersion", {"payload": {"data": "AAAA"}})
        network = {"name": "r", "network": "global/networks/default"}
        rest.wait(rest.post("regions/us-central1/routers", network))
        rest.wait(rest.post("regions/us-central1/addresses", {"name": "s"}))
        yield emulator, seen


@pytest.mark.parametrize("route", FUZZED, ids=lambda route: route.method_id)
def test_odd_requests_are_refused_in_googles_words(running, route, discovery):
    emulator, seen = running
    connection = http.client.HTTPConnection(urlsplit(emulator.endpoint).netloc, timeout=60)

    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(requests(route))
    def ask(request):
        params, query, body = request
        url = path_of(route, params) + (f"?{urlencode(query)}" if query else "")
        connection.request(route.verb, url, body=body)
        response = connection.getresponse()
        text = response.read()
        assert response.status < 500, (text, seen[-1].defect)
        if response.status >= 400:
            error = json.loads(text)["error"]
            assert error["code"] == response.status and error["message"] and error["status"]

    try:
        ask()
    finally:
        connection.close()
        # That the requests were wrong is known; that an answer is wrong is not forgiven.
        faults = discovery.take()
    assert not [fault for fault in faults if ": response" in fault or "envelope" in fault]
