"""A fixed cluster as data: what Terraform is to make, with templates where only it knows.

How that is found out is in `fixed`, what is written of it in `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_gce.settings import Settings
from dask_gce.startup import Role

__all__ = ["FixedCluster", "Secrets"]


@dataclass(frozen=True)
class Secrets:
    """Where certificates are, if they are in Secret Manager.

    Parameters
    ----------
    ids : mapping of str to str
        By role, the secret's name as a template.
    account : str
        The email of the machines' service account, which may read them.
    regions : tuple of str
        Where they are kept.
    """

    ids: Mapping[Role, str]
    account: str
    regions: tuple[str, ...]


@dataclass(frozen=True)
class FixedCluster:
    """A fixed cluster, in Terraform's words: its strings are templates.

    Parameters
    ----------
    settings : Settings
        The cluster's settings, completed by what was found out.
    project : str
        The project ID.
    scheduler_zone : str
        Where the scheduler is.
    scheduler : mapping
        Its machine's attributes, but for name and zone.
    workers : mapping of str to mapping
        By zone, in the settings' order, those of a worker's machine on demand; empty if all are
        Spot.
    spot_workers : mapping of str to mapping
        The same of a Spot machine; empty if none is.
    client_rules : mapping of str to mapping
        By version of IP (``"4"``, ``"6"``) the rule that lets clients in, but for their addresses;
        empty where no rules are to be made.
    client_ranges : tuple of str
        The addresses that are let in, unless Terraform is told others.
    machines_rule : mapping or None
        The rule that lets the machines in to one another; None where there is one already.
    labels : mapping of str to str
        Labels of what belongs to the cluster as a whole.
    connection : mapping
        What is in a connection file.
    secrets : Secrets or None
        Where the certificates are; None for the machines' metadata.
    notes : tuple of str
        What there is to know about it, in sentences.
    """

    settings: Settings
    project: str
    scheduler_zone: str
    scheduler: Mapping[str, Any]
    workers: Mapping[str, Mapping[str, Any]]
    spot_workers: Mapping[str, Mapping[str, Any]]
    client_rules: Mapping[str, Mapping[str, Any]]
    client_ranges: tuple[str, ...]
    machines_rule: Mapping[str, Any] | None
    labels: Mapping[str, str]
    connection: Mapping[str, Any]
    secrets: Secrets | None
    notes: tuple[str, ...] = ()
