"""Names and labels: what Google accepts, how ours are made, how they are searched for.

Owns the rules for instance, cluster, zone and project names, the labels every resource of a cluster
carries, the filter text that finds them again, and the zonal DNS name of an instance. Text in, text
out: no API call. Machine-type names are in `machine_types`.

Sources: `Naming resources <https://cloud.google.com/compute/docs/naming-resources>`_,
`Labels <https://cloud.google.com/compute/docs/labeling-resources>`_,
`Internal DNS <https://cloud.google.com/compute/docs/internal-dns>`_,
`Filtering <https://google.aip.dev/160>`_ and :rfc:`1035` section 2.3.1.
"""

from __future__ import annotations

import itertools
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

from dask_gce.errors import SettingsError

__all__ = [
    "CLIENT_LABEL",
    "CLUSTER_LABEL",
    "DECLARED_LABEL",
    "EXPIRES_LABEL",
    "ID_LABEL",
    "IMAGE_LABEL",
    "MAX_CLUSTER_NAME",
    "MAX_LABEL",
    "MAX_NAME",
    "OWNER_LABEL",
    "RESERVED_LABELS",
    "ROLE_LABEL",
    "Role",
    "check_cluster_name",
    "check_label",
    "check_name",
    "check_project",
    "check_zone",
    "cluster_labels",
    "instance_name",
    "label_filter",
    "label_value",
    "new_cluster_name",
    "note_used",
    "region_of",
    "zonal_dns_name",
]

Role = Literal["scheduler", "worker"]

CLUSTER_LABEL: Final = "dask-gce-cluster"
ROLE_LABEL: Final = "dask-gce-role"
OWNER_LABEL: Final = "dask-gce-owner"
#: Tells two clusters apart that were given the same name.
ID_LABEL: Final = "dask-gce-id"
#: Which process made the cluster, or that it outlives its process; see `client`.
CLIENT_LABEL: Final = "dask-gce-client"
#: When the cluster is past its use, in seconds since 1970 UTC.
EXPIRES_LABEL: Final = "dask-gce-expires"
#: On disk images: which runtime they were made for.
IMAGE_LABEL: Final = "dask-gce-image"
#: By what a cluster is declared that makes its machines again when they are deleted: "terraform".
DECLARED_LABEL: Final = "dask-gce-declared"
RESERVED_LABELS: Final = frozenset(
    {
        *(CLUSTER_LABEL, ROLE_LABEL, OWNER_LABEL, ID_LABEL, CLIENT_LABEL, EXPIRES_LABEL),
        *(IMAGE_LABEL, DECLARED_LABEL),
    }
)

MAX_NAME: Final = 63
MAX_LABEL: Final = 63
# An instance's suffix has four digits and grows by one at a clash; eight leave room for a billion.
_SUFFIX_ROOM: Final = 8
MAX_CLUSTER_NAME: Final = MAX_NAME - len("-scheduler-") - _SUFFIX_ROOM

_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_ZONE = re.compile(r"(?P<region>[a-z]+(?:-[a-z]+)+[0-9]+)-[a-z][a-z0-9]*")
_REGION = re.compile(r"[a-z]+(?:-[a-z]+)+[0-9]+")
# The path pattern of `project` in the Compute v1 discovery document, without project numbers.
_PROJECT = re.compile(
    r"(?:(?P<domain>(?:[-a-z0-9]{1,63}\.)*[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?):)?"
    r"(?P<id>[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)"
)
_NAME_RULE: Final = "lower case letters, digits and hyphens, first a letter, last no hyphen"

_used: set[str] = set()
_used_lock = threading.Lock()


def check_name(name: str, *, key: str = "name", limit: int = MAX_NAME) -> str:
    """Check a resource name by the rule of RFC 1035.

    Parameters
    ----------
    name : str
        The name.
    key : str
        The setting to name in the error.
    limit : int
        The longest length allowed, in characters.

    Returns
    -------
    str
        The name, unchanged.

    Raises
    ------
    SettingsError
        If Google would not accept the name, or if it is longer than `limit`.

    Examples
    --------
    >>> check_name("dask-3f9a")
    'dask-3f9a'
    """
    if len(name) > limit:
        raise SettingsError(
            f"{key} = {name!r} has {len(name)} characters; at most {limit} are allowed.", key=key
        )
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{key} = {name!r} is not a name Compute Engine accepts: {_NAME_RULE}.", key=key
        )
    return name


def check_cluster_name(name: str, *, key: str = "name") -> str:
    """Check a cluster's name, leaving room for the instance names made from it.

    Parameters
    ----------
    name : str
        The cluster's name.
    key : str
        The setting to name in the error.

    Returns
    -------
    str
        The name, unchanged.

    Raises
    ------
    SettingsError
        If it is longer than `MAX_CLUSTER_NAME` or no RFC 1035 name.

    Examples
    --------
    >>> check_cluster_name("night-run")
    'night-run'
    """
    return check_name(name, key=key, limit=MAX_CLUSTER_NAME)


