"""Whether the caller may do what a cluster does: project, APIs, permissions, service account."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View, project_of
from dask_gce.errors import APIError, CredentialsError, GCEError, NotFound, PermissionDenied
from dask_gce.images import architecture_of
from dask_gce.obtainability import wants_advice
from dask_gce.permissions import (
    FEATURES,
    UNKNOWN_MEMBER,
    enable_command,
    grant_command,
    permissions_of,
)
from dask_gce.settings import Settings

__all__ = [
    "check_apis",
    "check_permissions",
    "check_project",
    "check_service_account",
    "features_of",
]

_LOGIN: Final = "gcloud auth application-default login"


def features_of(settings: Settings, route: str) -> tuple[str, ...]:
    """Return which of the package's features a cluster uses.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    route : {"internal", "external", "iap"}
        Which way the client reaches the scheduler.

    Returns
    -------
    tuple of str
        Names of features in `permissions`.
    """
    used = {
        "clusters": True,
        "external-ip": settings.external_ip,
        "subnetwork": settings.subnetwork is not None,
        "cpu-platform": settings.min_cpu_platform is not None,
        "own-images": architecture_of(settings.source_image) is None,
        "service-account": settings.service_account is not None,
        "firewall": settings.firewall,
        "iap": route == "iap",
        "advice": wants_advice(settings),
        "quota": True,
        "prices": settings.live_prices,
        # Without certificates there is nothing to keep.
        "secret-manager": settings.secrets == "secret-manager" and settings.security is not False,
    }
    return tuple(key for key, is_used in used.items() if is_used)


async def check_project(view: View) -> Finding:
    """Look whether the project exists, and whether the credentials are good for it.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    try:
        found = await view.get_project()
    except NotFound:
        return failed(
            "project",
            f"There is no project {view.project!r} that you may see. Set one that the command "
            "lists.",
            "gcloud projects list",
        )
    except CredentialsError as error:
        return failed("project", str(error), _LOGIN)
    except PermissionDenied as error:
        if error.status == 401:
            return failed("project", f"The credentials are not accepted: {error}", _LOGIN)
        if error.reason in ("accessNotConfigured", "SERVICE_DISABLED"):
            # It answers, so it is there; what is missing, the check of the APIs says.
            return ok("project", view.project)
        raise
    return ok("project", str(found.get("name", view.project)))


async def check_apis(view: View, features: Sequence[str]) -> Finding:
    """Look whether the APIs are enabled that the features take.

    Parameters
    ----------
    view : View
        The project.
    features : sequence of str
        Names of features.

    Returns
    -------
    Finding
        What was found.
    """
    # A cluster does without what is optional.
    needed = [FEATURES[k] for k in features if not all(n.optional for n in FEATURES[k].needs)]
    services = list(dict.fromkeys(feature.service for feature in needed))
    states: dict[str, str] = {}
    reason: GCEError | None = None
    try:
        for service in services:
            answer = await view.services.call(
                "serviceusage",
                "GET",
                f"/v1/projects/{view.project}/services/{service}",
                action=f"look whether {service} is enabled",
            )
            states[service] = str(answer.get("state", ""))
    except GCEError as error:
        reason = error
    compute = FEATURES["clusters"].service
    if states.get(compute) is None:
        # It tells by itself, to whoever may not ask Service Usage.
        try:
            await view.get_project()
            states[compute] = "ENABLED"
        except PermissionDenied as error:
            if error.reason in ("accessNotConfigured", "SERVICE_DISABLED"):
                states[compute] = "DISABLED"
    disabled = [service for service in services if states.get(service) == "DISABLED"]
    if disabled:
        return failed(
            "apis",
            f"Not enabled: {', '.join(disabled)}.",
            enable_command(disabled, view.project),
        )
    unseen = [service for service in services if service not in states]
    if unseen:
        return unknown(
            "apis",
            f"Whether these are enabled may not be looked at: {', '.join(unseen)}. {reason or ''}",
            shlex.join(["gcloud", "services", "list", f"--project={view.project}"]),
        )
    return ok("apis", f"enabled: {', '.join(services)}")


