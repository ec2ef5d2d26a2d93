"""Network tags of a cluster's machines, and the names of the firewall rules that go by them.

Owns their form. Firewall rules cannot carry labels, and tags say nothing but themselves, so both
begin with the cluster's name and the beginning of its identity, which tells two clusters of one
name apart. What the rules say is in `reach.firewall_rules`.

Source: `Network tags <https://docs.cloud.google.com/vpc/docs/add-remove-network-tags>`_.
"""

from __future__ import annotations

import re
import secrets
from typing import Final, Literal

from dask_gce.names import MAX_NAME, check_name

__all__ = [
    "Purpose",
    "cluster_tag",
    "machine_tags",
    "new_suffix",
    "rule_filter",
    "rule_name",
    "rule_names",
    "scheduler_tag",
]

#: What a rule is for: to let clients in to the scheduler, or machines to one another.
Purpose = Literal["clients", "machines"]

#: How much of an identity is in a name. The rest is in the rule's description.
_SHOWN: Final = 8


def cluster_tag(cluster: str, identity: str) -> str:
    """Return the network tag that all machines of a cluster have, and no others.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        Its identity.

    Returns
    -------
    str
        The tag.

    Examples
    --------
    >>> cluster_tag("grid", "3f9a61c2d4e5f607")
    'grid-3f9a61c2'
    """
    return check_name(f"{cluster}-{identity[:_SHOWN]}")


def scheduler_tag(cluster: str, identity: str) -> str:
    """Return the network tag that only a cluster's scheduler has.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        Its identity.

    Returns
    -------
    str
        The tag; with the longest name that a cluster may have it is as long as a tag may be.

    Examples
    --------
    >>> scheduler_tag("grid", "3f9a61c2d4e5f607")
    'grid-3f9a61c2-scheduler'
    """
    return check_name(f"{cluster_tag(cluster, identity)}-scheduler")


def machine_tags(cluster: str, identity: str, role: str) -> tuple[str, ...]:
    """Return the network tags of a machine, beside those that the user wants.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        Its identity.
    role : str
        What the machine is for.

    Returns
    -------
    tuple of str
        The tags; none for what is neither a scheduler nor a worker.

    Examples
    --------
    >>> machine_tags("grid", "3f9a61c2d4e5f607", "worker")
    ('grid-3f9a61c2',)
    """
    if role == "scheduler":
        return (cluster_tag(cluster, identity), scheduler_tag(cluster, identity))
    return (cluster_tag(cluster, identity),) if role == "worker" else ()


def rule_name(cluster: str, identity: str, purpose: Purpose, suffix: str = "") -> str:
    """Return the name of one of a cluster's firewall rules.

    Parameters
    ----------
    cluster : str
        The cluster's name; where the whole would be too long its end is left out.
    identity : str
        Its identity.
    purpose : {"clients", "machines"}
        What the rule is for.
    suffix : str
        Tells rules of one purpose apart; empty for the only one.

    Returns
    -------
    str
        The name, at most 63 characters.

    Examples
    --------
    >>> rule_name("grid", "3f9a61c2d4e5f607", "clients")
    'grid-3f9a61c2-clients'
    >>> rule_name("grid", "3f9a61c2d4e5f607", "clients", "7c2e")
    'grid-3f9a61c2-clients-7c2e'
    """
    end = "-".join(["", identity[:_SHOWN], purpose, *([suffix] if suffix else [])])
    return check_name(f"{cluster[: MAX_NAME - len(end)]}{end}")


def rule_names(cluster: str, identity: str) -> tuple[str, ...]:
    """Return the names that a cluster's own firewall rules may have; joining ones have others.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        Its identity.

    Returns
    -------
    tuple of str
        The names.

    Examples
    --------
    >>> rule_names("grid", "3f9a61c2d4e5f607")
    ('grid-3f9a61c2-clients', 'grid-3f9a61c2-clients-v6', 'grid-3f9a61c2-machines')
    """
    own: tuple[tuple[Purpose, str], ...] = (("clients", ""), ("clients", "v6"), ("machines", ""))
    return tuple(rule_name(cluster, identity, purpose, suffix) for purpose, suffix in own)


def new_suffix() -> str:
    """Return what tells the rule of one who connects from elsewhere from those of others.

    Returns
    -------
    str
        Four hexadecimal digits.
    """
    return secrets.token_hex(2)


def rule_filter(identity: str = "") -> str:
    """Return the filter of a list request that finds firewall rules of clusters, by their names.

    Whether a rule really is one of ours, its description tells.

    Parameters
    ----------
    identity : str
        The identity of one cluster; empty for those of all clusters.

    Returns
    -------
    str
        A filter: ``eq`` takes a regular expression (RE2) that must match the whole value.

    Examples
    --------
    >>> rule_filter("3f9a61c2d4e5f607")
    'name eq ".*-3f9a61c2-(clients|machines).*"'
    """
    shown = re.escape(identity[:_SHOWN]) if identity else "[0-9a-f]+"
    return f'name eq ".*-{shown}-(clients|machines).*"'
