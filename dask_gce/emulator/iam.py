"""Who may do what: roles, the policies that bind them, and what a test denies or grants.

Owns: which permissions a role holds, allow policies and their etags, `Permissions`. The names of
the permissions that a call of the Compute API needs are in `requirements`.
Sources: https://cloud.google.com/iam/docs/roles-permissions and
https://cloud.google.com/iam/docs/reference/rest/v1/Policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from dask_gce.emulator.errors import APIError, bad_request

_PERMISSION = re.compile(r"[a-z][A-Za-z0-9]*\.[A-Za-z0-9]+\.[A-Za-z0-9]+")
_PATTERN = re.compile(r"[A-Za-z0-9.*]+")
_MEMBER = re.compile(
    r"(?:user|serviceAccount|group):[^@\s:]+@[^@\s:]+\.[^@\s:]+|domain:[^@\s:]+\.[^@\s:]+"
    r"|allUsers|allAuthenticatedUsers"
)

#: The permissions of roles, as patterns; what an exclamation mark begins with is taken out again.
ROLES: Mapping[str, tuple[str, ...]] = {
    "roles/owner": ("*",),
    "roles/editor": ("*", "!*.setIamPolicy", "!secretmanager.versions.access", "!iap.*"),
    "roles/viewer": ("*.get", "*.list", "*.getFromFamily", "compute.instances.get*"),
    "roles/compute.admin": ("compute.*", "serviceusage.services.get", "serviceusage.services.list"),
    "roles/compute.instanceAdmin.v1": (
        *("compute.instances.*", "compute.disks.*", "compute.images.*", "!*.setIamPolicy"),
        *("compute.networks.use*", "compute.subnetworks.use*", "compute.*.get", "compute.*.list"),
        *("compute.addresses.*Internal", "compute.addresses.use"),
        *("serviceusage.services.get", "serviceusage.services.list"),
    ),
    "roles/compute.networkAdmin": (
        *("compute.networks.*", "compute.subnetworks.*", "compute.routers.*"),
        "compute.addresses.*",
        *("compute.firewalls.get", "compute.firewalls.list"),
    ),
    "roles/compute.networkUser": ("compute.networks.use*", "compute.subnetworks.use*"),
    "roles/compute.securityAdmin": ("compute.firewalls.*", "compute.networks.updatePolicy"),
    "roles/compute.viewer": (
        *("compute.*.get", "compute.*.list", "compute.instances.get*"),
        "compute.advice.capacity*",
    ),
    "roles/iam.serviceAccountUser": (
        *("iam.serviceAccounts.actAs", "iam.serviceAccounts.get", "iam.serviceAccounts.list"),
    ),
    "roles/iap.tunnelResourceAccessor": ("iap.tunnelInstances.accessViaIAP",),
    "roles/secretmanager.admin": ("secretmanager.*",),
    "roles/secretmanager.secretAccessor": ("secretmanager.versions.access",),
    "roles/secretmanager.secretVersionAdder": ("secretmanager.versions.add",),
    "roles/secretmanager.secretVersionManager": (
        *("secretmanager.versions.*", "!secretmanager.versions.access"),
    ),
    "roles/secretmanager.viewer": (
        *("secretmanager.*.get", "secretmanager.*.list", "secretmanager.secrets.getIamPolicy"),
    ),
    "roles/serviceusage.serviceUsageAdmin": ("serviceusage.services.*",),
    "roles/serviceusage.serviceUsageViewer": (
        *("serviceusage.services.get", "serviceusage.services.list"),
    ),
}

#: What a machine's service account has in its project, as Google gives it to the default one.
MACHINE_ROLE = "roles/editor"


def role_holds(role: str, permission: str) -> bool:
    """Tell whether a role holds a permission.

    Parameters
    ----------
    role : str
        The role.
    permission : str
        The permission.

    Returns
    -------
    bool
        Whether it does.

    Examples
    --------
    >>> role_holds("roles/editor", "compute.instances.delete")
    True
    >>> role_holds("roles/editor", "secretmanager.versions.access")
    False
    """
    patterns = ROLES.get(role, ())
    if any(fnmatchcase(permission, one[1:]) for one in patterns if one.startswith("!")):
        return False
    return any(fnmatchcase(permission, one) for one in patterns)


def check_permissions(names: Iterable[str]) -> list[str]:
    """Return the permissions of a test if they are well-formed.

    Parameters
    ----------
    names : iterable of str
        The permissions.

    Returns
    -------
    list of str
        The permissions.

    Raises
    ------
    APIError
        There are more than 100, or one is no permission.
    """
    found = list(names)
    if len(found) > 100:
        raise bad_request("The permissions count must be less than or equal to 100.")
    for name in found:
        if not _PERMISSION.fullmatch(name):
            raise bad_request(f"Permission {name} is not valid for this resource.")
    return found


class Policy:
    """Who has which role on a resource.

    Parameters
    ----------
    bindings : mapping of str to sequence of str
        The members, by role.
    """

    def __init__(self, bindings: Mapping[str, Iterable[str]] | None = None) -> None:
        self._bindings = {role: list(members) for role, members in (bindings or {}).items()}

    @property
    def etag(self) -> str:
        """What changes with it, in base64."""
        if not self._bindings:
            # What Google shows for a policy that nobody has written.
            return "ACAB"
        text = json.dumps(self._bindings, sort_keys=True).encode()
        return base64.b64encode(hashlib.sha256(text).digest()[:9]).decode()

    def show(self) -> dict[str, Any]:
        """Return it as the API shows it.

        Returns
        -------
        dict
            The ``Policy``.
        """
        shown: dict[str, Any] = {"version": 1, "etag": self.etag}
        if self._bindings:
            shown["bindings"] = [
                {"role": role, "members": list(members)} for role, members in self._bindings.items()
            ]
        return shown

    def replace(self, wanted: Mapping[str, Any]) -> None:
        """Take over a policy of a request.

        Parameters
        ----------
        wanted : mapping
            The ``Policy``.

        Raises
        ------
        APIError
            It is malformed, or was made from an older one.
        """
        if wanted.get("etag") not in (None, "", self.etag):
            raise APIError(
                409,
                "aborted",
                "There were concurrent policy changes. Please retry the whole read-modify-write"
                " with exponential backoff.",
                rpc_status="ABORTED",
            )
        bindings: dict[str, list[str]] = {}
        for binding in wanted.get("bindings", ()):
            role, members = binding.get("role", ""), binding.get("members", [])
            if role not in ROLES:
                raise bad_request(f"Role ({role}) does not exist in the resource's hierarchy.")
            if "condition" in binding:
                raise bad_request("The local Compute Engine evaluates no conditions of bindings.")
            for member in members:
                if not _MEMBER.fullmatch(member):
                    raise bad_request(f"Invalid member: {member}.")
            held = bindings.setdefault(role, [])
            held += [member for member in dict.fromkeys(members) if member not in held]
        self._bindings = {role: members for role, members in bindings.items() if members}

    def grants(self, member: str, permission: str) -> bool:
        """Tell whether a member has a permission by one of its roles here.

        Parameters
        ----------
        member : str
            The member.
        permission : str
            The permission.

        Returns
        -------
        bool
            Whether it has.
        """
        them = {member, "allUsers", "allAuthenticatedUsers"}
        return any(
            not them.isdisjoint(members) and role_holds(role, permission)
            for role, members in self._bindings.items()
        )


class Permissions:
    """What is denied, and what is granted beyond all roles.

    The last rule that fits counts; where none does, the client may do everything, and a machine's
    service account what its roles say. It may be changed at any time and from any thread.

    Examples
    --------
    >>> permissions = Permissions()
    >>> permissions.deny("compute.*", project="my-project")
    >>> permissions.allow("compute.instances.*", "compute.disks.create", project="my-project")
    >>> permissions.ruling("compute.firewalls.create", "my-project", "user:me@example.org")
    False
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Project and member are None where a rule is for all of them.
        self._rules: list[tuple[bool, str, str | None, str | None]] = []

    def deny(
        self, *permissions: str, project: str | None = None, member: str | None = None
    ) -> None:
        """Deny permissions.

        Parameters
        ----------
        *permissions : str
            The permissions; ``*`` stands for any part of a name.
        project : str or None
            The project whose resources are meant; None means every project.
        member : str or None
            Whom, as policies name them: ``serviceAccount:ADDRESS``, or ``client`` for whoever is
            no machine. None means everybody.

        Raises
        ------
        ValueError
            There is no permission, or one cannot be a permission's name.
        """
        self._add(False, permissions, project, member)

    def allow(
        self, *permissions: str, project: str | None = None, member: str | None = None
    ) -> None:
        """Grant permissions, whatever was denied before and whatever the roles are.

        Parameters
        ----------
        *permissions : str
            The permissions; ``*`` stands for any part of a name.
        project : str or None
            The project whose resources are meant; None means every project.
        member : str or None
            Whom, as in :meth:`deny`.

        Raises
        ------
        ValueError
            There is no permission, or one cannot be a permission's name.
        """
        self._add(True, permissions, project, member)

    def _add(
        self, grants: bool, permissions: tuple[str, ...], project: str | None, member: str | None
    ) -> None:
        wrong = [one for one in permissions if not _PATTERN.fullmatch(one)]
        if wrong or not permissions:
            raise ValueError(f"no permissions' names: {wrong}")
        with self._lock:
            self._rules += [(grants, one, project, member) for one in permissions]

    def clear(self) -> None:
        """Forget every rule."""
        with self._lock:
            self._rules.clear()

    def ruling(self, permission: str, project: str, member: str) -> bool | None:
        """Return what the rules say.

        Parameters
        ----------
        permission : str
            The permission.
        project : str
            The ID of the project.
        member : str
            Who asks: ``client``, or the service account of a machine.

        Returns
        -------
        bool or None
            Whether it is granted; None where no rule fits.
        """
        with self._lock:
            for grants, pattern, where, who in reversed(self._rules):
                if (
                    where in (None, project)
                    and who in (None, member)
                    and fnmatchcase(permission, pattern)
                ):
                    return grants
        return None
