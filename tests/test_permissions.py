"""The table of permissions: that it is well-formed, complete, and not longer than it has to be."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from clusters import PATIENCE, cluster_on, until, worker_machines
from discovery import document
from fleets import QUICK, WORKER, ZONE
from google.auth.credentials import AnonymousCredentials
from records import compute_of, labels_of

from dask_gce.checks.identity import features_of
from dask_gce.cluster_secrets import ClusterSecrets
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import APIError, GCEError, NotFound
from dask_gce.failures import Place, failure_error
from dask_gce.hardware_fields import Hardware
from dask_gce.instance import build_insert
from dask_gce.permissions import FEATURES, advice, feature_of, permissions_of, render_role
from dask_gce.policy import Failure
from dask_gce.price_list import read_tariff
from dask_gce.reach import own_address
from dask_gce.secret_calls import SecretPlan
from dask_gce.services import Services
from dask_gce.settings import Settings
from dask_gce.startup import Tls

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Wait longer for this computer's address than where there is nothing else to do."""
    monkeypatch.setattr(own_address, "PATIENCE", PATIENCE)


#: The custom roles of the documentation: file, title, description, features.
ROLES = {
    "dask-gce-user.yaml": (
        "dask-gce user",
        "Makes, uses and deletes Dask clusters, with firewall rules of their own.",
        (
            *("clusters", "more-time", "external-ip", "subnetwork", "cpu-platform", "own-images"),
            *("service-account", "firewall", "iap", "advice", "quota", "prices", "check"),
        ),
    ),
    "dask-gce-secrets.yaml": (
        "dask-gce secrets",
        "Keeps the keys of Dask clusters in Secret Manager.",
        ("secret-manager",),
    ),
    "dask-gce-image-builder.yaml": (
        "dask-gce image builder",
        "Makes disk images for Dask clusters, beside the role of a user.",
        ("image-build",),
    ),
    "dask-gce-machine.yaml": (
        "dask-gce machine",
        "For the machines of Dask clusters, which delete themselves.",
        ("delete-self", "artifact-registry", "cloud-logging"),
    ),
    "dask-gce-last-machine.yaml": (
        "dask-gce last machine",
        "For the machines of Dask clusters, which delete what their cluster leaves.",
        ("delete-machines", "delete-rules", "delete-secrets"),
    ),
}


def compute_methods() -> set[str]:
    """Return the IDs of all methods of the Compute API."""
    found = set()

    def look(resources):
        for resource in resources.values():
            found.update(method["id"] for method in resource.get("methods", {}).values())
            look(resource.get("resources", {}))

    look(document()["resources"])
    return found


def test_the_methods_are_googles():
    named = {
        method for feature in FEATURES.values() for need in feature.needs for method in need.methods
    }
    compute = {method for method in named if method.startswith("compute.")}
    assert len(compute) > 20
    assert compute <= compute_methods()


def test_every_need_says_what_is_lost_without_it():
    for feature in FEATURES.values():
        assert len(set(feature.permissions)) == len(feature.permissions) > 0, feature.key
        for need in feature.needs:
            assert re.fullmatch(r"[a-z]+\.[A-Za-z]+\.[A-Za-z]+", need.permission)
            assert need.without.endswith(".") and need.methods, need.permission


@pytest.mark.parametrize("file", ROLES)
def test_the_role_files_are_what_the_table_says(file):
    text = (DOCS / "roles" / file).read_text("utf-8")
    assert text == render_role(*ROLES[file])
    # The fields of https://cloud.google.com/iam/docs/reference/rest/v1/projects.roles.
    role = yaml.safe_load(text)
    assert set(role) == {"title", "description", "stage", "includedPermissions"}
    assert len(role["title"]) <= 100 and len(role["description"]) <= 256
    assert role["includedPermissions"] == list(permissions_of(ROLES[file][2], scope="project"))


def test_every_feature_is_in_a_role_or_granted_on_its_own():
    in_roles = {key for _, _, keys in ROLES.values() for key in keys}
    # actAs belongs on one account, and a secret's readers on that secret.
    assert set(FEATURES) - in_roles == {"act-as", "read-secret"}


def test_no_role_lets_its_holder_act_as_every_account():
    assert all("actAs" not in render_role(*role) for role in ROLES.values())


