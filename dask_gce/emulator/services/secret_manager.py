"""Methods of Secret Manager v1, for secrets that are replicated and not bound to a location.

Owns: the requests, and who may make them: by the project's roles or those of the secret's own
policy. What a secret keeps is told by `secrets`.
Source: https://cloud.google.com/secret-manager/docs/reference/rest.
"""

from __future__ import annotations

import re
from typing import Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.cloud import Project
from dask_gce.emulator.errors import APIError, already_exists, bad_request
from dask_gce.emulator.filters import parse_filter
from dask_gce.emulator.iam import Policy
from dask_gce.emulator.routing import Call, Route
from dask_gce.emulator.services.access import (
    LIST,
    POLICY,
    demand,
    granted,
    known_project,
    page,
    project_of,
    set_policy,
)
from dask_gce.emulator.services.secrets import Secret, Version, check_etag

_SECRET_ID = re.compile(r"[a-zA-Z0-9_-]{1,255}")
_VERSION_ID = re.compile(r"[1-9][0-9]{0,9}|latest")

#: The fields of a secret that are kept here.
_FIELDS = frozenset({"annotations", "expireTime", "labels", "replication", "ttl"})
#: Those that a client may send back as it got them.
_OUTPUT = frozenset({"createTime", "etag", "name"})
#: Those that can be changed.
_CHANGING = frozenset({"annotations", "expireTime", "labels", "ttl"})


def _secrets(project: Project) -> dict[str, Secret]:
    """Return the secrets of a project that have not expired."""
    for name in [name for name, secret in project.secrets.items() if secret.expired]:
        del project.secrets[name]
    return project.secrets


def _missing(what: str, name: str) -> APIError:
    return APIError(404, "notFound", f"{what} [{name}] not found.")


def _find(call: Call, permission: str) -> Secret:
    """Return the secret of a request, if whoever asks has a permission there."""
    name, version = call.params["secret"], call.params.get("version")
    project = known_project(call, permission)
    path = f"projects/{call.params['project']}/secrets/{name}"
    found = _secrets(project).get(name)
    policies: list[Policy] = [found.policy] if found else []
    # Before anything else, so that nobody learns which secrets there are.
    demand(call, permission, f"{path}/versions/{version}" if version else path, *policies)
    if not _SECRET_ID.fullmatch(name):
        raise bad_request(
            f"The provided Secret ID [{name}] does not match the expected format"
            " [[a-zA-Z_0-9-]{1,255}]"
        )
    if found is None:
        raise _missing("Secret", f"projects/{project.number}/secrets/{name}")
    return found


def _find_version(call: Call, permission: str) -> Version:
    secret, text = _find(call, permission), call.params["version"]
    if not _VERSION_ID.fullmatch(text):
        raise bad_request(f"The provided version [{text}] is neither a number nor 'latest'.")
    index = len(secret.versions) if text == "latest" else int(text)
    if not 1 <= index <= len(secret.versions):
        if text == "latest":
            raise APIError(404, "notFound", f"Secret [{secret.name}] not found or has no versions.")
        raise _missing("Secret Version", f"{secret.name}/versions/{text}")
    return secret.versions[index - 1]


def _create(call: Call) -> dict[str, Any]:
    project = project_of(call, "secretmanager.secrets.create")
    name = call.query.get("secretId", "")
    if not _SECRET_ID.fullmatch(name):
        raise bad_request(
            f"The provided Secret ID [{name}] does not match the expected format"
            " [[a-zA-Z_0-9-]{1,255}]"
        )
    unknown = sorted(set(call.body) - _FIELDS - _OUTPUT)
    if unknown:
        raise bad_request(f"The local Secret Manager does not keep Secret.{unknown[0]}.")
    check_labels(call.body.get("labels", {}), "secret.labels")
    made = Secret(
        f"projects/{project.number}/secrets/{name}",
        call.body,
        call.cloud.timings.run_duration_scale,
    )
    if name in _secrets(project):
        raise already_exists(made.name)
    project.secrets[name] = made
    return made.show()


def _get(call: Call) -> dict[str, Any]:
    return _find(call, "secretmanager.secrets.get").show()


def _list(call: Call) -> dict[str, Any]:
    project = project_of(call, "secretmanager.secrets.list")
    text = call.query.get("filter", "").strip()
    passes = parse_filter(text) if text else None
    shown = [secret.show() for secret in _secrets(project).values()]
    passing = [one for one in shown if passes is None or passes(one)]
    found, following = page(
        call,
        [(f"{one['createTime']} {one['name']}", one) for one in passing],
        largest=25_000,
        newest=True,
    )
    # Proto3 leaves out what is empty.
    return ({"secrets": found, "totalSize": len(passing)} if passing else {}) | following


def _patch(call: Call) -> dict[str, Any]:
    secret = _find(call, "secretmanager.secrets.update")
    check_etag(call.body.get("etag", ""), secret.etag)
    # JSON writes a mask in camel case, and Google reads the words of protobuf too.
    mask = call.query.get("updateMask", "").replace("expire_time", "expireTime")
    fields = {each.strip() for each in mask.split(",")} - {""}
    if not fields:
        raise bad_request("The update mask must name the fields to change.")
    if fields - _CHANGING:
        raise bad_request(
            f"The local Secret Manager does not change Secret.{min(fields - _CHANGING)}."
        )
    if "labels" in fields:
        check_labels(call.body.get("labels", {}), "secret.labels")
    secret.change(call.body, fields, call.cloud.timings.run_duration_scale)
    return secret.show()