def new_cluster_name(user_prefix: str = "dask") -> str:
    """Make a cluster name that no other cluster has.

    Parameters
    ----------
    user_prefix : str
        What the name begins with.

    Returns
    -------
    str
        The prefix and eight random digits, for example ``dask-3f9a61c2``.

    Raises
    ------
    SettingsError
        If the prefix cannot begin a cluster name.

    Notes
    -----
    Clusters are found and deleted by this name, by everyone in the project, so the suffix is long
    enough (32 bits) that two people do not draw the same.
    """
    # Checked with the shortest possible suffix so that the error shows what the user typed.
    check_name(user_prefix, limit=MAX_CLUSTER_NAME - 9)
    return _draw(f"{user_prefix}-", digits=8)


def instance_name(cluster: str, role: Role) -> str:
    """Make the name of a new instance; no name is ever handed out twice in a process.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    role : {"scheduler", "worker"}
        What the instance is for.

    Returns
    -------
    str
        For example ``dask-3f9a61c2-worker-7c2e``: at most 63 characters, never all digits.

    Raises
    ------
    SettingsError
        If the cluster's name is too long or not a name.
    ValueError
        If the role is neither of the two.

    Examples
    --------
    >>> instance_name("dask-3f9a", "worker")[:-4]
    'dask-3f9a-worker-'
    """
    if role not in get_args(Role):
        raise ValueError(f"role must be one of {get_args(Role)}, not {role!r}")
    check_cluster_name(cluster)
    return _draw(f"{cluster}-{role}-", digits=4)


def note_used(taken: Iterable[str]) -> None:
    """Never hand these names out: instances have them that another process has made.

    Parameters
    ----------
    taken : iterable of str
        Names of instances.
    """
    with _used_lock:
        _used.update(taken)