def test_the_page_shows_the_table():
    page = (DOCS / "permissions.md").read_text("utf-8")
    for feature in FEATURES.values():
        section = page.partition(f"### {feature.title}\n\nUsed by: {feature.when}. ")[2]
        section = section.partition("\n## ")[0].partition("\n### ")[0]
        assert f"`{feature.role}`" in section, feature.key
        rows = [row for row in section.splitlines() if row.startswith("| `")]
        assert rows == [
            f"| `{need.permission}` | {', '.join(f'`{one}`' for one in need.methods)} "
            f"| {need.without} |"
            for need in feature.needs
        ]


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "permission", permissions_of(key for key, one in FEATURES.items() if one.holder == "caller")
)
def test_a_refusal_is_answered_with_the_command_that_grants_the_permission(permission):
    if permission == "iam.serviceAccounts.actAs":
        sentence = "The user does not have access to service account 'a@b.c'. User: 'me@b.c'."
    else:
        sentence = f"Required '{permission}' permission for 'projects/p/zones/z/instances/i'"
    error = failure_error(Failure(403, "forbidden", sentence), Place("do it", "p"))
    feature = feature_of(permission)
    command = shlex.split(str(error).partition("holds: ")[2].splitlines()[0])
    assert permission in str(error)
    assert command[:2] == ["gcloud", "projects" if feature.key != "act-as" else "iam"]
    assert f"--role={feature.role}" in command
    assert ("a@b.c" if feature.key == "act-as" else "p") in command


def test_a_shared_network_is_repaired_in_its_own_project():
    said = (
        "Required 'compute.subnetworks.use' permission for 'projects/host/regions/r/subnetworks/s'"
    )
    assert " add-iam-policy-binding host " in advice(said, "p")


def test_what_google_quotes_stays_one_word():
    said = "Required 'compute.instances.create' permission for 'projects/p;reboot/zones/z'"
    words = shlex.split(advice(said, "p").partition("holds: ")[2])
    assert "p;reboot" in words


def test_several_permissions_are_answered_at_once():
    names = ("compute.instances.create", "compute.firewalls.create", "compute.disks.create")
    said = "; ".join(f"Required '{name}' permission for 'projects/p'" for name in names)
    lines = advice(said, "p").splitlines()
    assert [line.rpartition("--role=")[2].split()[0] for line in lines] == [
        "roles/compute.instanceAdmin.v1",
        "roles/compute.securityAdmin",
    ]
    assert all(name in "".join(lines) for name in names)


def test_a_refusal_for_another_reason_names_the_roles_as_before():
    error = failure_error(Failure(403, "forbidden", "No."), Place("do it", "p"))
    assert "roles/compute.instanceAdmin.v1" in str(error)


# -- with exactly these ---------------------------------------------------------------------------

#: What a machine asks for that has everything.
FULL = replace(
    WORKER,
    tags=("grid-1f3a",),
    labels=labels_of(),
    metadata={"enable-guest-attributes": "TRUE"},
    service_account="default",
    scopes=("https://www.googleapis.com/auth/cloud-platform",),
    machine_type="n2-standard-2",
    hardware=Hardware(min_cpu_platform="Intel Ice Lake"),
)
OF_MACHINES = ("clusters", "external-ip", "cpu-platform", "service-account", "act-as")


async def life_of_machines(compute, endpoint):
    """Make machines, look at them in every way that the package does, and delete them."""
    await compute.get_machine_type(ZONE, "e2-small")
    await compute.get_network("default")
    made = await compute.insert_instance(ZONE, build_insert(FULL))
    await compute.wait_operation(made, 60)
    await compute.get_instance(ZONE, FULL.name)
    await compute.list_instances(ZONE)
    await compute.aggregated_list_instances()
    await compute.get_serial_port_output(ZONE, FULL.name)
    await compute.get_guest_attributes(ZONE, FULL.name, "dask-gce/")
    await compute.list_instance_operations(ZONE, [FULL.name])
    gone = await compute.delete_instance(ZONE, FULL.name)
    await compute.wait_operation(gone, 60)


