"""The parts of a plan: requests, machines, firewall rules, addresses and quotas, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dask_gce.cost.charges import Price

__all__ = [
    "PlannedAddress",
    "PlannedMachine",
    "PlannedQuota",
    "PlannedRequest",
    "PlannedRule",
]


@dataclass(frozen=True)
class PlannedRequest:
    """One request that a start makes.

    Parameters
    ----------
    method : str
        The HTTP method.
    path : str
        The path below the root of its API.
    body : mapping
        The request body in API JSON. Where it would hold a private key it says whose.
    purpose : str
        What it is for, in words.
    query : mapping of str to str
        The query, but for the ID that makes a request safe to repeat.
    service : str
        The API.
    """

    method: str
    path: str
    body: Mapping[str, Any] = field(repr=False)
    purpose: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    service: str = "compute"

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Its fields, by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class PlannedMachine:
    """One machine that there would be.

    Parameters
    ----------
    name : str
        Its name, which a start would draw anew.
    role : {"scheduler", "worker"}
        What it is for.
    zone : str
        Where it is asked for first.
    machine_type : str
        Its machine type.
    cores : int
        Its vCPUs.
    memory : int
        Its memory in bytes.
    gpus : int
        How many GPUs it has.
    spot : bool
        Whether Compute Engine may take it away at any time.
    workers : int
        How many Dask workers it runs.
    hourly : Price
        What it costs an hour, by list prices.
    """

    name: str
    role: str
    zone: str
    machine_type: str
    cores: int
    memory: int
    gpus: int
    spot: bool
    workers: int
    hourly: Price

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Its fields, by name.
        """
        return {**asdict(self), "hourly": self.hourly.to_json()}


@dataclass(frozen=True)
class PlannedRule:
    """One firewall rule that there would be.

    Parameters
    ----------
    name : str
        Its name.
    project : str
        The project that has the network.
    network : str
        The network's name.
    lets_in : str
        Who is let in to what, in words.
    body : mapping
        The rule in API JSON.
    """

    name: str
    project: str
    network: str
    lets_in: str
    body: Mapping[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Its fields, by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class PlannedAddress:
    """Addresses of the same kind, of the machines of one role.

    Parameters
    ----------
    role : {"scheduler", "worker"}
        Whose they are.
    kind : {"internal", "external"}
        Whether they are addresses of the network, or of the Internet.
    count : int
        How many there are.
    where : str
        The network or subnetwork, as the request names it.
    name : str
        The DNS name that leads to it; empty where it takes none.
    """

    role: str
    kind: str
    count: int
    where: str
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Its fields, by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class PlannedQuota:
    """What all machines together count for one quota, and what there is of it.

    Parameters
    ----------
    metric : str
        The quota's name, for example ``"CPUS"``.
    region : str
        The region it counts in, or ``"global"``.
    needed : float
        What the machines count.
    limit : float or None
        How much the project may use; None where that is not known.
    usage : float or None
        How much it uses already; None where that is not known.
    there : float
        What of `needed` there is already, of a cluster that runs: it is part of `usage`.

    Examples
    --------
    >>> PlannedQuota("CPUS", "us-central1", 64, limit=72, usage=16).fits
    False
    >>> PlannedQuota("CPUS", "us-central1", 64, limit=72, usage=16, there=8).fits
    True
    >>> print(PlannedQuota("CPUS", "us-central1", 64).fits)
    None
    """

    metric: str
    region: str
    needed: float
    limit: float | None = None
    usage: float | None = None
    there: float = 0.0

    @property
    def fits(self) -> bool | None:
        """Whether there is room for all; None where that is not known."""
        if self.limit is None:
            return None
        # What is there needs no further room, even where more is used than may be.
        lacking = self.needed - self.there
        return lacking <= 0 or (self.usage or 0.0) + lacking <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Its fields, by name, and whether it fits.
        """
        return {**asdict(self), "fits": self.fits}
