"""Methods of Service Usage v1: which of Google's APIs a project has enabled.

Owns: the requests and the operations that enabling begins. The state is kept by `service_states`.
Source: https://cloud.google.com/service-usage/docs/reference/rest/v1/services.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from dask_gce.emulator.cloud import Project
from dask_gce.emulator.errors import APIError, bad_request, error_info, not_found
from dask_gce.emulator.routing import Call, Route
from dask_gce.emulator.service_states import TITLES
from dask_gce.emulator.services.access import LIST, page, project_of

_FILTER = re.compile(r"\s*state\s*[:=]\s*(ENABLED|DISABLED)\s*")
_NAME = re.compile(r"projects/([^/]+)/services/([^/]+)")

#: The most APIs that are asked for at a time, and the largest page.
_MOST_NAMES = 30
_LARGEST_PAGE = 200


def _missing(service: str) -> APIError:
    """Return the refusal for an API that does not exist, or is not for everybody."""
    return APIError(
        403,
        "forbidden",
        f"Not found or permission denied for service(s): {service}.",
        details=[
            error_info(
                "SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED",
                domain="serviceusage.googleapis.com",
                services=service,
            )
        ],
    )


def _show(call: Call, project: Project, service: str) -> dict[str, Any]:
    if service not in TITLES:
        raise _missing(service)
    enabled = call.cloud.conditions.services.enabled(service, project.id)
    return {
        "name": f"projects/{project.number}/services/{service}",
        "config": {"name": service, "title": TITLES[service]},
        "state": "ENABLED" if enabled else "DISABLED",
        "parent": f"projects/{project.number}",
    }


def _get(call: Call) -> dict[str, Any]:
    project = project_of(call, "serviceusage.services.get")
    return _show(call, project, call.params["service"])


def _list(call: Call) -> dict[str, Any]:
    project = project_of(call, "serviceusage.services.list")
    text = call.query.get("filter", "")
    match = _FILTER.fullmatch(text)
    if text and match is None:
        raise bad_request(f"Invalid filter '{text}': only state:ENABLED and state:DISABLED are.")
    shown = [(service, _show(call, project, service)) for service in sorted(TITLES)]
    wanted = [one for one in shown if match is None or one[1]["state"] == match[1]]
    found, following = page(call, wanted, largest=_LARGEST_PAGE)
    return ({"services": found} if found else {}) | following


def _batch_get(call: Call) -> dict[str, Any]:
    project = project_of(call, "serviceusage.services.get")
    names = call.repeated.get("names", ())
    if not 1 <= len(names) <= _MOST_NAMES:
        raise bad_request(f"Between 1 and {_MOST_NAMES} names are asked for at a time.")
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in (project.id, str(project.number)):
            raise bad_request(f"Invalid name of a service: '{name}'.")
        found.append(_show(call, project, match[2]))
    return {"services": found}


def _enable(call: Call) -> dict[str, Any]:
    project, service = project_of(call, "serviceusage.services.enable"), call.params["service"]
    shown = _show(call, project, service)
    states = call.cloud.conditions.services
    response = {
        "@type": "type.googleapis.com/google.api.serviceusage.v1.EnableServiceResponse",
        "service": {**shown, "state": "ENABLED"},
    }
    if shown["state"] == "ENABLED":
        return {"name": "operations/noop.DONE_OPERATION", "done": True, "response": response}
    name = f"acf.p2-{project.number}-{secrets.token_hex(16)}"
    end = time.monotonic() + call.cloud.timings.creating
    call.cloud.service_operations[name] = end, response
    states.enable(service, project=project.id)
    return {"name": f"operations/{name}"}


def _get_operation(call: Call) -> dict[str, Any]:
    name = call.params["operation"]
    if name not in call.cloud.service_operations:
        raise not_found(f"operations/{name}")
    end, response = call.cloud.service_operations[name]
    shown: dict[str, Any] = {"name": f"operations/{name}"}
    return {**shown, "done": True, "response": response} if time.monotonic() >= end else shown


_ALL = "v1/projects/{project}/services"

ROUTES = [
    Route("serviceusage.services.get", "GET", f"{_ALL}/{{service}}", _get),
    Route("serviceusage.services.list", "GET", _ALL, _list, LIST),
    Route(
        "serviceusage.services.batchGet",
        "GET",
        f"{_ALL}:batchGet",
        _batch_get,
        frozenset({"names"}),
    ),
    Route(
        "serviceusage.services.enable",
        "POST",
        f"{_ALL}/{{service}}:enable",
        _enable,
        body="serviceusage.v1.EnableServiceRequest",
    ),
    Route("serviceusage.operations.get", "GET", "v1/operations/{operation}", _get_operation),
]
