"""``dask gce check``: each check fails for its own reason, and what it prints repairs that."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import requests
from clusters import PATIENCE
from command_line import run
from google.auth.credentials import AnonymousCredentials
from scripted_api import Answer, ScriptedAPI, refusal

from dask_gce.checks import examination
from dask_gce.checks.examination import examine
from dask_gce.checks.finding import ok, settle
from dask_gce.checks.identity import check_permissions
from dask_gce.checks.machines import demand
from dask_gce.checks.view import View
from dask_gce.compute import Compute
from dask_gce.emulator import Fault
from dask_gce.errors import GCEError
from dask_gce.placement import MachineShape
from dask_gce.preparation import open_compute, prepare
from dask_gce.quota import Quotas
from dask_gce.reach import own_address
from dask_gce.reach.firewall_needs import Needs
from dask_gce.reach.firewall_rules import Mark, Network
from dask_gce.reach.networks import Survey
from dask_gce.services import Services
from dask_gce.settings import Settings

PROJECT = "local-project"
IAP = {"connect": "iap"}
#: Looking, in the names of methods.
LOOKS = ("get", "list", "getFromFamily", "testIamPermissions", "batchGet")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Wait longer for answers than on a computer that has nothing else to do."""
    monkeypatch.setattr(examination, "SECONDS", PATIENCE)
    monkeypatch.setattr(own_address, "PATIENCE", PATIENCE)


async def checked(emulator, **settings):
    """Run all checks; return what each has found, by its name."""
    endpoint = emulator if isinstance(emulator, str) else emulator.endpoint
    found = (await examine(Settings.load(api_endpoint=endpoint, **settings))).findings
    assert [each.check for each in found][:2] == ["credentials", "project"]
    return {each.check: each for each in found}


def mostly(answers):
    """Return a script of a project that offers machines; answers by what is in their paths."""
    shape = {"name": "e2-standard-4", "guestCpus": 4, "memoryMb": 16384}
    image = {"name": "image", "diskSizeGb": "10"}
    known = {**answers, "/machineTypes/": Answer(shape), "/images/": Answer(image)}

    def answer(request):
        return next((known[part] for part in known if part in request.path), Answer({}))

    return answer


def post(emulator, path, **body):
    """Make something of the Compute API at once."""
    url = f"{emulator.endpoint}/compute/v1/projects/{PROJECT}/{path}"
    with requests.Session() as session:
        session.post(url, json=body, timeout=60).raise_for_status()


