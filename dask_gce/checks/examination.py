"""All checks of one project at once.

Owns which of them a cluster's settings call for, their order, and how long they may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dask_gce.checks.finding import Finding, failed, ok, settle
from dask_gce.checks.firewall import check_firewall
from dask_gce.checks.identity import (
    check_apis,
    check_permissions,
    check_project,
    check_service_account,
    features_of,
)
from dask_gce.checks.machines import (
    check_boot_image,
    check_machine_types,
    check_quota,
    check_reservation,
)
from dask_gce.checks.network import check_internet, check_network
from dask_gce.checks.view import View
from dask_gce.compute import Compute
from dask_gce.credentials import discover_project, load_credentials
from dask_gce.errors import CredentialsError
from dask_gce.services import Services
from dask_gce.settings import Settings

__all__ = ["SECONDS", "Examination", "examine"]

#: Seconds that a check may take.
SECONDS: Final = 30.0

Check = Callable[[], Awaitable[Finding]]


@dataclass(frozen=True)
class Examination:
    """What all checks have found.

    Parameters
    ----------
    project : str or None
        The project; None if none was found.
    findings : tuple of Finding
        What each check has found, in the order in which they build on one another.
    """

    project: str | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no check has failed; what is unknown may be well."""
        return all(finding.status != "failed" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON data.

        Returns
        -------
        dict
            The project and the findings.
        """
        return {
            "project": self.project,
            "passed": self.passed,
            "checks": [finding.to_json() for finding in self.findings],
        }


async def examine(settings: Settings, *, seconds: float | None = None) -> Examination:
    """Look at all that a cluster with these settings takes, and change nothing.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    seconds : float or None
        How long each check may take; None for half a minute.

    Returns
    -------
    Examination
        What was found.
    """
    seconds = SECONDS if seconds is None else seconds
    try:
        credentials = await asyncio.to_thread(load_credentials, settings)
    except CredentialsError as error:
        login = "gcloud auth application-default login"
        return Examination(settings.project, (failed("credentials", str(error), login),))
    kind = f"{type(credentials).__module__}.{type(credentials).__qualname__}"
    first = ok(
        "credentials", "none are needed for a local Compute Engine" if settings.is_local else kind
    )
    try:
        project = await asyncio.to_thread(discover_project, settings)
    except CredentialsError as error:
        return Examination(
            None,
            (first, failed("project", str(error), "gcloud config set project PROJECT")),
        )
    compute = Compute(
        project,
        endpoint=settings.api_endpoint,
        credentials=credentials,
        threads=settings.api_connections,
        rate=settings.api_rate,
        call_timeout=seconds,
    )
    services = Services(
        project, credentials=credentials, endpoint=settings.api_endpoint, call_timeout=seconds
    )
    view = View(settings, compute, services, credentials)
    try:
        findings = await _run(_checks(view), seconds)
    finally:
        await view.close()
        await services.close()
        await compute.close()
    if view.member is not None:
        first = ok("credentials", view.member)
    return Examination(project, (first, *findings))


async def _run(checks: Mapping[str, Check], seconds: float) -> Sequence[Finding]:
    return await asyncio.gather(*(settle(name, check(), seconds) for name, check in checks.items()))


def _checks(view: View) -> dict[str, Check]:
    settings = view.settings
    checks: dict[str, Check] = {
        "project": lambda: check_project(view),
        "apis": lambda: _of_features(view, check_apis),
        "permissions": lambda: _of_features(view, check_permissions),
    }
    if settings.service_account is not None:
        checks["service-account"] = lambda: check_service_account(view)
    checks["network"] = lambda: check_network(view)
    checks["firewall"] = lambda: check_firewall(view)
    if not settings.external_ip:
        checks["internet"] = lambda: check_internet(view)
    checks["image"] = lambda: check_boot_image(view)
    checks["machine-types"] = lambda: check_machine_types(view)
    checks["quota"] = lambda: check_quota(view)
    if settings.reservation is not None:
        checks["reservation"] = lambda: check_reservation(view)
    return checks


async def _of_features(
    view: View, check: Callable[[View, Sequence[str]], Awaitable[Finding]]
) -> Finding:
    route = await view.find_route()
    return await check(view, features_of(view.settings, route.kind))
