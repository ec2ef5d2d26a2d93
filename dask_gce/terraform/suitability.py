"""What a fixed cluster cannot have, and what one would not expect of it.

Owns the refusals and the notes; both follow from the settings and from what was found out.
"""

from __future__ import annotations

import math
from typing import Final

from dask_gce.boot.environment import Environment
from dask_gce.countdown import spell
from dask_gce.errors import SettingsError
from dask_gce.settings import Settings

__all__ = ["MAX_NAME", "check_environment", "check_fixed", "explain"]

#: What is left of a name of 63 characters by the longest that is put behind it, a rule's.
MAX_NAME: Final = 43


def check_fixed(settings: Settings) -> None:
    """Refuse settings of which Terraform cannot make a cluster.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.

    Raises
    ------
    SettingsError
        If there are such.
    """
    if settings.name is None:
        raise SettingsError(
            "name: a fixed cluster has a name that stays; give it one, such as name='grid' "
            "(--name grid).",
            key="name",
        )
    if len(settings.name) > MAX_NAME:
        raise SettingsError(
            f"name = {settings.name!r}: a fixed cluster's name has {MAX_NAME} characters at most, "
            "for the names of its machines and rules begin with it and cannot be drawn anew.",
            key="name",
        )
    if not isinstance(settings.security, bool):
        raise SettingsError(
            "security: a fixed cluster's certificates are made with its files, or there are none; "
            "your own cannot be put there. Use security=True, or make the cluster with "
            "GCECluster(security=...).",
            key="security",
        )


def check_environment(environment: Environment | None) -> None:
    """Refuse packages that only a client could send.

    Parameters
    ----------
    environment : Environment or None
        What is installed on the machines.

    Raises
    ------
    SettingsError
        If there are such packages.
    """
    if environment is not None and environment.wheels:
        shipped = ", ".join(each.name for each in environment.wheels)
        raise SettingsError(
            "environment: a fixed cluster has no client that could send its machines what no "
            f"index has: {shipped}. Put them into an index or a container image.",
            key="environment",
        )


def explain(settings: Settings, ranges: tuple[str, ...]) -> tuple[str, ...]:
    """Return what one would not expect of such a cluster.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    ranges : tuple of str
        The addresses that are let in to the scheduler over the Internet.

    Returns
    -------
    tuple of str
        Sentences for the user.
    """
    notes = []
    ends = {
        "idle_timeout": "after {} without work",
        "no_client_timeout": "after {} without a client",
        "max_lifetime": "{} after they were made",
    }
    told = [
        f"{text.format(spell(limit))} ({key})"
        for key, text in ends.items()
        if (limit := getattr(settings, key)) not in (None, math.inf)
    ]
    if told:
        notes.append(
            f"The machines end by themselves {'; '.join(told)}. Terraform makes them again when it "
            "is applied next; with infinity (.inf) there is no such limit."
        )
    # As many as none may be Spot.
    spot = settings.spot if settings.spot_fraction > 0 else False
    if spot == "fallback":
        notes.append("Terraform does not fall back: where there are no Spot machines, it fails.")
    if spot and settings.preemption_notice:
        notes.append(
            "Spot machines are told 30 seconds ahead that they are taken away: Terraform's google "
            "provider cannot ask for two minutes (preemption_notice)."
        )
    if settings.max_hourly_cost is not None:
        notes.append("max_hourly_cost does not bind Terraform.")
    if ranges and settings.allow_ingress_from is None:
        notes.append(
            f"The scheduler lets in {', '.join(ranges)}, which is where you are now. The variable "
            "allow_ingress_from tells others."
        )
    return tuple(notes)