@pytest.fixture
def repair(emulator, tmp_path):
    """Return a function that runs printed commands with gcloud itself, against the emulator."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not on this machine")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CLOUDSDK_")}
    environment = {
        **kept,
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{emulator.endpoint}/compute/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SERVICEUSAGE": f"{emulator.endpoint}/",
    }

    async def run_all(*lines):
        for line in lines:
            finished = await asyncio.to_thread(
                subprocess.run,
                ["sh", "-c", line],
                env=environment,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert finished.returncode == 0, f"{line}\n{finished.stderr}"

    return run_all


@pytest.mark.parametrize(
    ("fields", "member"),
    [
        ({"service_account_email": "dask@p.iam.gserviceaccount.com"}, "serviceAccount:dask@p.iam"),
        # Before a metadata server has been asked for a token.
        ({"service_account_email": "default"}, None),
        ({"account": "ada@example.com"}, "user:ada@example.com"),
        ({"account": ""}, None),
    ],
)
async def test_who_asks(fields, member):
    credentials = SimpleNamespace(token=None, **fields)
    with ScriptedAPI(mostly({})) as api:
        settings = Settings.load(api_endpoint=api.endpoint, project="mine")
        anonymous = AnonymousCredentials()
        async with (
            Compute("mine", endpoint=api.endpoint, credentials=anonymous) as compute,
            Services("mine", endpoint=api.endpoint, credentials=anonymous) as services,
        ):
            view = View(settings, compute, services, credentials)
            found = await check_permissions(view, ["firewall"])
    assert (view.member or "").startswith(member or "") and bool(view.member) == bool(member)
    (command,) = found.repair
    assert f"--member={view.member or 'user:YOUR-ADDRESS'}" in shlex.split(command)
    assert ("Write your own address" in found.detail) == (member is None)


# -- all of it ------------------------------------------------------------------------------------


async def test_a_new_project_will_do_and_nothing_is_changed(emulator):
    found = await checked(emulator, n_workers=4)
    assert {each.status for each in found.values()} == {"ok"}, found
    assert {"apis", "permissions", "network", "firewall", "image", "machine-types", "quota"} <= set(
        found
    )
    assert {method.rpartition(".")[2] for method in emulator.requests} <= set(LOOKS)
    assert not any(each.repair for each in found.values())


async def test_nothing_is_asked_twice(emulator):
    await checked(emulator, external_ip=False, service_account="default", n_workers=2)
    once = {
        method: count
        for method, count in emulator.requests.items()
        if count > 1 and method.startswith("compute.")
    }
    assert not once


def test_the_command_prints_each_check_and_ends_well(emulator):
    result = run(emulator, "check", "--n-workers", "2")
    assert result.exit_code == 0, result.output
    assert "ok       network" in result.stdout and "failed" not in result.stdout


def test_the_command_prints_the_repair_and_ends_with_1(emulator):
    result = run(emulator, "check", "--network", "other")
    assert result.exit_code == 1
    line = next(each for each in result.stdout.splitlines() if "$ gcloud" in each)
    assert line.strip().startswith("$ gcloud compute networks create other ")
    assert "failed" in result.stderr


def test_the_same_as_json(emulator):
    result = run(emulator, "check", "--network", "other", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["project"], document["passed"]) == (PROJECT, False)
    (network,) = [each for each in document["checks"] if each["check"] == "network"]
    assert network["status"] == "failed" and len(network["repair"]) == 1


def test_a_setting_that_cannot_be_is_wrong_usage(emulator):
    assert run(emulator, "check", "--n-workers", "-1").exit_code == 2


async def test_a_check_that_gets_no_answer_is_unknown():
    async def never():
        await asyncio.Event().wait()
        return ok("x", "")

    found = await settle("x", never(), 0.01)
    assert (found.status, found.detail) == ("unknown", "There was no answer within 0.01 seconds.")


async def test_a_check_that_fails_itself_is_unknown():
    async def broken():
        raise GCEError("The wire is cut.")

    found = await settle("x", broken(), 60)
    assert found.status == "unknown" and "The wire is cut." in found.detail


# -- who asks -------------------------------------------------------------------------------------


def test_without_credentials_nothing_else_is_looked_at(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    result = run(None, "check", "--project", "my-project")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith("failed   credentials")
    assert result.stdout.splitlines()[1].split() == [
        "$",
        "gcloud",
        "auth",
        "application-default",
        "login",
    ]


async def test_a_project_that_is_not_there():
    with ScriptedAPI(lambda request: refusal(404, "notFound", "The resource was not found")) as api:
        found = await checked(api.endpoint, project="nowhere")
    assert found["project"].status == "failed"
    assert found["project"].repair == ("gcloud projects list",)


async def test_credentials_that_are_not_accepted():
    with ScriptedAPI(lambda request: refusal(401, "authError", "Invalid Credentials")) as api:
        found = await checked(api.endpoint, project="mine")
    assert found["project"].status == "failed"
    assert found["project"].repair == ("gcloud auth application-default login",)


async def test_an_api_that_is_off_is_named_even_by_itself():
    off = refusal(403, "accessNotConfigured", "It has not been used before.")
    with ScriptedAPI(mostly({"/compute/": off, "/v1/": refusal(403, "forbidden", "No.")})) as api:
        found = await checked(api.endpoint, project="mine")
    assert found["project"].status == "ok"
    assert found["apis"].status == "failed"
    assert found["apis"].repair == ("gcloud services enable compute.googleapis.com --project=mine",)


@pytest.mark.gcloud
async def test_apis_that_are_off(emulator, repair):
    emulator.services.disable("iap.googleapis.com", project=PROJECT)
    assert (await checked(emulator))["apis"].status == "ok"
    found = (await checked(emulator, connect="iap"))["apis"]
    assert found.repair == (f"gcloud services enable iap.googleapis.com --project={PROJECT}",)
    await repair(*found.repair)
    assert (await checked(emulator, connect="iap"))["apis"].status == "ok"


async def test_secret_manager_is_looked_at_where_it_is_used(emulator):
    emulator.services.disable("secretmanager.googleapis.com", project=PROJECT)
    emulator.permissions.deny("secretmanager.*")
    settings = {"secrets": "secret-manager", "service_account": "default"}
    assert {each.status for each in (await checked(emulator)).values()} == {"ok"}
    found = await checked(emulator, **settings)
    assert "secretmanager.googleapis.com" in found["apis"].detail
    assert "--role=roles/secretmanager.admin" in found["permissions"].repair[0]
    assert {found["apis"].status, found["permissions"].status} == {"failed"}


async def test_apis_that_may_not_be_looked_at(emulator):
    emulator.permissions.deny("serviceusage.*")
    # Compute Engine tells by itself that it is on.
    assert (await checked(emulator))["apis"].status == "ok"
    found = (await checked(emulator, connect="iap"))["apis"]
    assert found.status == "unknown" and "iap.googleapis.com" in found.detail


# -- permissions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permission", "role", "settings"),
    [
        ("compute.instances.create", "roles/compute.instanceAdmin.v1", {}),
        ("compute.subnetworks.useExternalIp", "roles/compute.instanceAdmin.v1", {}),
        ("compute.firewalls.create", "roles/compute.securityAdmin", {}),
        ("compute.images.useReadOnly", "roles/compute.imageUser", {"source_image": "family/ours"}),
        (
            "iap.tunnelInstances.accessViaIAP",
            "roles/iap.tunnelResourceAccessor",
            {"connect": "iap"},
        ),
    ],
)
async def test_a_permission_that_is_missing(emulator, permission, role, settings):
    emulator.permissions.deny(permission)
    found = (await checked(emulator, **settings))["permissions"]
    assert found.status == "failed" and permission in found.detail
    words = shlex.split(found.repair[0])
    assert words[:4] == ["gcloud", "projects", "add-iam-policy-binding", PROJECT]
    assert f"--role={role}" in words and len(found.repair) == 1
    emulator.permissions.allow(permission)
    assert (await checked(emulator, **settings))["permissions"].status == "ok"


async def test_what_is_not_used_needs_no_permission(emulator):
    emulator.permissions.deny("compute.firewalls.*", "compute.*.useExternalIp", "iap.*")
    settings = {"firewall": False, "external_ip": False, "connect": "internal"}
    found = (await checked(emulator, **settings))["permissions"]
    assert found.status == "ok", found


async def test_what_is_optional_is_mentioned(emulator):
    emulator.permissions.deny("compute.instances.getSerialPortOutput")
    found = (await checked(emulator))["permissions"]
    assert found.status == "ok"
    assert "without compute.instances.getSerialPortOutput: " in found.detail


async def test_a_shared_network_is_asked_for_in_its_own_project(emulator):
    emulator.permissions.deny("compute.*", project="host-project")
    path = "projects/host-project/regions/us-central1/subnetworks/default"
    found = (await checked(emulator, subnetwork=path))["permissions"]
    assert found.status == "failed"
    assert {shlex.split(line)[3] for line in found.repair} == {"host-project"}
    assert "compute.subnetworks.use" in found.detail
    assert "compute.instances.create" not in found.detail


async def test_an_account_that_may_not_be_used(emulator):
    emulator.permissions.deny("iam.serviceAccounts.actAs")
    for account in ("default", f"dask@{PROJECT}.iam.gserviceaccount.com"):
        found = (await checked(emulator, service_account=account))["service-account"]
        assert found.status == "failed"
        words = shlex.split(found.repair[0])
        assert words[:4] == ["gcloud", "iam", "service-accounts", "add-iam-policy-binding"]
        assert "--role=roles/iam.serviceAccountUser" in words
        assert words[4].endswith(account.partition("default")[0] or "gserviceaccount.com")


async def test_an_account_that_is_not_there():
    absent = refusal(404, "notFound", "Unknown service account")
    with ScriptedAPI(mostly({"/serviceAccounts/": absent})) as api:
        account = "dask@other.iam.gserviceaccount.com"
        settings = {"project": "mine", "service_account": account}
        found = (await checked(api.endpoint, **settings))["service-account"]
    assert found.repair == ("gcloud iam service-accounts create dask --project=other",)


async def test_a_project_without_a_default_account():
    with ScriptedAPI(mostly({})) as api:
        settings = {"project": "mine", "service_account": "default"}
        found = (await checked(api.endpoint, **settings))["service-account"]
    assert found.status == "failed"
    assert found.repair == ("gcloud iam service-accounts create dask-machines --project=mine",)


async def test_an_account_that_may_not_be_looked_at_is_unknown():
    denied = refusal(403, "forbidden", "No.")
    with ScriptedAPI(mostly({"/serviceAccounts/": denied})) as api:
        settings = {"project": "mine", "service_account": "a@b.iam.gserviceaccount.com"}
        found = (await checked(api.endpoint, **settings))["service-account"]
    assert found.status == "unknown" and "roles/iam.serviceAccountUser" in found.repair[0]


# -- the network ----------------------------------------------------------------------------------


@pytest.mark.gcloud
async def test_a_network_that_is_not_there(emulator, repair):
    found = (await checked(emulator, network="other"))["network"]
    assert found.status == "failed"
    await repair(*found.repair)
    assert (await checked(emulator, network="other"))["network"].status == "ok"


@pytest.mark.gcloud
async def test_a_subnetwork_that_is_not_there(emulator, repair):
    settings = {"network": "other", "subnetwork": "inner"}
    post(emulator, "global/networks", name="other", autoCreateSubnetworks=False)
    found = (await checked(emulator, **settings))["network"]
    assert found.status == "failed"
    await repair(*found.repair)
    assert (await checked(emulator, **settings))["network"].status == "ok"


async def test_subnetworks_that_are_not_there_get_ranges_that_do_not_overlap(emulator):
    zones = ["us-central1-a", "europe-west1-b", "us-east1-b"]
    settings = {"network": "other", "subnetwork": "inner", "zone": zones}
    post(emulator, "global/networks", name="other", autoCreateSubnetworks=False)
    found = (await checked(emulator, **settings, connect="internal"))["network"]
    assert len(found.repair) == 3
    for line in found.repair:
        words = dict(word.split("=") for word in shlex.split(line) if "=" in word)
        network, addresses = f"global/networks/{words['--network']}", words["--range"]
        path = f"regions/{words['--region']}/subnetworks"
        post(emulator, path, name="inner", network=network, ipCidrRange=addresses)
    assert (await checked(emulator, **settings, connect="internal"))["network"].status == "ok"


async def test_a_custom_network_without_a_chosen_subnetwork(emulator):
    post(emulator, "global/networks", name="other", autoCreateSubnetworks=False)
    found = (await checked(emulator, network="other"))["network"]
    assert found.status == "failed"
    assert "--network=other --region=us-central1" in found.repair[0]
    post(
        emulator,
        "regions/us-central1/subnetworks",
        name="inner",
        network="global/networks/other",
        ipCidrRange="10.1.0.0/20",
    )
    found = (await checked(emulator, network="other"))["network"]
    assert found.status == "failed" and "set subnetwork to inner" in found.detail


async def test_a_network_that_may_not_be_looked_at_is_unknown(emulator):
    emulator.faults.add(
        Fault(
            "compute.networks.get",
            status=403,
            reason="forbidden",
            message="Required 'compute.networks.get' permission for 'projects/local-project'",
        )
    )
    found = (await checked(emulator))["network"]
    assert found.status == "unknown" and "compute.networks.get" in found.detail


# -- the firewall ---------------------------------------------------------------------------------


async def test_the_cluster_will_make_the_rule(emulator):
    found = (await checked(emulator))["firewall"]
    assert found.status == "ok"
    assert "the cluster will make a rule that lets in 127.0.0.1 to the scheduler" in found.detail
    assert "a rule lets in the cluster's machines to one another" in found.detail


@pytest.mark.parametrize(
    "settings",
    [{"network_tags": ["mine"]}, {"connect": "iap"}, {"scheduler_port": 443}],
    ids=["tags", "iap", "ports"],
)
@pytest.mark.gcloud
async def test_rules_that_somebody_else_has_to_make(emulator, repair, settings):
    settings = {"firewall": False, **settings}
    found = (await checked(emulator, **settings))["firewall"]
    assert found.status == "failed"
    await repair(*found.repair)
    tagged = {"network_tags": ["dask-gce"], **settings}
    assert ("set network_tags to [dask-gce]" in found.detail) == ("network_tags" not in settings)
    assert (await checked(emulator, **tagged))["firewall"].status == "ok"


@pytest.mark.gcloud
async def test_a_network_whose_machines_do_not_reach_one_another(emulator, repair):
    settings = {"network": "other", "subnetwork": "inner", "network_tags": ["mine"]}
    settings["firewall"] = False
    post(emulator, "global/networks", name="other", autoCreateSubnetworks=False)
    post(
        emulator,
        "regions/us-central1/subnetworks",
        name="inner",
        network="global/networks/other",
        ipCidrRange="10.1.0.0/20",
    )
    found = (await checked(emulator, **settings))["firewall"]
    assert found.status == "failed" and len(found.repair) == 2
    assert "--source-tags mine --target-tags mine" in found.repair[1]
    assert found.repair[1].startswith("gcloud compute firewall-rules create dask-gce-machines ")
    await repair(*found.repair)
    assert (await checked(emulator, **settings))["firewall"].status == "ok"


async def test_a_rule_that_keeps_everybody_out(emulator):
    post(
        emulator,
        "global/firewalls",
        name="shut",
        priority=10,
        denied=[{"IPProtocol": "tcp", "ports": ["8786"]}],
        sourceRanges=["127.0.0.0/8"],
    )
    found = (await checked(emulator))["firewall"]
    assert (
        found.status == "failed"
        and "rule shut keeps out 127.0.0.1 to the scheduler" in found.detail
    )
    assert shlex.split(found.repair[0])[-2:] == ["shut", f"--project={PROJECT}"]


async def test_a_project_that_has_as_many_rules_as_it_may(emulator):
    emulator.quota.set("global", "FIREWALLS", 4)
    found = (await checked(emulator))["firewall"]
    assert found.status == "failed" and "the quota FIREWALLS leaves 0" in found.detail
    sweep, more = found.repair
    assert sweep == f"dask gce sweep --delete --project {PROJECT}"
    assert "--quota-id=FIREWALLS-per-project --preferred-value=5 --project" in more
    # Who makes none needs none, and what cannot be seen keeps nobody from trying.
    without = (await checked(emulator, firewall=False))["firewall"]
    assert "FIREWALLS" not in without.detail
    emulator.permissions.deny("compute.projects.get")
    assert (await checked(emulator))["firewall"].status == "ok"
    emulator.permissions.clear()
    emulator.quota.set("global", "FIREWALLS", 5)
    assert (await checked(emulator))["firewall"].status == "ok"


@pytest.mark.parametrize("priority", [10, 2000])
async def test_a_cluster_says_so_before_its_first_machine(emulator, caplog, priority):
    denied = [{"IPProtocol": "tcp", "ports": ["8786"]}]
    post(emulator, "global/firewalls", name="shut", priority=priority, denied=denied)
    settings = Settings.load(api_endpoint=emulator.endpoint, security=False)
    before = emulator.requests.copy()
    compute = await open_compute(settings)
    try:
        await prepare(compute, settings, "grid")
    finally:
        await compute.close()
    told = "Firewall rule shut keeps out 127.0.0.1 to the scheduler" in caplog.text
    # A rule that counts after the cluster's own does no harm.
    assert told == (priority < 1000)
    assert (emulator.requests - before)["compute.firewalls.list"] == 1


async def test_nobody_tells_this_computers_address():
    with ScriptedAPI(mostly({"/client-address": Answer(text="who knows")})) as api:
        found = (await checked(api.endpoint, project="mine"))["firewall"]
    assert found.status == "unknown" and "allow_ingress_from" in found.detail


# -- the way out ----------------------------------------------------------------------------------


@pytest.mark.gcloud
async def test_machines_that_do_not_reach_the_internet(emulator, repair):
    settings = {"external_ip": False}
    found = (await checked(emulator, **settings))["internet"]
    assert found.status == "failed" and "there is no Cloud NAT" in found.detail
    await repair(*found.repair)
    found = (await checked(emulator, **settings))["internet"]
    assert found.status == "ok" and "Cloud NAT" in found.detail


async def test_an_image_of_googles_registry_needs_no_internet():
    image = "us-docker.pkg.dev/mine/dask/dask:1"
    settings = {"project": "mine", "external_ip": False, "container_image": image}
    subnetwork = {"name": "default", "network": "global/networks/default"}
    with ScriptedAPI(mostly({"/subnetworks/": Answer(subnetwork)})) as api:
        found = (await checked(api.endpoint, **settings))["internet"]
    assert found.status == "failed"
    assert found.repair == (
        "gcloud compute networks subnets update default --region=us-central1 --project=mine "
        "--enable-private-ip-google-access",
    )
    subnetwork["privateIpGoogleAccess"] = True
    with ScriptedAPI(mostly({"/subnetworks/": Answer(subnetwork)})) as api:
        assert (await checked(api.endpoint, **settings))["internet"].status == "ok"
        for other in ("ghcr.io/dask/dask:latest", "notgcr.io/dask/dask:latest"):
            elsewhere = {**settings, "container_image": other}
            assert (await checked(api.endpoint, **elsewhere))["internet"].status == "failed"
        googles = {**settings, "container_image": "gcr.io/mine/dask:1"}
        assert (await checked(api.endpoint, **googles))["internet"].status == "ok"


@pytest.mark.parametrize(
    ("nat", "status"),
    [
        ({"sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES"}, "ok"),
        ({"sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS", "subnetworks": []}, "failed"),
        (
            {
                "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
                "subnetworks": [{"name": "regions/us-central1/subnetworks/default"}],
            },
            "ok",
        ),
        ({"type": "PRIVATE"}, "failed"),
    ],
)
async def test_which_subnetworks_a_nat_serves(nat, status):
    network = "projects/mine/global/networks/default"
    answers = {
        "/subnetworks/": Answer({"name": "default", "network": network}),
        "/routers": Answer({"items": [{"name": "r", "network": network, "nats": [nat]}]}),
    }
    with ScriptedAPI(mostly(answers)) as api:
        found = (await checked(api.endpoint, project="mine", external_ip=False))["internet"]
    assert found.status == status, found


# -- machines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["family/ours", "global/images/ours", "debian-cloud/debian-99"])
async def test_an_image_that_is_not_there(emulator, image):
    found = (await checked(emulator, source_image=image))["image"]
    assert found.status == "failed"
    project = PROJECT if "ours" in image else "debian-cloud"
    assert f"--project={project}" in shlex.split(found.repair[0])


async def test_an_image_larger_than_the_disk():
    image = Answer({"name": "ours", "diskSizeGb": "50"})
    with ScriptedAPI(mostly({"/images/ours": image})) as api:
        settings = {"project": "mine", "source_image": "global/images/ours"}
        found = (await checked(api.endpoint, **settings))["image"]
    assert found.status == "failed" and "50 GB" in found.detail


async def test_an_image_for_other_processors():
    image = Answer({"name": "ours", "architecture": "ARM64"})
    with ScriptedAPI(mostly({"/images/ours": image})) as api:
        settings = {"project": "mine", "source_image": "global/images/ours"}
        found = (await checked(api.endpoint, **settings))["image"]
    assert found.status == "failed" and "ARM64" in found.detail


async def test_a_machine_type_that_no_zone_offers(emulator):
    found = await checked(emulator, machine_type="e2-standard-99")
    assert found["machine-types"].status == "failed"
    assert "--filter=name=(e2-standard-99)" in shlex.split(found["machine-types"].repair[0])
    assert found["quota"].status == "unknown"


async def test_workers_that_do_not_fit(emulator):
    found = (await checked(emulator, memory_limit="100GiB"))["machine-types"]
    assert found.status == "failed" and "memory_limit" in found.detail


async def test_a_quota_that_is_too_small(emulator):
    emulator.quota.set("us-central1", "CPUS", 20)
    emulator.quota.set("global", "CPUS_ALL_REGIONS", 30)
    assert (await checked(emulator, n_workers=4))["quota"].status == "ok"
    found = (await checked(emulator, n_workers=9))["quota"]
    assert found.status == "failed"
    assert "CPUS leaves 20, and 40 are needed" in found.detail
    regional, everywhere = (shlex.split(line) for line in found.repair)
    assert {"--quota-id=CPUS-per-project-region", "--preferred-value=40"} <= set(regional)
    assert "--dimensions=region=us-central1" in regional
    assert "--quota-id=CPUS-ALL-REGIONS-per-project" in everywhere


def test_what_a_cluster_counts():
    def amounts(machine_type, cpus, **settings):
        shape = MachineShape(machine_type, cpus, 2**34)
        loaded = Settings.load(machine_type=machine_type, n_workers=3, **settings)
        return demand(loaded, 4, {"scheduler": shape, "worker": shape})

    assert amounts("n2-standard-8", 8)["N2_CPUS"] == 32
    assert "IN_USE_ADDRESSES" not in amounts("e2-standard-4", 4, external_ip=False)
    spot = {"scheduling": {"provisioningModel": "SPOT"}}
    assert amounts("e2-standard-4", 4, instance_overrides=spot)["PREEMPTIBLE_CPUS"] == 16
    mixed = amounts("e2-standard-4", 4, spot=True, min_on_demand=1)
    assert (mixed["CPUS"], mixed["PREEMPTIBLE_CPUS"]) == (8, 8)
    shape = MachineShape("n2-standard-8", 8, 2**34)
    spot = Settings.load(machine_type="n2-standard-8", n_workers=3, spot=True)
    shapes = {"scheduler": shape, "worker": shape}
    for limit, metric in ((0.0, "N2_CPUS"), (8.0, "PREEMPTIBLE_CPUS")):
        quotas = Quotas("us-central1", {"PREEMPTIBLE_CPUS": (limit, 0.0)})
        assert demand(spot, 4, shapes, quotas)[metric] == (24 if limit else 32)
    assert amounts("e2-standard-4", 4, boot_disk_type="pd-ssd")["SSD_TOTAL_GB"] == 120
    gpus = amounts("n1-standard-4", 4, worker_accelerator_type="nvidia-tesla-t4")
    assert (gpus["NVIDIA_T4_GPUS"], gpus["GPUS_ALL_REGIONS"]) == (3, 3)


async def test_quotas_that_compute_engine_does_not_show():
    with ScriptedAPI(mostly({})) as api:
        found = (await checked(api.endpoint, project="mine"))["quota"]
    assert found.status == "unknown" and "quotas info list" in found.repair[0]


@pytest.mark.parametrize(
    ("fields", "status", "command"),
    [
        ({"count": "5", "inUseCount": "1"}, "ok", ""),
        ({"count": "5", "inUseCount": "3"}, "failed", "--vm-count=7"),
        ({"count": "5", "instanceProperties": {"machineType": "n2-standard-4"}}, "failed", ""),
        ({}, "failed", "gcloud compute reservations create ours"),
    ],
)
async def test_a_reservation(fields, status, command):
    there = Answer({"specificReservation": fields})
    absent = refusal(404, "notFound", "It was not found.")
    with ScriptedAPI(mostly({"/reservations/": there if fields else absent})) as api:
        settings = {"project": "mine", "reservation": "ours", "n_workers": 4}
        found = (await checked(api.endpoint, **settings))["reservation"]
    assert found.status == status, found
    assert command in " ".join(found.repair)


async def test_a_reservation_whose_numbers_are_not_told(emulator):
    assert (await checked(emulator, reservation="ours"))["reservation"].status == "failed"
    emulator.reservations.add("ours")
    assert (await checked(emulator, reservation="ours"))["reservation"].status == "ok"


async def test_rules_that_may_not_be_looked_at(emulator):
    emulator.permissions.deny("compute.firewalls.list", "compute.networks.get")
    found = (await checked(emulator))["firewall"]
    assert found.status == "unknown" and "compute.firewalls.list" in found.detail


def test_addresses_of_both_versions_take_a_command_each():
    network = Network("mine", "default")
    clients = ("203.0.113.7/32", "2001:db8::/32")
    needs = Needs(Settings.load(), "mine", Mark("grid", "1f3a"), Survey(network, ()), clients)
    names = [shlex.split(needs.lasting_command(need, network))[4] for need in needs]
    assert names == ["dask-gce-clients", "dask-gce-clients-v6", "dask-gce-machines"]
