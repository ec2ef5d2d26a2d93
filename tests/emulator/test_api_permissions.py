"""Who may do what: each call of the Compute API, and what Resource Manager says of it."""

from __future__ import annotations

import httplib2
import pytest
from discovery import find_method
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from rest import ACCOUNT, IMAGE, PROJECT, ZONE, ObservedKind, Refused, Rest, instance, properties

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.iam import Permissions, Policy, role_holds
from dask_gce.emulator.methods import ROUTES
from dask_gce.emulator.requirements import requirements
from dask_gce.emulator.routing import Call

INSTANCES = f"zones/{ZONE}/instances"
#: An instance with everything that needs a permission of its own.
FULL = {
    "labels": {"a": "b"},
    "tags": {"items": ["t"]},
    "metadata": {"items": [{"key": "k", "value": "v"}]},
    "minCpuPlatform": "Intel Broadwell",
    "serviceAccounts": [ACCOUNT],
    "networkInterfaces": [
        {"network": "global/networks/default", "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}
    ],
    "disks": [
        {
            "boot": True,
            "autoDelete": True,
            "initializeParams": {"sourceImage": IMAGE, "labels": {"a": "b"}},
        }
    ],
}
#: What it takes to create it.
NEEDED = {
    "compute.disks.create",
    "compute.disks.setLabels",
    "compute.instances.create",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setMinCpuPlatform",
    "compute.instances.setServiceAccount",
    "compute.instances.setTags",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
}


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def refused(rest, verb, path, body=None):
    with pytest.raises(Refused) as caught:
        rest.call(verb, path, body)
    return caught.value


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.method_id)
def test_every_method_of_compute_needs_a_permission(emulator, route):
    if route.service != "compute":
        return
    params = {"project": PROJECT, "zone": ZONE, "region": "us-central1"}
    names = [one.strip("{}") for one in route.template.split("/") if one.startswith("{")]
    call = Call(
        emulator._open_cloud(), route, {name: params.get(name, "x") for name in names}, body={}
    )
    found = requirements(call)
    assert found and all(need.resource.startswith(f"projects/{PROJECT}") for need in found)
    assert found[0].permission.startswith("compute.")
    # Google's permissions have the names of the methods but for a few.
    _, collection, verb = route.method_id.split(".")
    renamed = {
        "aggregatedList": "list",
        "insert": "create",
        "bulkInsert": "create",
        "wait": "get",
        "patch": "update",
    }
    expected = f"compute.{collection}.{renamed.get(verb, verb)}"
    if collection == "imageFamilyViews":
        expected = "compute.images.getFromFamily"
    assert found[0].permission == expected


def test_a_refusal_is_googles(rest):
    rest.emulator.permissions.deny("compute.firewalls.create", project=PROJECT)
    error = refused(rest, "POST", "global/firewalls", {"name": "f"})
    message = (
        "Required 'compute.firewalls.create' permission for"
        f" 'projects/{PROJECT}/global/firewalls/f'"
    )
    assert (error.status, error.message) == (403, message)
    assert error.error["errors"] == [
        {"message": message, "domain": "global", "reason": "forbidden"}
    ]
    assert error.error["status"] == "PERMISSION_DENIED"
    # Elsewhere it is granted.
    path = "/compute/v1/projects/another-project/global/firewalls"
    allowed = {"name": "f", "allowed": [{"IPProtocol": "tcp"}]}
    rest.wait(rest.post(path, allowed))
    rest.wait(rest.delete(f"{path}/f"))
    rest.emulator.permissions.clear()
    rest.wait(rest.post("global/firewalls", allowed))
    rest.emulator.permissions.deny("compute.networks.updatePolicy")
    error = refused(rest, "DELETE", "global/firewalls/f")
    assert error.message.endswith(f"'projects/{PROJECT}/global/networks/default'")


def test_lists_are_asked_of_the_project(rest):
    rest.emulator.permissions.deny("compute.instances.list")
    for path in (INSTANCES, "aggregated/instances"):
        error = refused(rest, "GET", path)
        assert error.message.endswith(f"permission for 'projects/{PROJECT}'")


@pytest.mark.parametrize("bulk", [False, True])
def test_an_insert_names_everything_that_is_missing(rest, bulk):
    rest.emulator.permissions.deny("compute.*", "iam.*")
    kind = "n1-standard-4"
    path, body = INSTANCES, instance(**FULL, machineType=f"zones/{ZONE}/machineTypes/{kind}")
    if bulk:
        full = properties(**FULL, machineType=kind)
        path, body = f"{path}/bulkInsert", {"perInstanceProperties": {"a": {}}}
        body["instanceProperties"] = full
    error = refused(rest, "POST", path, body)
    found = {
        one["message"].split("'")[1]: one["message"].split("'")[3] for one in error.error["errors"]
    }
    assert set(found) == NEEDED
    where = f"projects/{PROJECT}/zones/{ZONE}"
    assert found["compute.instances.create"] == f"{where}/instances/a"
    assert found["compute.subnetworks.use"] == (
        f"projects/{PROJECT}/regions/us-central1/subnetworks/default"
    )
    # Exactly these are enough, beside the account.
    rest.emulator.permissions.allow(*NEEDED)
    error = refused(rest, "POST", path, body)
    account = f"{rest.emulator._open_cloud().project(PROJECT).number}-compute"
    assert (error.status, error.reason) == (400, "badRequest")
    assert error.message.startswith(f"The user does not have access to service account '{account}")
    rest.emulator.permissions.allow("iam.serviceAccounts.actAs")
    rest.emulator.permissions.allow("compute.zoneOperations.get", "compute.instances.delete")
    rest.wait(rest.call("POST", path, body))
    rest.wait(rest.delete(f"{INSTANCES}/a"))


