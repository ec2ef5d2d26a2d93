"""The refusals of the local Compute Engine, in Google's words, and the envelope they travel in.

Owns: the exceptions that handlers raise, the one function that makes an error answer, the HTTP
statuses of operation error codes. Which request deserves which refusal is the handlers' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: google.rpc.Code names by HTTP status, as in https://cloud.google.com/apis/design/errors.
RPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}

#: HTTP status and message that an operation shows for the code of its first error.
OPERATION_STATUS = {
    "CONDITION_NOT_MET": (412, "PRECONDITION FAILED"),
    "GPU_STOCKOUT": (503, "SERVICE UNAVAILABLE"),
    "INTERNAL_ERROR": (500, "INTERNAL ERROR"),
    "IP_IN_USE_BY_ANOTHER_RESOURCE": (409, "CONFLICT"),
    "PERMISSIONS_ERROR": (403, "FORBIDDEN"),
    "QUOTA_EXCEEDED": (403, "FORBIDDEN"),
    "REGION_RESOURCE_POOL_EXHAUSTED": (503, "SERVICE UNAVAILABLE"),
    "RESOURCE_ALREADY_EXISTS": (409, "CONFLICT"),
    "RESOURCE_NOT_FOUND": (404, "NOT FOUND"),
    "RESOURCE_OPERATION_RATE_EXCEEDED": (429, "TOO MANY REQUESTS"),
    "RESOURCE_POOL_EXHAUSTED": (503, "SERVICE UNAVAILABLE"),
    "VM_MIN_COUNT_NOT_REACHED": (503, "SERVICE UNAVAILABLE"),
    "ZONE_RESOURCE_POOL_EXHAUSTED": (503, "SERVICE UNAVAILABLE"),
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": (503, "SERVICE UNAVAILABLE"),
}

#: The code that an operation shows where a single call would be refused for a reason.
OPERATION_CODE = {
    "invalid": "INVALID_FIELD_VALUE",
    "ipInUseByAnotherResource": "IP_IN_USE_BY_ANOTHER_RESOURCE",
    "resourceInUseByAnotherResource": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
}


class APIError(Exception):
    """A request is refused.

    Parameters
    ----------
    status : int
        The HTTP status of the answer.
    reason : str
        Google's reason, for example ``"notFound"``.
    message : str
        Google's sentence.
    domain : str
        The domain of the reason.
    rpc_status : str or None
        The name of its google.rpc.Code; None for the usual one of the HTTP status.
    details : sequence of dict
        What ``error.details`` shows, each with its ``@type``.
    further : sequence of str
        Further sentences with the same reason, each an error of its own in the list of errors.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        domain: str = "global",
        rpc_status: str | None = None,
        details: Sequence[dict[str, Any]] = (),
        further: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.domain = domain
        self.rpc_status = rpc_status or RPC_STATUS.get(status, "UNKNOWN")
        self.details = list(details)
        self.further = list(further)


class OperationFailed(Exception):
    """An operation that was accepted ends with errors.

    Parameters
    ----------
    errors : sequence of dict
        The errors as ``operation.error.errors`` shows them, each with ``code`` and ``message``.
    """

    def __init__(self, errors: Sequence[dict[str, Any]]) -> None:
        super().__init__("; ".join(str(error.get("message", "")) for error in errors))
        self.errors = list(errors)


def error_info(reason: str, *, domain: str = "googleapis.com", **metadata: str) -> dict[str, Any]:
    """Make the detail by which programs tell errors apart (https://google.aip.dev/193).

    Parameters
    ----------
    reason : str
        The reason, in capitals.
    domain : str
        Who defines it.
    **metadata : str
        What it is about.

    Returns
    -------
    dict
        The ``google.rpc.ErrorInfo``.
    """
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": domain,
        "metadata": metadata,
    }


def envelope(error: APIError, *, bare: bool = False) -> dict[str, Any]:
    """Make the JSON body of an error answer.

    Parameters
    ----------
    error : APIError
        The refusal.
    bare : bool
        Whether to leave out the list of errors, which only the older APIs have.

    Returns
    -------
    dict
        Google's error envelope.

    Examples
    --------
    >>> envelope(not_found("projects/p/zones/z/instances/i"))["error"]["errors"][0]["reason"]
    'notFound'
    """
    shown: dict[str, Any] = {"code": error.status, "message": error.message}
    if not bare:
        shown["errors"] = [
            {"message": message, "domain": error.domain, "reason": error.reason}
            for message in (error.message, *error.further)
        ]
    shown["status"] = error.rpc_status
    if error.details:
        shown["details"] = error.details
    return {"error": shown}


def not_found(path: str) -> APIError:
    """Return the refusal for a resource that does not exist.

    Parameters
    ----------
    path : str
        Its path from ``projects/`` on.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(404, "notFound", f"The resource '{path}' was not found")


def already_exists(path: str) -> APIError:
    """Return the refusal for a name that is taken.

    Parameters
    ----------
    path : str
        The path from ``projects/`` on.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(409, "alreadyExists", f"The resource '{path}' already exists")


def in_use(path: str, user: str) -> APIError:
    """Return the refusal to delete a resource that another one uses.

    Parameters
    ----------
    path : str
        Its path from ``projects/`` on.
    user : str
        The path of the other one.

    Returns
    -------
    APIError
        The refusal.
    """
    collection = path.split("/")[-2]
    one = collection[:-2] if collection.endswith("sses") else collection[:-1]
    message = f"The {one} resource '{path}' is already being used by '{user}'"
    return APIError(400, "resourceInUseByAnotherResource", message)


def invalid(field: str, value: object, explanation: str) -> APIError:
    """Return the refusal for a field's value.

    Parameters
    ----------
    field : str
        The path of the field, for example ``"resource.name"``.
    value : object
        What the request holds there.
    explanation : str
        Why it cannot be, as a sentence.

    Returns
    -------
    APIError
        The refusal, in Google's wording.
    """
    return APIError(
        400, "invalid", f"Invalid value for field '{field}': '{value}'. {explanation}".rstrip()
    )


def required(field: str) -> APIError:
    """Return the refusal for a field that must be given and is not.

    Parameters
    ----------
    field : str
        The path of the field, for example ``"resource.name"``.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(400, "required", f"Required field '{field}' not specified")


def bad_request(message: str) -> APIError:
    """Return the refusal for a request whose form is wrong.

    Parameters
    ----------
    message : str
        What is wrong, as a sentence.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(400, "badRequest", message)


def not_ready(path: str) -> APIError:
    """Return the refusal for a resource that is busy with something else.

    Parameters
    ----------
    path : str
        Its path from ``projects/`` on.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(400, "resourceNotReady", f"The resource '{path}' is not ready")


def condition_not_met(message: str) -> APIError:
    """Return the refusal for a fingerprint that is out of date.

    Parameters
    ----------
    message : str
        Google's sentence.

    Returns
    -------
    APIError
        The refusal.
    """
    return APIError(412, "conditionNotMet", message)
