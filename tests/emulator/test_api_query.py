"""Filters, orders, pages and field masks: text in, selection out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest import PROJECT, ZONE, Refused, Rest

from dask_gce.emulator.errors import APIError
from dask_gce.emulator.filters import parse_filter
from dask_gce.emulator.partial import apply_mask, parse_mask

INSTANCE = {
    "name": "dask-3f9a-worker-7c2e",
    "id": "42",
    "status": "RUNNING",
    "labels": {"dask-gce-cluster": "dask-3f9a", "empty": ""},
    "scheduling": {"automaticRestart": False},
    "networkInterfaces": [{"networkIP": "10.128.0.2"}, {"networkIP": "10.128.0.3"}],
    "creationTimestamp": "2026-11-20T10:00:00.000-08:00",
    "operationGroupId": "da562e82-304b-4b0a-a506-fb9d76abfad0",
}


@pytest.mark.parametrize(
    "text",
    [
        "labels.dask-gce-cluster = dask-3f9a",
        "labels.dask-gce-cluster=dask-3f9a",
        'labels.dask-gce-cluster="dask-3f9a"',
        "labels.dask-gce-cluster:*",
        "labels.empty:*",
        "labels:dask-gce-cluster",
        "name:worker",
        "status != STOPPING",
        "scheduling.automaticRestart = false",
        "networkInterfaces.networkIP = 10.128.0.3",
        "id > 5",
        "id <= 42",
        "creationTimestamp > 2026-11-01T00:00:00.000-08:00",
        "creationTimestamp = 2026-11-20T10:00:00.000-08:00",
        "status = RUNNING AND name:worker",
        "(status = RUNNING) (name:worker)",
        "status = RUNNING name:worker",
        "status = STOPPING OR name:worker",
        # OR binds tighter than AND: (a OR b) AND c.
        "(status = STOPPING OR status = RUNNING) AND id = 42",
        "NOT status = STOPPING",
        "-status = STOPPING",
        "-(status = STOPPING OR id = 5)",
        "name eq dask-.*",
        "name eq '.*worker.*'",
        "name ne .*scheduler.*",
        r'operationGroupId eq ".*\bda562e82\-304b\-4b0a\-a506\-fb9d76abfad0\b.*"',
        "labels.absent != x",
    ],
)
def test_a_filter_lets_pass(text):
    assert parse_filter(text)(INSTANCE)


@pytest.mark.parametrize(
    "text",
    [
        "labels.dask-gce-cluster = dask-3f9",
        "labels.absent:*",
        "labels.absent = x",
        "name:scheduler",
        "id > 42",
        "id < 5",
        "status = RUNNING AND name:scheduler",
        "status = STOPPING OR id = 5 AND status = RUNNING",
        "NOT status = RUNNING",
        "-status = RUNNING",
        # A regular expression is about the whole value.
        "name eq dask",
        "name ne dask-.*",
        r'operationGroupId eq ".*\bda562e8\b.*"',
    ],
)
def test_a_filter_holds_back(text):
    assert not parse_filter(text)(INSTANCE)


@pytest.mark.parametrize(
    "text", ["name", "name =", "= x", "(name = x", "name = x)", "name eq (", 'name = "x', "AND"]
)
def test_a_malformed_filter_is_refused(text):
    with pytest.raises(APIError) as caught:
        parse_filter(text)
    assert (caught.value.status, caught.value.reason) == (400, "invalid")


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_a_quoted_value_is_taken_byte_for_byte(value):
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    matches = parse_filter(f'description = "{quoted}"')
    assert matches({"description": value})
    assert not matches({"description": value + "x"})


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ("items(name,id),nextPageToken", {"items": [{"name": "a", "id": "1"}, {"name": "b"}]}),
        ("items/name", {"items": [{"name": "a"}, {"name": "b"}]}),
        (
            "items.name,items.labels.x",
            {"items": [{"name": "a", "labels": {"x": "y"}}, {"name": "b"}]},
        ),
        ("items/labels(x)", {"items": [{"labels": {"x": "y"}}, {}]}),
        ("kind", {"kind": "k"}),
        ("scopes/*/name", {"scopes": {"zones/a": {"name": "n"}}}),
        ("nothing", {}),
    ],
)
def test_a_mask_keeps_what_it_names(mask, kept):
    value = {
        "kind": "k",
        "items": [{"name": "a", "id": "1", "labels": {"x": "y", "z": "w"}}, {"name": "b"}],
        "scopes": {"zones/a": {"name": "n", "warning": {}}},
    }
    assert apply_mask(parse_mask(mask), value) == kept


@pytest.mark.parametrize(
    "mask", ["items(", "items)", "items(name", ",", "items//name", "a,,b", "/a"]
)
def test_a_malformed_mask_is_refused(mask):
    with pytest.raises(APIError) as caught:
        parse_mask(mask)
    assert caught.value.reason == "invalidParameter"


@pytest.fixture
def crowd(emulator):
    """An emulator with the disks d0 ... d6, the odd ones labelled."""
    rest = Rest(emulator)
    for index in range(7):
        body = {"name": f"d{index}", "sizeGb": "10", "labels": {"odd": str(index % 2)}}
        rest.wait(rest.post(f"zones/{ZONE}/disks", body))
    yield rest
    for index in range(7):
        rest.wait(rest.delete(f"zones/{ZONE}/disks/d{index}"))


def pages(rest, path, **query):
    token, found = None, []
    while True:
        page = rest.get(path, **query, **({"pageToken": token} if token else {}))
        found.append([one["name"] for one in page.get("items", [])])
        token = page.get("nextPageToken")
        if token is None:
            return found


def test_lists_filter_order_and_page(crowd):
    path = f"zones/{ZONE}/disks"
    assert pages(crowd, path, maxResults=3) == [["d0", "d1", "d2"], ["d3", "d4", "d5"], ["d6"]]
    assert pages(crowd, path, maxResults=2, filter="labels.odd = 1") == [["d1", "d3"], ["d5"]]
    newest = pages(crowd, path, maxResults=4, orderBy="creationTimestamp desc")
    assert newest == [["d6", "d5", "d4", "d3"], ["d2", "d1", "d0"]]
    assert "items" not in crowd.get(path, filter="name = nobody")


def test_a_page_neither_repeats_nor_skips_when_entries_go(crowd):
    path = f"zones/{ZONE}/disks"
    page = crowd.get(path, maxResults=3)
    crowd.wait(crowd.delete(f"{path}/d1"))
    following = crowd.get(path, maxResults=3, pageToken=page["nextPageToken"])
    assert [one["name"] for one in following["items"]] == ["d3", "d4", "d5"]
    crowd.wait(crowd.post(path, {"name": "d1"}))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"maxResults": 501}, "invalidParameter"),
        ({"maxResults": -1}, "invalidParameter"),
        ({"orderBy": "size"}, "invalid"),
        ({"pageToken": "nonsense!"}, "invalid"),
        ({"filter": "name ="}, "invalid"),
        ({"fields": "items("}, "invalidParameter"),
    ],
)
def test_senseless_list_parameters_are_refused(emulator, query, reason):
    with pytest.raises(Refused) as caught:
        Rest(emulator).get(f"zones/{ZONE}/disks", **query)
    assert (caught.value.status, caught.value.reason) == (400, reason)


def test_aggregated_lists_name_every_zone_and_page_across_them(crowd):
    crowd.wait(crowd.post("zones/europe-west1-b/disks", {"name": "d9"}))
    answer = crowd.get("aggregated/disks")["items"]
    assert [one["name"] for one in answer["zones/europe-west1-b"]["disks"]] == ["d9"]
    assert len(answer[f"zones/{ZONE}"]["disks"]) == 7
    assert answer["zones/us-east1-b"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    first = crowd.get("aggregated/disks", maxResults=2)
    second = crowd.get("aggregated/disks", maxResults=2, pageToken=first["nextPageToken"])
    assert second["items"][f"zones/{ZONE}"]["disks"][0]["name"] == "d1"
    crowd.wait(crowd.delete("zones/europe-west1-b/disks/d9"))


def test_both_forms_of_partial_answers(crowd):
    path = f"zones/{ZONE}/disks"
    expected = {"items": [{"name": f"d{index}"} for index in range(7)]}
    assert crowd.get(path, fields="items/name") == expected
    for mask in ("items.name", "items(name)", "items/name"):
        headers = {"X-Goog-FieldMask": mask}
        full = f"/compute/v1/projects/{PROJECT}/{path}"
        assert crowd.call("GET", full, headers=headers) == expected
