"""What a cluster leaves behind that no machine's own end removes, as its machines are told of it.

Owns the form in which the scheduler's machine reads what it is to delete when it ends with nobody
there to do it: one line for each, which `guest/ending.sh` takes for data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_gce import names, tags
from dask_gce.secret_names import secret_id
from dask_gce.settings import Settings
from dask_gce.startup import Role

__all__ = ["render_leavings"]


def render_leavings(settings: Settings, project: str, cluster: str, identity: str) -> str:
    """Return what the scheduler's machine deletes when it ends, beside itself.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The project ID.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.

    Returns
    -------
    str
        Lines of a kind, a project, and a filter or name: ``rules`` for the cluster's firewall
        rules, ``secret`` for each of its secrets, and ``machines`` for its other machines. Those
        are the last, since Compute Engine ends them anyway.

    Examples
    --------
    >>> settings = Settings.load(project="p")
    >>> print(render_leavings(settings, "p", "grid", "3f9a61c2d4"))
    rules p (name eq ".*-3f9a61c2-(clients|machines).*") (description eq "(?s).*3f9a61c2d4.*")
    machines p (labels.dask-gce-id = "3f9a61c2d4") AND (status != STOPPING)
    """
    mine = names.label_filter({names.ID_LABEL: identity})
    lines = []
    if settings.firewall:
        # Names begin like those of no other cluster, most likely; descriptions for certain.
        marked = f'description eq "(?s).*{identity}.*"'
        lines.append(
            f"rules {_network_project(settings, project)} ({tags.rule_filter(identity)}) ({marked})"
        )
    if settings.secrets == "secret-manager" and settings.security:
        roles: tuple[Role, ...] = ("scheduler", "worker")
        lines += [f"secret {project} {secret_id(cluster, identity, role)}" for role in roles]
    lines.append(f"machines {project} ({mine}) AND (status != STOPPING)")
    return "\n".join(lines)


def _network_project(settings: Settings, project: str) -> str:
    """Return the project that the network, and with it its firewall rules, belong to."""
    overridden = settings.instance_overrides.get("networkInterfaces")
    named: Mapping[str, Any] = {"network": settings.network, "subnetwork": settings.subnetwork}
    if isinstance(overridden, list | tuple) and overridden and isinstance(overridden[0], Mapping):
        named = overridden[0]
    words = str(named.get("subnetwork") or named.get("network") or "").split("/")
    return words[words.index("projects") + 1] if "projects" in words[:-1] else project