async def life_with_more_time(compute, endpoint):
    """Lengthen the life of a machine, which the local Compute Engine is told to allow."""
    shown = await compute.get_instance(ZONE, FULL.name)
    labels = {**shown["labels"], "dask-gce-expires": "2000000000"}
    fingerprint = shown["labelFingerprint"]
    begun = await compute.set_instance_labels(ZONE, FULL.name, labels, fingerprint)
    await compute.wait_operation(begun, 60)
    begun = await compute.set_scheduling(ZONE, FULL.name, shown["scheduling"])
    await compute.wait_operation(begun, 60)


RULE = {
    "name": "grid-1f3a-clients",
    "network": "global/networks/default",
    "allowed": [{"IPProtocol": "tcp", "ports": ["8786"]}],
    "sourceRanges": ["203.0.113.7/32"],
    "targetTags": ["grid-1f3a"],
}


async def life_of_rules(compute, endpoint):
    """Make a firewall rule, and delete it."""
    await compute.list_firewalls()
    await compute.wait_operation(await compute.insert_firewall(RULE), 60)
    await compute.wait_operation(await compute.delete_firewall(RULE["name"]), 60)


async def life_of_images(compute, endpoint):
    """Make an image of a disk that is there, and delete it."""
    with contextlib.suppress(APIError):
        await compute.get_image("none")
    body = {
        "name": "ours",
        "sourceDisk": f"projects/{compute.project}/zones/{ZONE}/disks/{FULL.name}",
        "labels": {"dask-gce-image": "x"},
    }
    await compute.wait_operation(await compute.insert_image(body), 60)
    await compute.get_image("ours")
    await compute.list_images()
    await compute.wait_operation(await compute.delete_image("ours"), 60)


async def look_at_subnetwork(compute, endpoint):
    """Look in which network a subnetwork is."""
    await compute.get_subnetwork("us-central1", "default")


async def life_of_secrets(compute, endpoint):
    """Put certificates into Secret Manager, and take them out again."""
    project = await compute.get_project()
    async with Services(
        compute.project, credentials=AnonymousCredentials(), endpoint=endpoint
    ) as services:
        tls = Tls(ca="ca", certificate="certificate", key="key")
        plan = SecretPlan(
            {"scheduler": tls, "worker": tls},
            project["defaultServiceAccount"],
            ["us-central1"],
            {"dask-gce-id": "1f3a"},
            datetime.now(timezone.utc) + timedelta(days=1),
            patience=600,
        )
        keys = ClusterSecrets(services, "grid", "1f3a" * 8)
        try:
            await keys.create(plan)
            await keys.prolong()
        finally:
            await keys.close()
    async with Services(
        compute.project, credentials=AnonymousCredentials(), endpoint=endpoint
    ) as services:
        secrets = f"/v1/projects/{compute.project}/secrets"
        for each in (await services.call("secretmanager", "GET", secrets))["secrets"]:
            path = f"{secrets}/{each['name'].rpartition('/')[2]}"
            await services.call("secretmanager", "DELETE", path)


async def read_prices(compute, endpoint):
    """Read Google's price list."""
    services = Services(compute.project, credentials=AnonymousCredentials(), endpoint=endpoint)
    try:
        await asyncio.to_thread(read_tariff, services)
    finally:
        services.close_now()


async def nothing_before(compute):
    """Leave the project as it is."""


async def make_image(compute):
    """Make an image to boot from."""
    await make_disk(compute)
    body = {"name": "boot", "sourceDisk": f"zones/{ZONE}/disks/{FULL.name}"}
    await compute.wait_operation(await compute.insert_image(body), 60)


async def make_machine(compute):
    """Make a machine."""
    begun = await compute.insert_instance(ZONE, build_insert(FULL))
    await compute.wait_operation(begun, 60)


async def make_disk(compute):
    """Make a disk to make an image of, by way of a machine that goes and leaves it."""
    disk = {"initializeParams": {"sourceImage": FULL.source_image}, "boot": True}
    body = {**build_insert(replace(FULL, overrides={})), "disks": [disk]}
    await compute.wait_operation(await compute.insert_instance(ZONE, body), 60)
    await compute.wait_operation(await compute.delete_instance(ZONE, FULL.name), 60)


async def life_of_own_images(compute, endpoint):
    """Boot from an image of the project."""
    spec = replace(FULL, name="booted", source_image="global/images/boot")
    await compute.wait_operation(await compute.insert_instance(ZONE, build_insert(spec)), 60)
    await compute.get_image("boot")
    with contextlib.suppress(NotFound):
        await compute.get_image_from_family(compute.project, "none")