def test_a_plain_insert_needs_less(rest):
    rest.emulator.permissions.deny("*")
    error = refused(rest, "POST", INSTANCES, instance())
    assert {one["message"].split("'")[1] for one in error.error["errors"]} == {
        "compute.instances.create",
        "compute.disks.create",
        "compute.subnetworks.use",
    }


def test_an_image_of_ones_own_needs_a_permission(rest):
    rest.emulator.permissions.deny("compute.images.useReadOnly")
    link = f"projects/{PROJECT}/global/images/own"
    body = instance(disks=[{"boot": True, "initializeParams": {"sourceImage": link}}])
    error = refused(rest, "POST", INSTANCES, body)
    assert error.message == f"Required 'compute.images.useReadOnly' permission for '{link}'"
    # Google's are everybody's.
    rest.emulator.permissions.deny("*")
    assert rest.get("/compute/v1/projects/cos-cloud/global/images/family/cos-stable")


def test_who_writes_metadata_acts_as_the_account(rest):
    rest.insert(name="a", serviceAccounts=[ACCOUNT])
    rest.insert(name="b")
    rest.emulator.permissions.deny("iam.serviceAccounts.actAs")
    body = {"fingerprint": rest.instance("a")["metadata"]["fingerprint"]}
    assert refused(rest, "POST", f"{INSTANCES}/a/setMetadata", body).status == 400
    body = {"fingerprint": rest.instance("b")["metadata"]["fingerprint"]}
    rest.wait(rest.post(f"{INSTANCES}/b/setMetadata", body))
    for name in ("a", "b"):
        rest.wait(rest.delete(f"{INSTANCES}/{name}"))


def test_a_machines_account_may_be_denied_what_the_client_may(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, timings=Timings(latency=0)) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a", serviceAccounts=[ACCOUNT])
        member = f"serviceAccount:{rest.instance('a')['serviceAccounts'][0]['email']}"
        emulator.permissions.deny("compute.instances.delete", member=member)
        headers = {"Authorization": f"Bearer {kind.token('a')}"}
        path = f"/compute/v1/projects/{PROJECT}/{INSTANCES}/a"
        with pytest.raises(Refused) as caught:
            rest.call("DELETE", path, headers=headers)
        assert caught.value.status == 403
        rest.wait(rest.delete(f"{INSTANCES}/a"))


def test_an_account_is_an_editor_of_its_own_project_only(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, timings=Timings(latency=0)) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a", serviceAccounts=[ACCOUNT])
        headers = {"Authorization": f"Bearer {kind.token('a')}"}
        elsewhere = f"/compute/v1/projects/another-project/{INSTANCES}"
        assert rest.raw("GET", elsewhere, headers=headers)[0] == 403
        member = f"serviceAccount:{rest.instance('a')['serviceAccounts'][0]['email']}"
        bindings = [{"role": "roles/compute.viewer", "members": [member]}]
        rest.post("/v1/projects/another-project:setIamPolicy", {"policy": {"bindings": bindings}})
        assert rest.raw("GET", elsewhere, headers=headers)[0] == 200
        assert rest.raw("DELETE", f"{elsewhere}/x", headers=headers)[0] == 403
        images = "/compute/v1/projects/cos-cloud/global/images/family/cos-stable"
        assert rest.raw("GET", images, headers=headers)[0] == 200


# Resource Manager ----------------------------------------------------------------------------


@pytest.fixture
def manager(emulator):
    """Return google-api-python-client's Resource Manager, by version."""
    made = []

    def service(version):
        made.append(
            build(
                "cloudresourcemanager",
                version,
                http=httplib2.Http(),
                client_options={"api_endpoint": f"{emulator.endpoint}/"},
            )
        )
        return made[-1].projects()

    yield service
    for one in made:
        one.close()


@pytest.mark.parametrize(("version", "resource"), [("v1", PROJECT), ("v3", f"projects/{PROJECT}")])
def test_permissions_are_tested(emulator, manager, version, resource):
    asked = ["compute.firewalls.create", "iap.tunnelInstances.accessViaIAP", "iam.roles.get"]
    projects = manager(version)

    def test(permissions):
        request = projects.testIamPermissions(resource=resource, body={"permissions": permissions})
        return request.execute().get("permissions", [])

    assert test(asked) == asked
    emulator.permissions.deny("compute.firewalls.*", "iap.*", project=PROJECT)
    assert test(asked) == asked[2:]
    emulator.permissions.allow("iap.tunnelInstances.accessViaIAP")
    assert test(asked) == asked[1:]
    emulator.permissions.deny("*")
    assert test(asked) == [] == test([])
    for wrong in (["compute.*"], ["nonsense"], [f"a.b.c{number}" for number in range(101)]):
        with pytest.raises(HttpError) as caught:
            test(wrong)
        assert caught.value.status_code == 400


