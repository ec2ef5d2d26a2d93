"""What the methods of Google's other APIs have in common: permissions, policies, pages.

Owns: the refusal of callers in the words of these APIs, the three methods of every resource that
has a policy, and the cutting of lists to pages. What a role holds is told by `iam`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from dask_gce.emulator.cloud import Project
from dask_gce.emulator.errors import APIError, bad_request, error_info
from dask_gce.emulator.iam import Policy, check_permissions
from dask_gce.emulator.routing import Call, number

#: Query parameters of every list method.
LIST = frozenset({"filter", "pageSize", "pageToken"})

#: The query parameter of a policy's reading by GET.
POLICY = frozenset({"options.requestedPolicyVersion"})


def denied(permission: str, resource: str) -> APIError:
    """Return the refusal for want of a permission.

    Parameters
    ----------
    permission : str
        The permission.
    resource : str
        The name of the resource.

    Returns
    -------
    APIError
        The refusal; it does not tell whether there is such a resource.
    """
    return APIError(
        403,
        "forbidden",
        f"Permission '{permission}' denied for resource '{resource}' (or it may not exist).",
        details=[
            error_info(
                "IAM_PERMISSION_DENIED",
                domain="iam.googleapis.com",
                permission=permission,
                resource=resource,
            )
        ],
    )


def known_project(call: Call, permission: str) -> Project:
    """Return the project of a request, if there is one.

    Parameters
    ----------
    call : Call
        The request.
    permission : str
        The permission that the request would need there.

    Returns
    -------
    Project
        The project.

    Raises
    ------
    APIError
        There is no such project; these APIs do not tell that from a missing permission.
    """
    try:
        return call.project
    except APIError as error:
        refusal = denied(permission, f"projects/{call.params['project']}")
        raise refusal if error.status == 404 else error from None


def project_of(call: Call, permission: str) -> Project:
    """Return the project of a request, if whoever asks has a permission there.

    Parameters
    ----------
    call : Call
        The request.
    permission : str
        The permission.

    Returns
    -------
    Project
        The project.

    Raises
    ------
    APIError
        The permission is missing, or there is no such project.
    """
    project = known_project(call, permission)
    demand(call, permission, f"projects/{call.params['project']}")
    return project


def demand(call: Call, permission: str, resource: str, *policies: Policy) -> None:
    """Refuse a call whose caller has not a permission.

    Parameters
    ----------
    call : Call
        The request.
    permission : str
        The permission.
    resource : str
        The name of the resource.
    *policies : Policy
        The policies of the resource, beside the project's.

    Raises
    ------
    APIError
        The permission is missing.
    """
    if not call.cloud.permits(permission, call.project, call.identity, *policies):
        raise denied(permission, resource)


def granted(call: Call, *policies: Policy) -> dict[str, Any]:
    """Answer ``testIamPermissions``.

    Parameters
    ----------
    call : Call
        The request.
    *policies : Policy
        The policies of the resource, beside the project's.

    Returns
    -------
    dict
        The permissions of the request that its caller has; the field is missing where it is none.

    Raises
    ------
    APIError
        Something in the request is no permission.
    """
    held = [
        name
        for name in check_permissions(call.body.get("permissions", ()))
        if call.cloud.permits(name, call.project, call.identity, *policies)
    ]
    return {"permissions": held} if held else {}


def set_policy(call: Call, policy: Policy) -> dict[str, Any]:
    """Answer ``setIamPolicy``.

    Parameters
    ----------
    call : Call
        The request.
    policy : Policy
        The policy of the resource.

    Returns
    -------
    dict
        The policy as it is now.

    Raises
    ------
    APIError
        There is no policy in the request, or it cannot be set.
    """
    if "policy" not in call.body:
        raise bad_request("The policy is required.")
    if not set(call.body.get("updateMask", "bindings").split(",")) <= {"bindings", "etag"}:
        raise bad_request("Of a policy bindings and etag can be set.")
    policy.replace(call.body["policy"])
    return policy.show()


def page(
    call: Call, entries: Iterable[tuple[str, dict[str, Any]]], *, largest: int, newest: bool = False
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Cut a list to the page that was asked for.

    Parameters
    ----------
    call : Call
        The request.
    entries : iterable of tuple
        What is ordered by, which no two entries share, and the entry.
    largest : int
        How many entries a page can have.
    newest : bool
        Whether the last ones come first.

    Returns
    -------
    page : list of dict
        The entries of the page.
    following : dict
        The field ``nextPageToken`` where there are more.

    Raises
    ------
    APIError
        The page's size or token is malformed.
    """
    size = number(call, "pageSize", largest, 0, 2**31 - 1) or largest
    left = sorted(entries, key=lambda entry: entry[0], reverse=newest)
    token = call.query.get("pageToken")
    if token:
        try:
            last = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            raise bad_request(f"Invalid page token: '{token}'.") from None
        left = [entry for entry in left if (entry[0] < last if newest else entry[0] > last)]
    cut = min(size, largest)
    shown = [entry for _, entry in left[:cut]]
    if len(left) <= cut:
        return shown, {}
    return shown, {"nextPageToken": base64.urlsafe_b64encode(left[cut - 1][0].encode()).decode()}