def _delete(call: Call) -> dict[str, Any]:
    secret = _find(call, "secretmanager.secrets.delete")
    check_etag(call.query.get("etag", ""), secret.etag)
    del call.project.secrets[call.params["secret"]]
    return {}


def _add_version(call: Call) -> dict[str, Any]:
    secret = _find(call, "secretmanager.versions.add")
    return secret.add(call.body.get("payload", {})).show()


def _access(call: Call) -> dict[str, Any]:
    return _find_version(call, "secretmanager.versions.access").access()


def _get_version(call: Call) -> dict[str, Any]:
    return _find_version(call, "secretmanager.versions.get").show()


def _list_versions(call: Call) -> dict[str, Any]:
    secret = _find(call, "secretmanager.versions.list")
    text = call.query.get("filter", "").strip()
    passes = parse_filter(text) if text else None
    shown = [(f"{index:010}", version.show()) for index, version in enumerate(secret.versions)]
    passing = [one for one in shown if passes is None or passes(one[1])]
    found, following = page(call, passing, largest=25_000, newest=True)
    return ({"versions": found, "totalSize": len(passing)} if passing else {}) | following


def _turn(call: Call, verb: str, state: str) -> dict[str, Any]:
    version = _find_version(call, f"secretmanager.versions.{verb}")
    check_etag(call.body.get("etag", ""), version.etag)
    version.turn(state)
    return version.show()


def _destroy(call: Call) -> dict[str, Any]:
    return _turn(call, "destroy", "DESTROYED")


def _disable(call: Call) -> dict[str, Any]:
    return _turn(call, "disable", "DISABLED")


def _enable(call: Call) -> dict[str, Any]:
    return _turn(call, "enable", "ENABLED")


def _get_policy(call: Call) -> dict[str, Any]:
    return _find(call, "secretmanager.secrets.getIamPolicy").policy.show()


def _set_policy(call: Call) -> dict[str, Any]:
    return set_policy(call, _find(call, "secretmanager.secrets.setIamPolicy").policy)


def _test(call: Call) -> dict[str, Any]:
    project = known_project(call, "secretmanager.secrets.get")
    found = _secrets(project).get(call.params["secret"])
    return granted(call, *([found.policy] if found else ()))


_ALL = "v1/projects/{project}/secrets"
_ONE = f"{_ALL}/{{secret}}"
_VERSIONS = f"{_ONE}/versions"
_VERSION = f"{_VERSIONS}/{{version}}"
_IDS = "secretmanager.projects.secrets"
_BODIES = "secretmanager.v1."

ROUTES = [
    Route(f"{_IDS}.create", "POST", _ALL, _create, frozenset({"secretId"}), f"{_BODIES}Secret"),
    Route(f"{_IDS}.get", "GET", _ONE, _get),
    Route(f"{_IDS}.list", "GET", _ALL, _list, LIST),
    Route(f"{_IDS}.patch", "PATCH", _ONE, _patch, frozenset({"updateMask"}), f"{_BODIES}Secret"),
    Route(f"{_IDS}.delete", "DELETE", _ONE, _delete, frozenset({"etag"})),
    Route(
        f"{_IDS}.addVersion",
        "POST",
        f"{_ONE}:addVersion",
        _add_version,
        body=f"{_BODIES}AddSecretVersionRequest",
    ),
    Route(f"{_IDS}.getIamPolicy", "GET", f"{_ONE}:getIamPolicy", _get_policy, POLICY),
    Route(
        f"{_IDS}.setIamPolicy",
        "POST",
        f"{_ONE}:setIamPolicy",
        _set_policy,
        body=f"{_BODIES}SetIamPolicyRequest",
    ),
    Route(
        f"{_IDS}.testIamPermissions",
        "POST",
        f"{_ONE}:testIamPermissions",
        _test,
        body=f"{_BODIES}TestIamPermissionsRequest",
    ),
    Route(f"{_IDS}.versions.access", "GET", f"{_VERSION}:access", _access),
    Route(f"{_IDS}.versions.get", "GET", _VERSION, _get_version),
    Route(f"{_IDS}.versions.list", "GET", _VERSIONS, _list_versions, LIST),
    Route(
        f"{_IDS}.versions.destroy",
        "POST",
        f"{_VERSION}:destroy",
        _destroy,
        body=f"{_BODIES}DestroySecretVersionRequest",
    ),
    Route(
        f"{_IDS}.versions.disable",
        "POST",
        f"{_VERSION}:disable",
        _disable,
        body=f"{_BODIES}DisableSecretVersionRequest",
    ),
    Route(
        f"{_IDS}.versions.enable",
        "POST",
        f"{_VERSION}:enable",
        _enable,
        body=f"{_BODIES}EnableSecretVersionRequest",
    ),
]