def test_a_machine_is_told_what_its_account_may(discovery):
    kind = ObservedKind()
    asked = ["compute.instances.delete", "secretmanager.versions.access", "iap.x.y"]
    with ComputeEmulator(kind, timings=Timings(latency=0)) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a", serviceAccounts=[ACCOUNT])
        headers = {"Authorization": f"Bearer {kind.token('a')}"}
        path = f"/v1/projects/{PROJECT}:testIamPermissions"
        found = rest.call("POST", path, {"permissions": asked}, headers=headers)
        assert found == {"permissions": asked[:1]}


def test_projects(emulator, manager, rest):
    old = manager("v1").get(projectId=PROJECT).execute()
    new = manager("v3").get(name=f"projects/{PROJECT}").execute()
    assert old["projectId"] == new["projectId"] == PROJECT
    assert new["name"] == f"projects/{old['projectNumber']}"
    assert rest.get("")["id"] == old["projectNumber"]
    # By its number, too.
    assert manager("v3").get(name=new["name"]).execute() == new
    emulator.permissions.deny("resourcemanager.projects.get")
    with pytest.raises(HttpError) as caught:
        manager("v1").get(projectId=PROJECT).execute()
    assert caught.value.status_code == 403


def test_a_projects_policy_is_read_and_written(manager):
    projects = manager("v1")
    policy = projects.getIamPolicy(resource=PROJECT, body={}).execute()
    assert {one["role"] for one in policy["bindings"]} == {"roles/owner", "roles/editor"}
    member = "serviceAccount:sa@my-project.iam.gserviceaccount.com"
    policy["bindings"].append({"role": "roles/compute.viewer", "members": [member]})
    body = {"policy": policy, "updateMask": "bindings,etag"}
    written = projects.setIamPolicy(resource=PROJECT, body=body).execute()
    assert written["bindings"] == policy["bindings"]
    with pytest.raises(HttpError) as caught:
        projects.setIamPolicy(resource=PROJECT, body=body).execute()
    assert caught.value.status_code == 409


def test_a_project_that_is_not_there_is_not_shown(discovery):
    with ComputeEmulator("paper", projects=[PROJECT]) as emulator:
        for path in ("/v1/projects/another-project", "/v3/projects/another-project"):
            error = refused(Rest(emulator), "GET", path)
            assert (error.status, error.error["status"]) == (403, "PERMISSION_DENIED")


# The model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "permission", "holds"),
    [
        ("roles/owner", "secretmanager.versions.access", True),
        ("roles/editor", "compute.instances.delete", True),
        ("roles/editor", "secretmanager.versions.access", False),
        ("roles/editor", "iap.tunnelInstances.accessViaIAP", False),
        ("roles/viewer", "compute.instances.getSerialPortOutput", True),
        ("roles/viewer", "compute.instances.delete", False),
        ("roles/compute.instanceAdmin.v1", "compute.firewalls.create", False),
        ("roles/compute.instanceAdmin.v1", "compute.subnetworks.useExternalIp", True),
        ("roles/compute.instanceAdmin.v1", "compute.firewalls.list", True),
        ("roles/secretmanager.secretAccessor", "secretmanager.versions.access", True),
        ("roles/secretmanager.secretAccessor", "secretmanager.versions.get", False),
        ("roles/nonsense", "compute.instances.get", False),
    ],
)
def test_roles(role, permission, holds):
    assert role_holds(role, permission) is holds


def test_the_last_rule_that_fits_counts():
    permissions = Permissions()
    assert permissions.ruling("a.b.c", "p", "client") is None
    permissions.deny("a.*")
    permissions.allow("a.b.*", member="client")
    permissions.deny("a.b.c", project="p")
    assert permissions.ruling("a.b.c", "p", "client") is False
    assert permissions.ruling("a.b.c", "q", "client") is True
    assert permissions.ruling("a.b.c", "q", "serviceAccount:x@y.z") is False
    for wrong in ((), ("a b",), ("",)):
        with pytest.raises(ValueError, match="permissions"):
            permissions.deny(*wrong)


def test_a_policy_keeps_each_member_once():
    policy = Policy()
    member = "user:me@example.org"
    bindings = [{"role": "roles/viewer", "members": [member, member]}] * 2
    policy.replace({"bindings": bindings})
    assert policy.show()["bindings"] == [{"role": "roles/viewer", "members": [member]}]
    assert policy.grants(member, "compute.instances.get")
    assert not policy.grants("user:you@example.org", "compute.instances.get")
    everybody = Policy({"roles/viewer": ["allUsers"]})
    assert everybody.grants(member, "compute.instances.get")


def test_the_documents_know_methods_with_verbs():
    found = find_method("POST", f"/v1/projects/{PROJECT}:testIamPermissions")
    assert found["id"] == "cloudresourcemanager.projects.testIamPermissions"
