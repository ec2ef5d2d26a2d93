"""Finding out what a start would do: all that it looks up, and nothing that it makes.

Owns the order: what a start finds out first is found out (`preparation`), places and names are
chosen by the code that chooses the real ones, and the requests are written down instead of made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from dask_gce import names, tags
from dask_gce.assembly import AssembledCluster
from dask_gce.compute import Compute
from dask_gce.cost.charges import changed_by, charge_of
from dask_gce.countdown import NAMES
from dask_gce.declaration.cluster_plan import ClusterPlan
from dask_gce.declaration.parts import PlannedAddress, PlannedMachine, PlannedRequest
from dask_gce.declaration.quotas import plan_quotas
from dask_gce.declaration.requests import (
    insert_requests,
    placeholders,
    planned_rules,
    properties_of,
    rule_requests,
    secret_requests,
)
from dask_gce.errors import CostLimitExceeded, GCEError
from dask_gce.exit import not_at_exit
from dask_gce.instance import InstanceSpec, build_insert
from dask_gce.placement import Location, MachineShape
from dask_gce.plan import PlannedCluster
from dask_gce.preparation import Preparation, open_compute, prepare
from dask_gce.quota import QuotaView
from dask_gce.reach.firewall import Firewall
from dask_gce.reach.firewall_rules import Mark
from dask_gce.settings import Settings
from dask_gce.worker import GCEWorker

__all__ = ["declare", "declare_running"]

#: Seconds that are waited for Google's price list: somebody waits for the plan.
PRICES_WITHIN: Final = 45.0


async def declare(
    settings: Settings,
    name: str | None = None,
    *,
    detached: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> ClusterPlan:
    """Find out what a start with these settings would do. Nothing is created.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str or None
        Its name; None for that of the settings, or a new one.
    detached : bool
        Whether the cluster is to outlive this process.
    tell : callable
        Told of what takes time, in a sentence; in another thread too.

    Returns
    -------
    ClusterPlan
        What it would do.

    Raises
    ------
    SettingsError
        If no zone offers the machine types, if a cluster of that name exists, or if a setting
        cannot be what it is.
    CredentialsError
        If there are no credentials or no project.
    GCEError
        If Compute Engine does not answer, or refuses what a start cannot do without.
    """
    compute = await open_compute(settings)
    try:
        drawing = _Drawing(settings, name or settings.name or names.new_cluster_name())
        try:
            return await drawing.draw(compute, detached=detached, tell=tell)
        finally:
            drawing.discard()
    finally:
        await compute.close()


async def declare_running(cluster: AssembledCluster) -> ClusterPlan:
    """Tell what a start of a cluster as it is meant to be now would do.

    Parameters
    ----------
    cluster : AssembledCluster
        The cluster.

    Returns
    -------
    ClusterPlan
        What it would do, with the machines that it has and those that are planned.

    Raises
    ------
    GCEError
        If the cluster is closed, or something cannot be found out.
    """
    prepared = cluster._prepared
    if prepared is None and cluster.status != Status.closed:
        return await declare(cluster.settings, cluster.name, detached=cluster._detached)
    if prepared is None or cluster.scheduler is None or cluster.status == Status.closed:
        raise GCEError(
            f"Cluster {cluster.name} is closed and has no plan; GCECluster.plan(...) tells what a "
            "new one would be."
        )
    prepared = _without_keys(prepared)
    blueprint, scheduler = prepared.blueprint, cluster._scheduler
    places = {scheduler.name: scheduler.location}
    specs = [blueprint.scheduler(scheduler.name, scheduler.location)]
    for name in list(cluster.worker_spec):
        worker = cluster.workers.get(name)
        place = cluster._choose_location() if worker is None else worker.location
        places[name] = place
        specs.append(blueprint.worker(name, place, scheduler.contact_address))
    await _complete_prices(cluster, prepared, specs)
    drawn, fleet = _as_made(prepared), cluster._fleet
    there = _rules_there(prepared, drawn)
    there |= {each.name for each in specs if fleet is not None and fleet.has(each.name)}
    return await _describe(cluster, drawn, specs, places, blockers=[], there=there)


class _Drawing(AssembledCluster):
    """A cluster that is drawn, and never made: all of a start up to its first request."""

    def __init__(self, settings: Settings, name: str) -> None:
        super().__init__(settings, name, asynchronous=True)
        self.quiet = True

    async def draw(
        self, compute: Compute, *, detached: bool, tell: Callable[[str], object]
    ) -> ClusterPlan:
        """Do what a start does before its first request, and write its requests down."""
        prepared = await prepare(compute, self.settings, self.name, detached=detached, tell=tell)
        self.settings = prepared.blueprint.settings
        blockers: list[str] = []
        await self._learn_prices(prepared)
        try:
            self._heed_limit(prepared)
        except CostLimitExceeded as error:
            blockers.append(error.message)
        # With the real certificates, of which too large ones are refused.
        build_insert(prepared.blueprint.scheduler("scheduler", prepared.schedulers.locations[0]))
        self._wanted = max(self._wanted, self._local_count)
        secrets = await self._plan_secrets(prepared) if prepared.blueprint.keeps_secrets else None
        self._prepared = prepared = _without_keys(prepared)
        self._lay_out(prepared)
        machines = self._machines_for(self._wanted, adapting=False)
        try:
            if not blockers:
                self._check_first(prepared, machines)
        except CostLimitExceeded as error:
            blockers.append(error.message)
        self._target = machines
        # As many as are wanted, whatever they cost.
        PlannedCluster._fill(self)
        for name, spec in self.worker_spec.items():
            self.workers[name] = self._draw_worker(name, spec)
        drawn: list[GCEWorker] = list(self.workers.values())
        specs = [self._scheduler.spec, *(worker.spec for worker in drawn)]
        await _complete_prices(self, prepared, specs)
        places = {self._scheduler.name: self._scheduler.location}
        places.update({worker.name: worker.location for worker in drawn})
        return await _describe(self, prepared, specs, places, blockers=blockers, secrets=secrets)

    def discard(self) -> None:
        """Let go of what was drawn: there is nothing that anybody would have to end."""
        if self._fleet is not None:
            not_at_exit(self._fleet)
        self.worker_spec.clear()
        self.workers.clear()
        SpecCluster._instances.discard(self)
        self.status = Status.closed


async def _complete_prices(
    cluster: AssembledCluster, prepared: Preparation, specs: Sequence[InstanceSpec]
) -> None:
    """Read Google's price list where some machine's price is not known without."""
    if not all(cluster._book.price(charge_of(each)).complete for each in specs):
        # The table that comes with the package has no prices of Spot machines.
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(cluster._refresh_prices(prepared), PRICES_WITHIN)


def _without_keys(prepared: Preparation) -> Preparation:
    """Return what was found out, with placeholders in the place of certificates and keys."""
    blueprint = prepared.blueprint
    tls = placeholders() if blueprint.tls else {}
    return replace(prepared, blueprint=replace(blueprint, tls=tls))


def _as_made(prepared: Preparation) -> Preparation:
    """Return what is known of a cluster that runs as if it were to be made.

    Who has joined it has looked at a network that has the cluster's rules, and would make no more
    than one of their own.
    """
    blueprint, firewall = prepared.blueprint, prepared.firewall
    cluster, identity = blueprint.cluster, blueprint.identity
    own = {tags.scheduler_tag(cluster, identity), tags.cluster_tag(cluster, identity)}
    survey = firewall.needs.survey
    if survey.rules is not None:
        others = tuple(rule for rule in survey.rules if not rule.target_tags & own)
        survey = replace(survey, rules=others)
    mark = Mark(cluster, identity, blueprint.owner, blueprint.client, blueprint.expires)
    needs = replace(firewall.needs, survey=survey, mark=mark, suffix="")
    return replace(prepared, firewall=Firewall(prepared.compute, needs))


def _rules_there(prepared: Preparation, drawn: Preparation) -> set[str]:
    """Return the names of the rules that the cluster has already, as a plan has them."""
    own, seen = prepared.firewall, prepared.firewall.needs.survey.rules or ()
    # Who has joined calls their own otherwise than who has made the cluster.
    pairs = zip(own.needs, drawn.firewall.needs, strict=False)
    made = {plain.name for each, plain in pairs if each.name in own.recorded}
    return made | {rule.name for rule in seen}


async def _describe(
    cluster: AssembledCluster,
    prepared: Preparation,
    specs: Sequence[InstanceSpec],
    places: dict[str, Location],
    *,
    blockers: list[str],
    secrets: Any = None,
    there: Collection[str] = (),
) -> ClusterPlan:
    blueprint, needs = prepared.blueprint, prepared.firewall.needs
    shapes = {
        each.machine_type: each.shape
        for each in (*prepared.schedulers.locations, *prepared.workers.locations, *places.values())
    }
    first: list[PlannedRequest] = []
    later: list[PlannedRequest] = []
    if secrets is None and blueprint.keeps_secrets:
        secrets = await cluster._plan_secrets(prepared)
    if secrets is not None:
        first, later = secret_requests(
            blueprint.project, blueprint.cluster, blueprint.identity, secrets
        )
    inserts = insert_requests(specs)
    rules = planned_rules(needs)
    view = QuotaView(prepared.compute, shapes)
    quota = await plan_quotas(prepared.compute, view, specs, rules, there)
    unknown = []
    if needs.survey.obstacle is not None:
        unknown.append(f"which firewall rules there are: {needs.survey.obstacle.message}")
    if changed := changed_by(blueprint.settings.instance_overrides):
        unknown.append(
            f"what follows from {', '.join(changed)} in instance_overrides: machines and what they "
            "count for quotas are told as if that were not there; the requests have it"
        )
    if quota and all(each.limit is None for each in quota):
        unknown.append(
            "how much room quotas leave: they are shown to who has compute.regions.get and "
            "compute.projects.get, and by newer versions of the Compute API to nobody"
        )
    if hosts := sorted({each.project for each in rules} - {blueprint.project}):
        unknown.append(
            f"how many firewall rules more project {hosts[0]} may have (quota FIREWALLS): its "
            "network is used, and its quotas are not looked at"
        )
    if needs.settings.firewall and needs.missing and needs.survey.network is None:
        blockers.append(needs.unknown_network().message)
    blockers += [
        f"quota {each.metric} in {each.region}: {each.needed - each.there:,.0f} "
        f"{'more ' if each.there else ''}are needed, and "
        f"{each.usage:,.0f} of {each.limit:,.0f} are used"
        for each in quota
        if each.fits is False
    ]
    warnings = list(prepared.warnings)
    if not needs.settings.firewall and (missing := needs.explain_missing()):
        warnings.append(missing)
    return ClusterPlan(
        name=blueprint.cluster,
        project=blueprint.project,
        requests=(*first, *inserts, *rule_requests(rules), *later),
        machines=tuple(_machine(cluster, each, places[each.name].shape) for each in specs),
        firewall_rules=tuple(rules),
        addresses=tuple(_addresses(inserts, cluster._scheduler.contact_address)),
        quota=tuple(quota),
        route=str(prepared.route),
        scheduler_address=cluster._scheduler.contact_address,
        places={
            "scheduler": tuple(map(str, prepared.schedulers.locations)),
            "worker": tuple(map(str, prepared.workers.locations)),
        },
        order=prepared.order,
        limits={name: getattr(blueprint.settings, name) for name in NAMES},
        warnings=tuple(warnings),
        unknown=tuple(unknown),
        blockers=tuple(blockers),
    )


def _machine(cluster: AssembledCluster, spec: InstanceSpec, shape: MachineShape) -> PlannedMachine:
    role = spec.labels[names.ROLE_LABEL]
    added = spec.hardware.accelerator_count if spec.hardware.accelerator_type else 0
    charge = charge_of(spec)
    processes = cluster._ready.blueprint.processes
    return PlannedMachine(
        name=spec.name,
        role=role,
        zone=spec.zone,
        machine_type=spec.machine_type,
        cores=shape.cpus,
        memory=shape.memory,
        gpus=shape.gpus + added,
        spot=charge.spot,
        workers=cluster._local_count if role == "scheduler" else processes,
        hourly=cluster._book.price(charge),
    )


def _addresses(inserts: Sequence[PlannedRequest], scheduler: str) -> list[PlannedAddress]:
    """Return which addresses machines get, as the requests say."""
    host = scheduler.partition("://")[2].rpartition(":")[0]
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for request in inserts:
        fields = properties_of(request)
        role = fields["labels"][names.ROLE_LABEL]
        machines = int(request.body.get("count", 1))
        for number, interface in enumerate(fields["networkInterfaces"]):
            where = str(interface.get("subnetwork") or interface.get("network", "default"))
            name = host if role == "scheduler" and number == 0 else ""
            counts[role, "internal", where, name] += machines
            if interface.get("accessConfigs"):
                counts[role, "external", where, ""] += machines
    return [
        PlannedAddress(role, kind, count, where, name)
        for (role, kind, where, name), count in counts.items()
    ]