def _draw(prefix: str, *, digits: int) -> str:
    with _used_lock:
        for length in itertools.count(digits):
            # One digit more after each clash: short names while they last, and always an end.
            name = prefix + secrets.token_hex((length + 1) // 2)[:length]
            if name not in _used:
                _used.add(name)
                return name
    raise AssertionError("itertools.count does not end")


def cluster_labels(cluster: str, role: Role | None = None, owner: str = "") -> dict[str, str]:
    """Build the labels by which a cluster's resources are found again.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    role : {"scheduler", "worker"}, optional
        What the instance is for.
    owner : str
        Who made the cluster, in any spelling.

    Returns
    -------
    dict of str to str
        Label keys and values, valid for Google.

    Examples
    --------
    >>> cluster_labels("dask-3f9a", "worker", "Ada Lovelace")["dask-gce-owner"]
    'ada-lovelace'
    """
    labels = {CLUSTER_LABEL: cluster}
    if role is not None:
        labels[ROLE_LABEL] = role
    if owner:
        labels[OWNER_LABEL] = label_value(owner)
    return labels


def check_label(name: str, value: str, *, key: str = "labels") -> None:
    """Check one label by Google's rules; letters of any script without upper case are allowed.

    Parameters
    ----------
    name : str
        The label's key.
    value : str
        The label's value, which may be empty.
    key : str
        The setting to name in the error.

    Raises
    ------
    SettingsError
        If Google would refuse the label; the message shows the nearest value it accepts.
    """
    if not name or len(name) > MAX_LABEL or not _is_letter(name[0]) or not _is_label_text(name):
        raise SettingsError(
            f"{key}: the label key {name!r} is not accepted by Google: 1 to {MAX_LABEL} lower case "
            "letters, digits, underscores or hyphens, the first a letter.",
            key=key,
        )
    if len(value) > MAX_LABEL or not _is_label_text(value):
        raise SettingsError(
            f"{key}: the value {value!r} of the label {name!r} is not accepted by Google: at most "
            f"{MAX_LABEL} lower case letters, digits, underscores or hyphens. "
            f"Use for example {label_value(value)!r}.",
            key=key,
        )


def label_value(text: str) -> str:
    """Turn any text, such as a user's name, into a label value that resembles it.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        At most 63 lower case letters, digits, underscores and hyphens.

    Examples
    --------
    >>> label_value("Ada.Lovelace@example.com")
    'ada-lovelace-example-com'
    >>> label_value("Zoë Ångström")
    'zoë-ångström'
    """
    lowered = unicodedata.normalize("NFC", text.lower())
    kept = "".join(character if _is_label_text(character) else " " for character in lowered)
    return "-".join(kept.split())[:MAX_LABEL].rstrip("-")


def _is_letter(character: str) -> bool:
    # Ll: lower case; Lo: scripts without case. That leaves out Lu, Lt and Lm.
    return unicodedata.category(character) in {"Ll", "Lo"}


def _is_label_text(text: str) -> bool:
    return all(c in "-_" or _is_letter(c) or unicodedata.category(c)[0] == "N" for c in text)


def label_filter(labels: Mapping[str, str]) -> str:
    """Build the filter of a list request that finds resources with all these labels.

    Parameters
    ----------
    labels : mapping of str to str
        Label keys and the values to look for.

    Returns
    -------
    str
        A filter in the language of AIP-160.

    Examples
    --------
    >>> label_filter({"dask-gce-cluster": "dask-3f9a"})
    'labels.dask-gce-cluster = dask-3f9a'
    >>> label_filter({"dask-gce-cluster": "dask-3f9a", "team": "42"})
    '(labels.dask-gce-cluster = dask-3f9a) AND (labels.team = "42")'
    """
    terms = [f"labels.{name} = {_quote(value)}" for name, value in labels.items()]
    return terms[0] if len(terms) == 1 else " AND ".join(f"({term})" for term in terms)


def _quote(value: str) -> str:
    # Only what cannot be read as a number, a truth value or an operator goes without quotes.
    if _NAME.fullmatch(value) and value not in {"true", "false", "null"}:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check_zone(zone: str, *, key: str = "zone") -> str:
    """Check that a text has the form of a zone's name.

    Parameters
    ----------
    zone : str
        The zone.
    key : str
        The setting to name in the error.

    Returns
    -------
    str
        The zone, unchanged.

    Raises
    ------
    SettingsError
        If it has another form; for a region the message says how to name a zone of it.

    Examples
    --------
    >>> check_zone("us-central1-a")
    'us-central1-a'
    """
    if _REGION.fullmatch(zone):
        raise SettingsError(
            f"{key} = {zone!r} is a region; name a zone of it, for example '{zone}-a' "
            "(gcloud compute zones list shows them all).",
            key=key,
        )
    if not _ZONE.fullmatch(zone):
        raise SettingsError(
            f"{key} = {zone!r} is not the name of a zone; write it like 'us-central1-a' "
            "(gcloud compute zones list shows them all).",
            key=key,
        )
    return zone


def region_of(zone: str) -> str:
    """Return the region a zone lies in.

    Parameters
    ----------
    zone : str
        The zone.

    Returns
    -------
    str
        The region.

    Raises
    ------
    SettingsError
        If the text is not the name of a zone.

    Examples
    --------
    >>> region_of("northamerica-northeast1-b")
    'northamerica-northeast1'
    """
    return check_zone(zone).rpartition("-")[0]


def check_project(project: str, *, key: str = "project") -> str:
    """Check that a text has the form of a project ID.

    Parameters
    ----------
    project : str
        The project ID, with its domain if it is domain-scoped.
    key : str
        The setting to name in the error.

    Returns
    -------
    str
        The project ID, unchanged.

    Raises
    ------
    SettingsError
        If it is a project number, or no project ID at all.

    Examples
    --------
    >>> check_project("example.com:render-farm")
    'example.com:render-farm'
    """
    if project.isdecimal():
        # The API takes numbers, but instances' DNS names contain the ID.
        raise SettingsError(
            f"{key} = {project!r} is a project's number; give its ID "
            "(gcloud projects list shows both).",
            key=key,
        )
    if not _PROJECT.fullmatch(project):
        raise SettingsError(
            f"{key} = {project!r} is not a project ID: {_NAME_RULE} "
            "(gcloud projects list shows yours).",
            key=key,
        )
    return project


def zonal_dns_name(name: str, zone: str, project: str) -> str:
    """Return the name by which other instances of the network reach an instance.

    It is known before the instance exists.

    Parameters
    ----------
    name : str
        The instance.
    zone : str
        Its zone.
    project : str
        Its project ID; a domain-scoped one has its parts swapped.

    Returns
    -------
    str
        A fully qualified domain name without the final dot.

    Raises
    ------
    SettingsError
        If the project is not a project ID.

    Examples
    --------
    >>> zonal_dns_name("dask-3f9a-scheduler-1b2c", "us-central1-a", "render-farm")
    'dask-3f9a-scheduler-1b2c.us-central1-a.c.render-farm.internal'
    >>> zonal_dns_name("vm", "us-central1-a", "example.com:proj")
    'vm.us-central1-a.c.proj.example.com.internal'
    """
    domain, _, project_id = check_project(project).rpartition(":")
    scope = f"{project_id}.{domain}" if domain else project_id
    return f"{name}.{zone}.c.{scope}.internal"