async def check_permissions(view: View, features: Sequence[str]) -> Finding:
    """Look whether the caller has the permissions that the features take.

    Parameters
    ----------
    view : View
        The project.
    features : sequence of str
        Names of features.

    Returns
    -------
    Finding
        What was found.
    """
    missing: dict[str, set[str]] = {}
    tested = 0
    for project, permissions in _by_project(view, features).items():
        held = await view.test_permissions(project, permissions)
        tested += len(permissions)
        if lacking := set(permissions) - held:
            missing[project] = lacking
    needs = {need.permission: need for key in features for need in FEATURES[key].needs}
    required = {
        (project, permission)
        for project, lacking in missing.items()
        for permission in lacking
        if not needs[permission].optional
    }
    fewer = sorted(
        {
            f"without {permission}: {needs[permission].without}"
            for lacking in missing.values()
            for permission in lacking
            if needs[permission].optional
        }
    )
    if not required:
        return ok("permissions", "; ".join([f"all {tested} that are needed", *fewer]))
    repair = []
    for project, permission in sorted(required):
        feature = next(FEATURES[key] for key in features if permission in FEATURES[key].permissions)
        repair.append(grant_command(feature, project, member=view.member))
    return failed(
        "permissions",
        f"Missing: {', '.join(sorted({name for _, name in required}))}."
        + _who(view)
        + " An owner of the project grants them.",
        *repair,
    )


def _who(view: View) -> str:
    return "" if view.member else f" Write your own address for {UNKNOWN_MEMBER}."


def _by_project(view: View, features: Sequence[str]) -> Mapping[str, list[str]]:
    """Return which permissions are needed in which project."""
    elsewhere = {
        "own-images": project_of(view.settings.source_image),
        # Rules belong to the network, and a Shared VPC's to its host.
        "firewall": view.network_project,
        "external-ip": view.network_project,
        "subnetwork": view.network_project,
    }
    found: dict[str, list[str]] = {}
    for key in features:
        for permission in permissions_of([key], scope="project"):
            project = elsewhere.get(key) or view.project
            if permission == "compute.subnetworks.use":
                project = view.network_project
            held = found.setdefault(project, [])
            if permission not in held:
                held.append(permission)
    return found


async def check_service_account(view: View) -> Finding:
    """Look whether the account of the machines exists and the caller may use it.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    account = view.settings.service_account or ""
    if account == "default":
        account = str((await view.get_project()).get("defaultServiceAccount") or "")
        if not account:
            return failed(
                "service-account",
                f"Project {view.project} has no default service account. Make one, and set "
                "service_account to its address.",
                shlex.join(
                    [
                        *("gcloud", "iam", "service-accounts", "create", "dask-machines"),
                        f"--project={view.project}",
                    ]
                ),
            )
    (permission,) = FEATURES["act-as"].permissions
    if permission in await view.test_permissions(view.project, [permission]):
        return ok("service-account", f"you may use every account of the project, {account} too")
    owner = _owner(account) or view.project
    grant = grant_command(FEATURES["act-as"], owner, member=view.member, account=account)
    try:
        answer = await view.services.call(
            "iam",
            "POST",
            f"/v1/projects/{owner}/serviceAccounts/{account}:testIamPermissions",
            body={"permissions": [permission]},
            action=f"test permissions on {account}",
        )
    except NotFound:
        return failed(
            "service-account",
            f"There is no service account {account}.",
            shlex.join(
                [
                    *("gcloud", "iam", "service-accounts", "create", account.partition("@")[0]),
                    f"--project={owner}",
                ]
            ),
        )
    except APIError as error:
        return unknown(
            "service-account",
            f"You may not use every account of the project; whether you may use {account} could "
            f"not be looked at: {error}",
            grant,
        )
    if permission in (answer.get("permissions") or ()):
        return ok("service-account", f"you may use {account}")
    return failed(
        "service-account",
        f"You may not use {account}: {permission} is missing.{_who(view)}",
        grant,
    )


def _owner(account: str) -> str | None:
    """Return the project that an address names."""
    host = account.partition("@")[2]
    project = host.removesuffix(".iam.gserviceaccount.com")
    return project if project != host else None
