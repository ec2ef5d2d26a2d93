"""What is the same everywhere: projects, zones, machine types, images; and the list of methods."""

from __future__ import annotations

import pytest
from discovery import REQUEST_SCHEMAS, document, find_method, render_digest
from rest import ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.catalog.machine_types import MACHINE_TYPES, resolve
from dask_gce.emulator.catalog.places import REGIONS, ZONES
from dask_gce.emulator.errors import APIError
from dask_gce.emulator.methods import ROUTES
from dask_gce.emulator.schemas import check_body


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.method_id)
def test_every_method_is_googles(route):
    method = find_method(route.verb, route.full_template.replace("{", "").replace("}", ""))
    assert method is not None and method["id"] == route.method_id
    if route.service == "compute":
        assert method["flatPath"] == route.template
    known = {k for k, v in method["parameters"].items() if v["location"] == "query"}
    # The one parameter that only the undated v1 has.
    assert route.query - {"returnPartialSuccess"} <= known
    assert method.get("request", {}).get("$ref") == route.body


def test_the_shipped_digest_is_that_of_the_discovery_document():
    from importlib import resources

    shipped = (
        resources.files("dask_gce.emulator").joinpath("request_schemas.json").read_text("utf-8")
    )
    newer = render_digest(REQUEST_SCHEMAS)
    # Another version of the wheel may know more, so only what this one lacks is wrong.
    if document()["revision"] == "20261106":
        assert shipped == newer
    assert {route.body for route in ROUTES if route.body} == set(REQUEST_SCHEMAS)


@pytest.mark.parametrize(
    ("body", "canonical"),
    [
        ({"canIpForward": "true"}, {"canIpForward": True}),
        ({"canIpForward": False}, {"canIpForward": False}),
        ({"id": 5}, {"id": "5"}),
        ({"name": None}, {}),
        ({"labels": {"a": "b"}}, {"labels": {"a": "b"}}),
        (
            {"guestAccelerators": [{"acceleratorCount": "2"}]},
            {"guestAccelerators": [{"acceleratorCount": 2}]},
        ),
    ],
)
def test_bodies_are_read_as_google_reads_them(body, canonical):
    assert check_body("Instance", body) == canonical


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"nmae": "a"}, 'Unknown name "nmae"'),
        ({"disks": [{"initializeParams": {"x": 1}}]}, "resource.disks\\[0\\].initializeParams"),
        ({"name": 5}, "resource.name"),
        ({"canIpForward": "yes"}, "boolean"),
        ({"disks": {}}, "a list"),
        ({"labels": []}, "an object"),
        ({"labels": {"a": 1}}, "resource.labels.a"),
        ({"scheduling": {"provisioningModel": "CHEAP"}}, "CHEAP"),
        ([], "an object"),
    ],
)
def test_malformed_bodies_are_refused(body, word):
    with pytest.raises(APIError, match=word) as caught:
        check_body("Instance", body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "cpus", "memory"),
    [
        ("e2-standard-4", 4, 16384),
        ("e2-micro", 2, 1024),
        ("n1-standard-1", 1, 3840),
        ("n1-highcpu-16", 16, 14745),
        ("n2d-highmem-96", 96, 786432),
        ("c4-standard-8", 8, 30720),
        ("c3-standard-22", 22, 90112),
        ("t2a-standard-48", 48, 196608),
        ("custom-4-5120", 4, 5120),
        ("n2-custom-8-16384", 8, 16384),
        ("n2-custom-80-655360", 80, 655360),
        ("n1-custom-2-65536-ext", 2, 65536),
        ("e2-custom-micro-1536", 2, 1536),
    ],
)
def test_machine_types_have_their_true_size(name, cpus, memory):
    found = resolve(name)
    assert (found.guest_cpus, found.memory_mb) == (cpus, memory)


@pytest.mark.parametrize(
    "name",
    [
        "n2-custom-3-4096",
        "n2-custom-8-1000",
        "n2-custom-2-999424",
        "e2-custom-2-999424-ext",
        "n2-custom-micro-1024",
        "e2-custom-micro-8192",
    ],
)
def test_impossible_custom_types_are_refused(name):
    with pytest.raises(APIError) as caught:
        resolve(name)
    assert caught.value.reason == "invalid"


def test_unknown_types_and_families_are_not_found():
    assert resolve("e9-standard-4") is None
    assert resolve("c3-custom-4-8192") is None
    assert all(one.guest_cpus > 0 and one.memory_mb > 0 for one in MACHINE_TYPES.values())


