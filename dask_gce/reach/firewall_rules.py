"""The cluster's own firewall rules, as data: what they say, and whose they are.

Pure. When rules are made and removed is left to `firewall`, what the rules of a network let in
to `admission`; the names and tags of ours to `tags`.

Rules have no labels, so the description of ours is one line of JSON, by which they are known.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dask_gce import names

__all__ = [
    "DEFAULT_PRIORITY",
    "MACHINE_PORTS",
    "Mark",
    "Network",
    "Ports",
    "build_rule",
    "parse_mark",
    "render_create",
    "render_delete",
    "render_mark",
    "split_families",
]

#: The first and the last port of a range.
Ports = tuple[int, int]

#: The priority of a rule that says nothing about it, and of ours.
DEFAULT_PRIORITY: Final = 1000

#: Where Dask's processes listen for one another: ports that the system chooses.
MACHINE_PORTS: Final[Ports] = (1024, 65_535)


@dataclass(frozen=True, slots=True)
class Network:
    """Where a cluster's machines are.

    Parameters
    ----------
    project : str
        The project that the network belongs to, and its rules with it; of a shared network that is
        the host project.
    name : str
        The network.
    ranges : tuple of str
        What the machines' internal addresses are from; empty where that is not known.
    """

    project: str
    name: str
    ranges: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The network as a partial URL."""
        return f"projects/{self.project}/global/networks/{self.name}"


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a rule is: what labels say of a machine.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    owner : str
        Who made the rule, as a label value; empty if unknown.
    client : str
        Which process made it, as `client` tells; empty if unknown.
    expires : int or None
        When it is past its use, in seconds since 1970 UTC; None if it does not say.
    declared : str
        By what the rule is declared that makes it again when it is deleted; empty for nothing.
    """

    cluster: str
    identity: str
    owner: str = ""
    client: str = ""
    expires: int | None = None
    declared: str = ""


def render_mark(mark: Mark) -> str:
    """Return the description of a rule of ours.

    Parameters
    ----------
    mark : Mark
        Whose it is.

    Returns
    -------
    str
        One line of JSON, with the keys that labels have.

    Examples
    --------
    >>> render_mark(Mark("grid", "3f9a61c2"))
    '{"dask-gce-cluster": "grid", "dask-gce-id": "3f9a61c2"}'
    """
    fields = {
        names.CLUSTER_LABEL: mark.cluster,
        names.ID_LABEL: mark.identity,
        names.OWNER_LABEL: mark.owner,
        names.CLIENT_LABEL: mark.client,
        names.EXPIRES_LABEL: mark.expires,
        names.DECLARED_LABEL: mark.declared,
    }
    return json.dumps({key: value for key, value in fields.items() if value not in ("", None)})


_TEXTS = (
    *(names.CLUSTER_LABEL, names.ID_LABEL, names.OWNER_LABEL, names.CLIENT_LABEL),
    names.DECLARED_LABEL,
)


def parse_mark(description: str) -> Mark | None:
    """Read whose a rule is.

    Parameters
    ----------
    description : str
        The rule's description.

    Returns
    -------
    Mark or None
        What it says; None if it is none of ours.

    Examples
    --------
    >>> parse_mark(render_mark(Mark("grid", "3f9a61c2", "ada", expires=1)))
    Mark(cluster='grid', identity='3f9a61c2', owner='ada', client='', expires=1, declared='')
    >>> parse_mark("lets Ada in")
    """
    try:
        data = json.loads(description)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    texts = cluster, identity, owner, client, declared = [data.get(key, "") for key in _TEXTS]
    if not (all(isinstance(each, str) for each in texts) and cluster and identity):
        return None
    expires = data.get(names.EXPIRES_LABEL)
    lasting = expires if type(expires) is int else None
    return Mark(cluster, identity, owner, client, lasting, declared)


def build_rule(
    name: str,
    network: Network,
    mark: Mark,
    *,
    ranges: Sequence[str] = (),
    source_tag: str = "",
    target_tag: str,
    ports: Sequence[Ports],
) -> dict[str, Any]:
    """Return the body of ``firewalls.insert`` for a rule that lets something in.

    Parameters
    ----------
    name : str
        The rule's name.
    network : Network
        The network.
    mark : Mark
        Whose the rule is.
    ranges : sequence of str
        The addresses that are let in, or ranges of them, all of one version of IP.
    source_tag : str
        The network tag of machines that are let in; empty for none.
    target_tag : str
        The network tag of the machines that they are let in to.
    ports : sequence of tuple of int
        Ranges of ports of TCP.

    Returns
    -------
    dict
        The request body in API JSON.
    """
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in sorted(set(ports))]
    body: dict[str, Any] = {
        "name": name,
        "network": network.path,
        "description": render_mark(mark),
        "direction": "INGRESS",
        "priority": DEFAULT_PRIORITY,
        "allowed": [{"IPProtocol": "tcp", "ports": shown}],
        "targetTags": [target_tag],
    }
    if ranges:
        body["sourceRanges"] = [str(ipaddress.ip_network(each)) for each in ranges]
    if source_tag:
        body["sourceTags"] = [source_tag]
    return body


def split_families(ranges: Iterable[str]) -> list[list[str]]:
    """Group ranges by the version of IP, of which a rule takes one.

    Parameters
    ----------
    ranges : iterable of str
        Addresses, or ranges of them.

    Returns
    -------
    list of list of str
        The ranges of IPv4, then those of IPv6, without a group that has none.

    Examples
    --------
    >>> split_families(["2001:db8::/32", "203.0.113.7"])
    [['203.0.113.7'], ['2001:db8::/32']]
    """
    found = list(ranges)
    groups = [
        [each for each in found if ipaddress.ip_network(each).version == version]
        for version in (4, 6)
    ]
    return [group for group in groups if group]


def render_create(body: Mapping[str, Any], network: Network) -> str:
    """Return the command that makes a rule by hand.

    Parameters
    ----------
    body : mapping
        The rule, as `build_rule` makes it; its description is left out.
    network : Network
        The network.

    Returns
    -------
    str
        A line for a shell.

    Examples
    --------
    >>> network = Network("p", "inner")
    >>> body = build_rule("let-in", network, Mark("grid", "3f9a"), ranges=["203.0.113.7"],
    ...                   target_tag="dask", ports=[(8786, 8786)])
    >>> print(render_create(body, network))  # doctest: +NORMALIZE_WHITESPACE
    gcloud compute firewall-rules create let-in --project p --network inner --direction INGRESS
    --allow tcp:8786 --source-ranges 203.0.113.7/32 --target-tags dask
    """
    ports = ",".join(f"tcp:{each}" for each in body["allowed"][0]["ports"])
    words = ["gcloud", "compute", "firewall-rules", "create", body["name"]]
    words += ["--project", network.project, "--network", network.name]
    words += ["--direction", "INGRESS", "--allow", ports]
    for key, option in (
        ("sourceRanges", "--source-ranges"),
        ("sourceTags", "--source-tags"),
        ("targetTags", "--target-tags"),
    ):
        if body.get(key):
            words += [option, ",".join(body[key])]
    return shlex.join(words)


def render_delete(rules: Iterable[str], project: str) -> str:
    """Return the command that deletes rules by hand.

    Parameters
    ----------
    rules : iterable of str
        Their names.
    project : str
        Their project.

    Returns
    -------
    str
        A line for a shell.

    Examples
    --------
    >>> render_delete(["let-in"], "p")
    'gcloud compute firewall-rules delete let-in --project p'
    """
    words = ["gcloud", "compute", "firewall-rules", "delete", *rules, "--project", project]
    return shlex.join(words)
