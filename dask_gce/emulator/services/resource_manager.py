"""Methods of Cloud Resource Manager, v1 and v3: a project, its policy, and what a caller may do.

Sources: https://cloud.google.com/resource-manager/reference/rest/v1/projects and
https://cloud.google.com/resource-manager/reference/rest/v3/projects.
"""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.routing import Call, Route
from dask_gce.emulator.services.access import granted, known_project, project_of, set_policy

#: When every project was made, as the Compute API shows it.
_MADE = "2026-01-01T08:00:00Z"


def _get_v1(call: Call) -> dict[str, Any]:
    project = project_of(call, "resourcemanager.projects.get")
    return {
        "projectNumber": str(project.number),
        "projectId": project.id,
        "lifecycleState": "ACTIVE",
        "name": project.id,
        "createTime": _MADE,
    }


def _get_v3(call: Call) -> dict[str, Any]:
    project = project_of(call, "resourcemanager.projects.get")
    return {
        "name": f"projects/{project.number}",
        "projectId": project.id,
        "state": "ACTIVE",
        "displayName": project.id,
        "createTime": _MADE,
        "etag": f'W/"{project.number:x}"',
    }


def _get_policy(call: Call) -> dict[str, Any]:
    return project_of(call, "resourcemanager.projects.getIamPolicy").policy.show()


def _set_policy(call: Call) -> dict[str, Any]:
    return set_policy(call, project_of(call, "resourcemanager.projects.setIamPolicy").policy)


def _test(call: Call) -> dict[str, Any]:
    # Anybody may ask what he may do, where there is such a project.
    known_project(call, "resourcemanager.projects.get")
    return granted(call)


def _routes(version: str) -> list[Route]:
    one = f"{version}/projects/{{project}}"
    ids, bodies = "cloudresourcemanager.projects", f"cloudresourcemanager.{version}."
    return [
        Route(f"{ids}.get", "GET", one, _get_v1 if version == "v1" else _get_v3),
        Route(
            f"{ids}.getIamPolicy",
            "POST",
            f"{one}:getIamPolicy",
            _get_policy,
            body=f"{bodies}GetIamPolicyRequest",
        ),
        Route(
            f"{ids}.setIamPolicy",
            "POST",
            f"{one}:setIamPolicy",
            _set_policy,
            body=f"{bodies}SetIamPolicyRequest",
        ),
        Route(
            f"{ids}.testIamPermissions",
            "POST",
            f"{one}:testIamPermissions",
            _test,
            body=f"{bodies}TestIamPermissionsRequest",
        ),
    ]


ROUTES = [*_routes("v1"), *_routes("v3")]