def test_zones_and_regions(rest):
    names = [one["name"] for one in rest.get("zones")["items"]]
    assert set(names) == set(ZONES) and names == sorted(names)
    assert rest.get(f"zones/{ZONE}")["region"].endswith("/regions/us-central1")
    region = rest.get("regions/us-central1")
    assert [one[-1] for one in region["zones"]] == list("abcf")
    assert len(rest.get("regions")["items"]) == len(REGIONS)
    with pytest.raises(Refused):
        rest.get("regions/us-nowhere1")


def test_a_region_counts_what_runs_in_it(rest):
    rest.insert()
    quotas = {one["metric"]: one for one in rest.get("regions/us-central1")["quotas"]}
    assert (quotas["CPUS"]["usage"], quotas["INSTANCES"]["usage"]) == (4.0, 1.0)
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def test_quotas_are_gone_from_the_preview_on(rest):
    headers = {"X-Goog-Api-Version": "2026-10-01-preview"}
    assert "quotas" in rest.get("")
    assert "quotas" not in rest.call("GET", "", headers=headers)
    assert "quotas" not in rest.call("GET", "regions/us-central1", headers=headers)


def test_machine_types(rest):
    found = rest.get(f"zones/{ZONE}/machineTypes/n2-custom-8-16384")
    assert (found["guestCpus"], found["memoryMb"]) == (8, 16384)
    gpu = rest.get(f"zones/{ZONE}/machineTypes/g2-standard-24")["accelerators"]
    assert gpu == [{"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": 2}]
    listed = rest.get(f"zones/{ZONE}/machineTypes", filter="guestCpus = 2")["items"]
    assert "e2-standard-2" in {one["name"] for one in listed}
    every = rest.get("aggregated/machineTypes", maxResults=1)["items"]
    assert len(every) == len(ZONES)
    with pytest.raises(Refused) as caught:
        rest.get(f"zones/{ZONE}/machineTypes/e9-standard-4")
    assert caught.value.status == 404


def test_disk_types(rest):
    assert rest.get(f"zones/{ZONE}/diskTypes/pd-ssd")["defaultDiskSizeGb"] == "100"
    assert len(rest.get(f"zones/{ZONE}/diskTypes")["items"]) == 8
    with pytest.raises(Refused):
        rest.get(f"zones/{ZONE}/diskTypes/floppy")


@pytest.mark.parametrize(
    ("project", "family", "architecture"),
    [
        ("cos-cloud", "cos-stable", "X86_64"),
        ("cos-cloud", "cos-arm64-stable", "ARM64"),
        ("debian-cloud", "debian-12", "X86_64"),
        ("debian-cloud", "debian-13", "X86_64"),
        ("ubuntu-os-cloud", "ubuntu-2404-lts-amd64", "X86_64"),
        ("ubuntu-os-cloud", "ubuntu-2404-lts-arm64", "ARM64"),
        ("ubuntu-os-cloud", "ubuntu-minimal-2404-lts-amd64", "X86_64"),
        ("rocky-linux-cloud", "rocky-linux-9", "X86_64"),
        ("deeplearning-platform-release", "common-cu128-ubuntu-2204-nvidia-570", "X86_64"),
    ],
)
def test_images_by_family_view_name_and_list(rest, project, family, architecture):
    base = f"/compute/v1/projects/{project}"
    image = rest.call("GET", f"{base}/global/images/family/{family}")
    assert (image["family"], image["architecture"]) == (family, architecture)
    assert rest.call("GET", f"{base}/global/images/{image['name']}") == image
    view = rest.call("GET", f"{base}/zones/{ZONE}/imageFamilyViews/{family}")
    assert view == {"image": image}
    assert image in rest.call("GET", f"{base}/global/images")["items"]


def test_images_that_do_not_exist(rest):
    for path in ("family/nothing", "nothing"):
        with pytest.raises(Refused) as caught:
            rest.call("GET", f"/compute/v1/projects/cos-cloud/global/images/{path}")
        assert caught.value.status == 404
    assert "items" not in rest.get("global/images")


def test_projects(rest):
    shown = rest.get("")
    assert shown["name"] == "my-project" and shown["id"].isdigit()
    assert shown["defaultServiceAccount"].startswith(shown["id"])
    for bad in ("X", "a", "1234-abc"):
        with pytest.raises(Refused) as caught:
            rest.call("GET", f"/compute/v1/projects/{bad}")
        assert caught.value.status == 400


def test_projects_can_be_a_closed_set(discovery):
    with ComputeEmulator("paper", projects=["my-project"]) as emulator:
        rest = Rest(emulator)
        assert rest.get("")["name"] == "my-project"
        with pytest.raises(Refused) as caught:
            rest.call("GET", "/compute/v1/projects/other-project")
        assert caught.value.status == 404
        # The image projects are Google's and always there.
        assert rest.call("GET", "/compute/v1/projects/cos-cloud/global/images")["items"]
