"""Methods of IAM v1: what a caller may do with a service account.

Owns: which accounts a project has. They are the default one and every one whose address names the
project; that somebody makes one is not told apart from that nobody did.
Source: https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts.
"""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.errors import not_found
from dask_gce.emulator.routing import Call, Route
from dask_gce.emulator.services.access import granted


def _test(call: Call) -> dict[str, Any]:
    project, address = call.project, call.params["serviceAccount"]
    if address != project.service_account and not address.endswith(
        f"@{project.id}.iam.gserviceaccount.com"
    ):
        raise not_found(f"{project.path}/serviceAccounts/{address}")
    return granted(call)


ROUTES = [
    Route(
        "iam.projects.serviceAccounts.testIamPermissions",
        "POST",
        "v1/projects/{project}/serviceAccounts/{serviceAccount}:testIamPermissions",
        _test,
        body="iam.v1.TestIamPermissionsRequest",
    ),
]