#: What makes everything ready, what a feature does, and what else that takes.
LIVES = {
    **dict.fromkeys(OF_MACHINES, (nothing_before, life_of_machines, OF_MACHINES)),
    "more-time": (make_machine, life_with_more_time, (*OF_MACHINES, "more-time")),
    "own-images": (make_image, life_of_own_images, (*OF_MACHINES, "own-images")),
    "subnetwork": (nothing_before, look_at_subnetwork, ("subnetwork",)),
    "firewall": (nothing_before, life_of_rules, ("firewall",)),
    "secret-manager": (nothing_before, life_of_secrets, ("secret-manager",)),
    "image-build": (make_disk, life_of_images, ("image-build",)),
    "prices": (nothing_before, read_prices, ("prices",)),
}


@asynccontextmanager
async def allowed(emulator, before, permissions):
    """Return the Compute API for somebody who has these permissions and no others."""
    async with compute_of(emulator) as compute:
        await before(compute)
        emulator.permissions.deny("*")
        if permissions:
            emulator.permissions.allow(*permissions)
        yield compute


@pytest.mark.parametrize("key", LIVES)
async def test_the_permissions_of_a_feature_are_enough(quick, key):
    before, life, keys = LIVES[key]
    async with allowed(quick, before, permissions_of(keys)) as compute:
        await life(compute, quick.endpoint)


@pytest.mark.parametrize(
    ("key", "permission"),
    [(key, name) for key in LIVES for name in FEATURES[key].permissions],
)
async def test_no_permission_of_a_feature_is_too_many(quick, key, permission):
    before, life, keys = LIVES[key]
    rest = set(permissions_of(keys)) - {permission}
    async with allowed(quick, before, rest) as compute:
        with pytest.raises(APIError) as caught:
            await life(compute, quick.endpoint)
    assert caught.value.status in (400, 403)
    # The error has the command that grants it.
    assert permission in str(caught.value)
    assert f"--role={feature_of(permission).role}" in str(caught.value)


@pytest.fixture
def quick(discovery):
    """Return a local Compute Engine whose machines are paper and take milliseconds."""
    with ComputeEmulator("paper", timings=QUICK) as running:
        yield running


def used_by(**settings):
    """Return the features of a cluster."""
    return features_of(Settings.load(**settings), "external")


async def whole_life(emulator, **settings):
    """Make a cluster, scale it up and down, and close it."""
    cluster = cluster_on(emulator, n_workers=1, **settings)
    async with cluster:
        await until(lambda: len(worker_machines(emulator)) == 1)
        cluster.scale(3)
        await until(lambda: len(worker_machines(emulator)) == 3)
        cluster.scale(0)
        await until(lambda: not worker_machines(emulator))
        if settings.get("security"):
            await until(lambda: emulator.requests["compute.instances.setMetadata"])
    await until(lambda: not emulator.instances())


@pytest.mark.parametrize("security", [False, True])
async def test_a_cluster_lives_with_exactly_the_permissions_of_its_features(
    paper_workers, security
):
    paper_workers.permissions.deny("*")
    paper_workers.permissions.allow(*permissions_of(used_by()))
    await whole_life(paper_workers, security=security)
    methods = {
        method for key in used_by() for need in FEATURES[key].needs for method in need.methods
    }
    assert set(paper_workers.requests) <= methods


async def test_a_cluster_lives_without_what_is_optional(paper_workers):
    needs = [need for key in used_by() for need in FEATURES[key].needs]
    optional = {need.permission for need in needs if need.optional}
    assert len(optional) >= 2
    paper_workers.permissions.deny("*")
    paper_workers.permissions.allow(*{need.permission for need in needs} - optional)
    await whole_life(paper_workers)


@pytest.mark.parametrize("permission", ["compute.instances.create", "compute.machineTypes.get"])
async def test_a_cluster_that_is_refused_leaves_nothing(paper_workers, permission):
    paper_workers.permissions.deny(permission)
    with pytest.raises(GCEError) as caught:
        await whole_life(paper_workers)
    assert permission in str(caught.value) and "--role=roles/compute" in str(caught.value)
    await until(lambda: not paper_workers.leftovers())
