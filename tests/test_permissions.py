"""The table of permissions: that it is well-formed, complete, and not longer than it has to be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from discovery import document

from dask_gce.failures import Place, failure_error
from dask_gce.permissions import FEATURES, advice, feature_of, permissions_of, render_role
from dask_gce.policy import Failure

DOCS = Path(__file__).parents[1] / "docs"

#: The custom roles of the documentation: file, title, description, features.
ROLES = {
    "dask-gce-user.yaml": (
        "dask-gce user",
        "Makes, uses and deletes Dask clusters, with firewall rules of their own.",
        ("clusters", "external-ip", "own-images", "service-account", "firewall", "iap", "check"),
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
    assert (DOCS / "roles" / file).read_text("utf-8") == render_role(*ROLES[file])


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
    command = shlex.split(str(error).rpartition(": ")[2])
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
    words = shlex.split(advice(said, "p").partition(": ")[2])
    assert "p;reboot" in words


def test_a_refusal_for_another_reason_names_the_roles_as_before():
    error = failure_error(Failure(403, "forbidden", "No."), Place("do it", "p"))
    assert "roles/compute.instanceAdmin.v1" in str(error)
