"""A cluster's plan: what a start would ask for, and what would come of it.

Owns what is said of it: as text, as a table in a notebook, and as JSON. Whoever makes one looks
things up first (`declare`); nothing is asked here.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dask.utils import format_bytes

from dask_gce.cost.charges import Price, add_up, render_dollars
from dask_gce.countdown import spell
from dask_gce.declaration.parts import (
    PlannedAddress,
    PlannedMachine,
    PlannedQuota,
    PlannedRequest,
    PlannedRule,
)
from dask_gce.declaration.requests import startup_script
from dask_gce.html_tables import render_row, render_table

__all__ = ["ClusterPlan"]

_LIMITS = {
    "idle_timeout": "after {} without work",
    "no_client_timeout": "after {} without a client",
    "max_lifetime": "{} after it was made",
}


@dataclass(frozen=True)
class ClusterPlan:
    """What a start of a cluster would do; nothing of it has been done.

    Parameters
    ----------
    name : str
        The cluster's name.
    project : str
        Its project ID.
    requests : tuple of PlannedRequest
        The requests that change something, in their order.
    machines : tuple of PlannedMachine
        The machines, the scheduler's first.
    firewall_rules : tuple of PlannedRule
        The firewall rules that are missing.
    addresses : tuple of PlannedAddress
        The addresses of the machines.
    quota : tuple of PlannedQuota
        What the machines count for quotas.
    route : str
        Which way leads from here to the scheduler, and why.
    scheduler_address : str
        Where workers find the scheduler.
    places : mapping of str to tuple of str
        By role, the places that are tried one after the other, in words.
    order : str
        Why in this order; empty for that of the settings.
    limits : mapping of str to float
        After how many seconds the cluster ends by itself, by the setting that says so; infinity for
        never.
    warnings : tuple of str
        What would not keep the cluster from being made, but may not be meant so.
    unknown : tuple of str
        What could not be found out.
    blockers : tuple of str
        Why it could not be made; none if it could, as far as is known.

    Examples
    --------
    >>> from dask_gce import GCECluster
    >>> plan = GCECluster.plan(n_workers=4, zone="us-central1-a")  # doctest: +SKIP
    >>> [request.path for request in plan.requests]  # doctest: +SKIP
    """

    name: str
    project: str
    requests: tuple[PlannedRequest, ...] = field(repr=False)
    machines: tuple[PlannedMachine, ...] = field(repr=False)
    firewall_rules: tuple[PlannedRule, ...] = field(repr=False)
    addresses: tuple[PlannedAddress, ...] = field(repr=False)
    quota: tuple[PlannedQuota, ...] = field(repr=False)
    route: str
    scheduler_address: str
    places: Mapping[str, tuple[str, ...]] = field(repr=False)
    order: str = field(default="", repr=False)
    limits: Mapping[str, float] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()

    @property
    def estimate(self) -> Price:
        """What an hour of all machines costs, by list prices."""
        return add_up(machine.hourly for machine in self.machines)

    @property
    def startup_script(self) -> str:
        """The script that each machine runs at boot; what differs, it reads from its metadata."""
        return startup_script(self.requests)

    @property
    def feasible(self) -> bool:
        """Whether the cluster could be made, as far as is known."""
        return not self.blockers

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            The fields by name, with the estimate. No private key is in it, but what settings hold,
            such as ``env_vars``, is.
        """
        return {
            "name": self.name,
            "project": self.project,
            "feasible": self.feasible,
            "blockers": list(self.blockers),
            "warnings": list(self.warnings),
            "unknown": list(self.unknown),
            "route": self.route,
            "scheduler_address": self.scheduler_address,
            "places": {role: list(places) for role, places in self.places.items()},
            "order": self.order,
            # JSON has no word for infinity.
            "limits": {
                name: None if limit == math.inf else limit for name, limit in self.limits.items()
            },
            "machines": [machine.to_json() for machine in self.machines],
            "firewall_rules": [rule.to_json() for rule in self.firewall_rules],
            "addresses": [address.to_json() for address in self.addresses],
            "quota": [quota.to_json() for quota in self.quota],
            "estimate": self.estimate.to_json(),
            "requests": [request.to_json() for request in self.requests],
        }

    # -- in words ---------------------------------------------------------------------------------

    def _machine_rows(self) -> Iterator[list[str]]:
        """Yield a row for each kind of machine: a thousand workers are of one or two kinds."""
        kinds = Counter(
            (each.role, each.spot, each.machine_type, each.zone, each.gpus, each.workers)
            for each in self.machines
        )
        for each in self.machines:
            key = (each.role, each.spot, each.machine_type, each.zone, each.gpus, each.workers)
            if (count := kinds.pop(key, 0)) == 0:
                continue
            gpus = f", {each.gpus} GPU{'s' * (each.gpus > 1)}" if each.gpus else ""
            price = each.hourly.amount
            yield [
                f"{count} x {each.role}",
                f"{'Spot ' if each.spot else ''}{each.machine_type}",
                each.zone,
                f"{each.cores} vCPUs, {format_bytes(each.memory)}{gpus}",
                str(each.workers),
                "unknown" if price is None else render_dollars(price),
            ]

    def _quota_rows(self) -> Iterator[list[str]]:
        for each in self.quota:
            room = (
                "unknown" if each.limit is None else f"{each.usage:,.0f} of {each.limit:,.0f} used"
            )
            if each.limit is not None and each.there:
                room += f", {each.there:,.0f} by it"
            fits = {None: "", True: "fits", False: "does not fit"}[each.fits]
            yield [each.metric, each.region, f"{each.needed:,.0f}", room, fits]

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield what is said of the cluster as a whole, each with a title."""
        yield "Name", self.name
        yield "Project", self.project
        yield "Way to it", self.route
        yield "Workers find", self.scheduler_address
        yield "Places", "; ".join(self.places.get("worker", ()))
        if self.order:
            yield "Order", self.order
        yield "An hour", self._describe_price()
        ends = [
            f"{_LIMITS[name].format(spell(limit))} ({name})"
            for name, limit in self.limits.items()
            if limit < math.inf
        ]
        yield "Ends", "; ".join(ends) or "never by itself; it costs money until it is deleted"

    def _describe_price(self) -> str:
        price = self.estimate
        if price.amount is None:
            return f"unknown: no price is known of {', '.join(price.missing)}"
        without = f", without {', '.join(price.missing)}" if price.missing else ""
        return f"{price} (list prices of {price.as_of}{without})"

    def _remarks(self) -> Iterator[tuple[str, str]]:
        for kind, texts in (
            ("Blocker", self.blockers),
            ("Warning", self.warnings),
            ("Unknown", self.unknown),
        ):
            for text in texts:
                yield kind, text

    def __str__(self) -> str:
        lines = [f"Plan of cluster {self.name}: nothing has been created.", ""]
        lines += [f"{title + ':':<14}{text}" for title, text in self._facts()]
        for headings, rows in self._tables():
            if rows:
                lines += ["", *_align([headings, *rows])]
        remarks = [f"{kind}: {text}" for kind, text in self._remarks()]
        return "\n".join([*lines, *([""] if remarks else []), *remarks])

    def _tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        yield (
            ["MACHINES", "TYPE", "ZONE", "EACH HAS", "WORKERS", "PER HOUR"],
            list(self._machine_rows()),
        )
        yield (
            ["ADDRESSES", "OF", "IN", "NAME"],
            [[f"{one.count} {one.kind}", one.role, one.where, one.name] for one in self.addresses],
        )
        yield (
            ["FIREWALL RULE", "NETWORK", "LETS IN"],
            [
                [one.name, f"{one.network} ({one.project})", one.lets_in]
                for one in self.firewall_rules
            ],
        )
        yield ["QUOTA", "REGION", "NEEDED", "THERE", ""], list(self._quota_rows())
        yield (
            ["REQUEST", "PATH", "FOR"],
            [[one.method, _with_query(one), one.purpose] for one in self.requests],
        )

    def _repr_html_(self) -> str:
        facts = [render_row(title, html.escape(text)) for title, text in self._facts()]
        facts += [render_row(kind, html.escape(text)) for kind, text in self._remarks()]
        tables = [render_table(headings, rows) for headings, rows in self._tables() if rows]
        title = f"<h4>Plan of cluster {html.escape(self.name)}: nothing has been created</h4>"
        return "\n".join([title, f"<table>{''.join(facts)}</table>", *tables])


def _with_query(request: PlannedRequest) -> str:
    query = "&".join(f"{key}={value}" for key, value in request.query.items())
    return f"{request.path}?{query}" if query else request.path


def _align(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
