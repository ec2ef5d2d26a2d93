"""Which error each failure of the Compute API becomes, and what its message says to do next.

Pure: a failed exchange or operation goes in, an exception of `errors` comes out, chosen by status,
reason or operation error code and never by the words of a message. The codes are those of
https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation. When to try
again is left to `policy`.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_gce.errors import (
    AlreadyExists,
    APIError,
    CredentialsError,
    GCEError,
    NotFound,
    OperationError,
    OutOfCapacity,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    ServerFault,
    TransportError,
)
from dask_gce.permissions import advice
from dask_gce.policy import CAPACITY_CODES, QUOTA_CODES, RATE_CODES, Failure
from dask_gce.shortages import Shortage

__all__ = ["Cause", "Place", "cause_of", "failure_error", "operation_error", "shortage_error"]

EXISTS_CODES = frozenset({"RESOURCE_ALREADY_EXISTS", "alreadyExists", "ALREADY_EXISTS"})
ABSENT_CODES = frozenset({"RESOURCE_NOT_FOUND", "notFound"})
API_DISABLED_REASONS = frozenset({"SERVICE_DISABLED", "accessNotConfigured"})
PERMISSION_CODES = API_DISABLED_REASONS | {
    "PERMISSIONS_ERROR",
    "SERVICE_ACCOUNT_ACCESS_DENIED",
    "forbidden",
}
#: Says only that too few instances came up; why is in the other errors or in the child operations.
MIN_COUNT_CODE = "VM_MIN_COUNT_NOT_REACHED"


class Cause(enum.Enum):
    """What kind of thing went wrong, whether a request was refused or its operation failed."""

    CAPACITY = "capacity"
    QUOTA = "quota"
    RATE = "rate"
    EXISTS = "exists"
    ABSENT = "absent"
    PERMISSION = "permission"
    FAULT = "fault"
    OTHER = "other"


@dataclass(frozen=True)
class Place:
    """What a call was about, so that an error can name it.

    Parameters
    ----------
    action : str
        The call in words, for example ``"insert instance dask-1"``.
    project : str
        Project ID.
    zone : str
        Zone name; empty for what has none.
    name : str
        The instance or other resource; empty for lists.
    service : str
        The API that was asked, by the first label of its host name.
    """

    action: str
    project: str
    zone: str = ""
    name: str = ""
    service: str = "compute"

    def __str__(self) -> str:
        zone = f" in zone {self.zone}" if self.zone else ""
        return f"{self.action}{zone} of project {self.project}"


#: What each API is called, and the predefined role that allows what this package asks of it.
_SERVICES: Mapping[str, tuple[str, str]] = {
    "compute": ("Compute Engine", "roles/compute.instanceAdmin.v1"),
    "secretmanager": ("Secret Manager", "roles/secretmanager.admin"),
    "cloudresourcemanager": ("Resource Manager", "roles/browser"),
    "serviceusage": ("Service Usage", "roles/serviceusage.serviceUsageViewer"),
    "iam": ("IAM", "roles/iam.serviceAccountUser"),
    "cloudbilling": ("Cloud Billing", "roles/serviceusage.serviceUsageConsumer"),
}


def _error_class(failure: Failure) -> type[APIError]:
    if failure.rate_limited:
        return RateLimited
    if failure.reason in QUOTA_CODES:
        return QuotaExceeded
    if failure.status in (401, 403):
        return PermissionDenied
    if failure.status == 404:
        return NotFound
    if failure.status == 409 and failure.reason in EXISTS_CODES:
        return AlreadyExists
    if failure.status >= 500:
        return ServerFault
    return APIError


def _next_step(
    cause: Cause,
    place: Place,
    *,
    status: int = 0,
    reason: str = "",
    said: str = "",
    shortage: Shortage | None = None,
) -> str:
    project = shlex.quote(place.project)
    if reason in API_DISABLED_REASONS:
        api = f"{place.service}.googleapis.com"
        return f"Enable the API: gcloud services enable {api} --project {project}"
    if status == 401:
        return "Sign in again: gcloud auth application-default login"
    if cause is Cause.CAPACITY:
        return "Try another zone or machine type, or try again later."
    if cause is Cause.QUOTA:
        return (shortage or Shortage("")).next_step(place.project)
    if cause is Cause.RATE:
        return (
            "Wait a minute, run fewer clusters at once in this project, or ask for more at "
            f"https://console.cloud.google.com/iam-admin/quotas?project={place.project}"
        )
    # Whoever may not use a service account is refused with 400.
    if (cause is Cause.PERMISSION or status == 400) and (step := advice(said, place.project)):
        return f"{step}\nTo see whether more is missing: dask gce check --project {project}"
    if cause is Cause.PERMISSION and place.service != "compute":
        return f"The caller needs {_SERVICES[place.service][1]} on project {place.project}."
    if cause is Cause.PERMISSION:
        return (
            f"The caller needs roles/compute.instanceAdmin.v1 on project {place.project}, and "
            "roles/iam.serviceAccountUser on the service account of the instances."
        )
    if cause is Cause.EXISTS:
        if not (place.name and place.zone):
            return "Choose another name."
        return (
            "Choose another name, or delete it: gcloud compute instances delete "
            f"{shlex.quote(place.name)} --zone {shlex.quote(place.zone)} --project {project}"
        )
    if cause is Cause.ABSENT:
        return "Check project, zone and name, and what the request refers to."
    if cause is Cause.FAULT:
        return "Try again later; https://status.cloud.google.com shows known outages."
    if status == 400 and place.service == "compute":
        return "Check the settings, above all instance_overrides."
    return ""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", "!", "?")) else text + "."


def failure_error(failure: Failure, place: Place) -> GCEError:
    """Return the exception for a failed exchange.

    Parameters
    ----------
    failure : Failure
        What went wrong.
    place : Place
        What the call was about.

    Returns
    -------
    GCEError
        CredentialsError or TransportError when no answer came; OutOfCapacity for reason
        ``insufficientCapacity``, so that a stock-out is one class whichever way it is told; else
        the APIError that fits status and reason.

    Examples
    --------
    >>> place = Place("insert instance dask-1", "my-project", "us-central1-a", "dask-1")
    >>> error = failure_error(Failure(404, "notFound", "No such image"), place)
    >>> type(error).__name__, error.reason
    ('NotFound', 'notFound')
    >>> print(error)  # doctest: +NORMALIZE_WHITESPACE
    Compute Engine refused to insert instance dask-1 in zone us-central1-a of project my-project:
    No such image. (HTTP 404, notFound) Check project, zone and name, and what the request
    refers to.
    """
    if failure.status == 0 and failure.reason == "credentials":
        return CredentialsError(
            f"No access token to {place}: {_sentence(failure.message)} "
            "Sign in: gcloud auth application-default login"
        )
    if failure.status == 0:
        asked = f"{failure.method} {failure.url}".strip()
        return TransportError(
            f"Could not {place}: {_sentence(failure.message)}"
            + (f" ({asked})" if asked else "")
            + " Check the network and api_endpoint.",
            method=failure.method,
            url=failure.url,
        )
    shown = f"HTTP {failure.status}" + (f", {failure.reason}" if failure.reason else "")
    asked, _ = _SERVICES[place.service]
    text = f"{asked} refused to {place}: {_sentence(failure.message)} ({shown})"
    if failure.reason in CAPACITY_CODES:
        step = _next_step(Cause.CAPACITY, place)
        return OutOfCapacity(f"{text} {step}", code=failure.reason)
    kind = _error_class(failure)
    shortage = Shortage.of_sentence(failure.message) if kind is QuotaExceeded else None
    step = _next_step(
        _CLASS_CAUSES[kind],
        place,
        status=failure.status,
        reason=failure.reason,
        said=failure.message,
        shortage=shortage,
    )
    error = kind(
        f"{text} {step}".rstrip(),
        status=failure.status,
        reason=failure.reason,
        method=failure.method,
        url=failure.url,
    )
    return _with_shortage(error, shortage) if isinstance(error, QuotaExceeded) else error


def shortage_error(place: Place, shortage: Shortage, *, fits: int, wanted: int) -> QuotaExceeded:
    """Return the exception for machines that a quota leaves no room for.

    Parameters
    ----------
    place : Place
        What was to be done.
    shortage : Shortage
        What there is not enough of.
    fits : int
        How many machines there is room for.
    wanted : int
        How many there were to be.

    Returns
    -------
    QuotaExceeded
        The same as if Compute Engine had refused.

    Examples
    --------
    >>> place = Place("insert 100 instances", "mine", "us-central1-a")
    >>> shortage = Shortage("CPUS", "us-central1", limit=100.0, usage=0.0, wanted=400.0)
    >>> print(shortage_error(place, shortage, fits=25, wanted=100))  # doctest: +ELLIPSIS
    Could not insert 100 instances in zone us-central1-a of project mine: there is room for 25 ...
    """
    named = str(shortage).replace(f"quota {shortage.metric}", f"Quota '{shortage.metric}'", 1)
    error = QuotaExceeded(
        f"Could not {place}: there is room for {fits} of {wanted}, by {named}. (quotaExceeded) "
        + _next_step(Cause.QUOTA, place, shortage=shortage),
        status=403,
        reason="quotaExceeded",
    )
    return _with_shortage(error, shortage)


def _with_shortage(error: QuotaExceeded, shortage: Shortage | None) -> QuotaExceeded:
    if shortage is not None:
        error.metric, error.region = shortage.metric, shortage.region
        error.limit, error.usage, error.wanted = shortage.limit, shortage.usage, shortage.wanted
    return error


_CLASS_CAUSES: Mapping[type[APIError], Cause] = {
    APIError: Cause.OTHER,
    NotFound: Cause.ABSENT,
    AlreadyExists: Cause.EXISTS,
    PermissionDenied: Cause.PERMISSION,
    QuotaExceeded: Cause.QUOTA,
    RateLimited: Cause.RATE,
    ServerFault: Cause.FAULT,
}


def _code_cause(code: str) -> Cause:
    for codes, cause in (
        (CAPACITY_CODES, Cause.CAPACITY),
        (QUOTA_CODES, Cause.QUOTA),
        (RATE_CODES, Cause.RATE),
        (EXISTS_CODES, Cause.EXISTS),
        (ABSENT_CODES, Cause.ABSENT),
        (PERMISSION_CODES, Cause.PERMISSION),
        (frozenset({"INTERNAL_ERROR"}), Cause.FAULT),
    ):
        if code in codes:
            return cause
    return Cause.OTHER


def cause_of(error: GCEError) -> Cause:
    """Tell what kind of thing went wrong.

    A refused request and a failed operation say the same thing in different words; this is the one
    question to ask before moving to another zone or counting "it exists already" as success.

    Parameters
    ----------
    error : GCEError
        An error raised by `compute`.

    Returns
    -------
    Cause
        Its kind.

    Examples
    --------
    >>> cause_of(OperationError("x", code="QUOTA_EXCEEDED")) is cause_of(
    ...     QuotaExceeded("x", status=403, reason="quotaExceeded"))
    True
    """
    if isinstance(error, OperationError):
        return _code_cause(error.code)
    if isinstance(error, APIError):
        for kind in type(error).__mro__:
            if kind in _CLASS_CAUSES:
                return _CLASS_CAUSES[kind]
    return Cause.OTHER


def operation_error(
    operation: str,
    errors: Sequence[Mapping[str, Any]],
    place: Place,
    *,
    status: int = 0,
    message: str = "",
) -> OperationError:
    """Return the exception for a failed operation.

    ``VM_MIN_COUNT_NOT_REACHED`` only says that a bulk insert was rolled back; the first error that
    says more gives code and class.

    Parameters
    ----------
    operation : str
        The operation's name.
    errors : sequence of mapping
        ``operation.error.errors``, followed by those of child operations where there are any.
    place : Place
        What the call was about.
    status : int
        ``httpErrorStatusCode`` of the operation; 0 when it has none.
    message : str
        ``httpErrorMessage`` of the operation, used when there are no errors to quote.

    Returns
    -------
    OperationError
        OutOfCapacity when the zone or region has no machine to give.

    Examples
    --------
    >>> place = Place("create 4 instances", "my-project", "us-central1-a")
    >>> error = operation_error("operation-1", [
    ...     {"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 4 VMs ..."},
    ...     {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "Not enough resources"}], place)
    >>> type(error).__name__, error.code
    ('OutOfCapacity', 'ZONE_RESOURCE_POOL_EXHAUSTED')
    """
    telling = next((e for e in errors if e.get("code") != MIN_COUNT_CODE), None)
    chosen: Mapping[str, Any] = telling or next(iter(errors), {})
    code = str(chosen.get("code", ""))
    cause = _code_cause(code)
    said = _sentence(str(chosen.get("message", "")) or message or "no reason was given")
    shortage = Shortage.of_errors(errors) if cause is Cause.QUOTA else None
    if shortage is not None and shortage.metric not in said:
        said = f"{said} It is {shortage}."
    shown = ", ".join(part for part in (code, f"HTTP {status}" if status else "") if part)
    text = f"Compute Engine could not {place}: {said}" + (f" ({shown})" if shown else "")
    kind = OutOfCapacity if cause is Cause.CAPACITY else OperationError
    return kind(
        f"{text} {_next_step(cause, place, reason=code, said=said, shortage=shortage)}".rstrip(),
        operation=operation,
        code=code,
        errors=[dict(error) for error in errors],
    )
