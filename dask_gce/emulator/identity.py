"""In whose name a request comes: the client's, or that of a machine's service account.

Owns: the access tokens that metadata servers hand out, the way back from a token to its account,
and which access scopes reach which API. What an account may do is told by `iam`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from dask_gce.emulator.errors import APIError, error_info

#: What the tokens of machines begin with. Google's are opaque; these are told from a client's own.
MACHINES_BEGIN = "ya29.local-machine."

#: https://developers.google.com/identity/protocols/oauth2/scopes
_SCOPE = "https://www.googleapis.com/auth/"
_EVERYTHING = f"{_SCOPE}cloud-platform"
_COMPUTE = frozenset({_EVERYTHING, f"{_SCOPE}compute"})
_READ_ONLY = {
    "compute": frozenset({f"{_SCOPE}compute.readonly"}),
    "cloudresourcemanager": frozenset({f"{_SCOPE}cloud-platform.read-only"}),
    "serviceusage": frozenset({f"{_SCOPE}cloud-platform.read-only"}),
}


@dataclass(frozen=True)
class Identity:
    """A service account, as one of the tokens of its machines makes it known.

    Parameters
    ----------
    email : str
        Its address.
    project : str
        The ID of the machine's project.
    scopes : frozenset of str
        The access scopes of the machine, as URLs.
    """

    email: str
    project: str
    scopes: frozenset[str]

    @property
    def member(self) -> str:
        """How a policy names it."""
        return f"serviceAccount:{self.email}"

    def check_scope(self, service: str, method_id: str, verb: str) -> None:
        """Refuse a call that the access scopes do not reach, whatever the policies say.

        Parameters
        ----------
        service : str
            The API, for example ``secretmanager``.
        method_id : str
            The ID of the method.
        verb : str
            Its HTTP method.

        Raises
        ------
        APIError
            They do not reach it.
        """
        enough = _COMPUTE if service == "compute" else frozenset({_EVERYTHING})
        if verb == "GET":
            enough |= _READ_ONLY.get(service, frozenset())
        if not enough & self.scopes:
            raise APIError(
                403,
                "insufficientPermissions",
                "Request had insufficient authentication scopes.",
                details=[
                    error_info(
                        "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                        service=f"{service}.googleapis.com",
                        method=method_id,
                    )
                ],
            )


class Identities:
    """Every token that was handed out by the metadata servers of one emulator."""

    def __init__(self) -> None:
        # Also those of machines that are gone: their tokens must not become a client's.
        self._issued: dict[str, Identity] = {}

    def issue(self, project: str, accounts: Sequence[dict[str, object]]) -> str:
        """Make the token of a new machine.

        Parameters
        ----------
        project : str
            The ID of its project.
        accounts : sequence of dict
            The ``serviceAccounts`` of its instance.

        Returns
        -------
        str
            The token; empty where there is no account.
        """
        if not accounts:
            return ""
        token = MACHINES_BEGIN + secrets.token_urlsafe(32)
        scopes = accounts[0].get("scopes")
        self._issued[token] = Identity(
            str(accounts[0]["email"]),
            project,
            frozenset(scopes if isinstance(scopes, list) else ()),
        )
        return token

    def knows(self, token: str) -> bool:
        """Tell whether a token is a machine's.

        Parameters
        ----------
        token : str
            The token.

        Returns
        -------
        bool
            Whether it was issued here.
        """
        return token in self._issued

    def of(self, authorization: str) -> Identity | None:
        """Return in whose name a request comes.

        Parameters
        ----------
        authorization : str
            Its header ``Authorization``; may be empty.

        Returns
        -------
        Identity or None
            The machine's service account; None is the client, whatever its credentials.

        Raises
        ------
        APIError
            The token looks like a machine's, and is not one of this emulator's.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token.startswith(MACHINES_BEGIN):
            return None
        if token not in self._issued:
            raise APIError(401, "authError", "Invalid Credentials")
        return self._issued[token]
