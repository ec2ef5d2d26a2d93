"""What a cluster has to find out before its first machine.

Owns the look-ups: credentials, project, certificates, which zones offer the machine types, and
that no other cluster has this name. Nothing is created in the cloud here, so that whatever goes
wrong costs nothing. What is found out of a cluster that runs already is in `reunion`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from distributed.security import Security

from dask_gce import names
from dask_gce.addresses import reach_everybody
from dask_gce.blueprint import Blueprint
from dask_gce.boot.dask_config import changed_configuration
from dask_gce.boot.environment import Environment
from dask_gce.boot.resolution import resolve
from dask_gce.client import client_mark, current_user
from dask_gce.cluster_records import ClusterRecord
from dask_gce.compute import Compute
from dask_gce.credentials import discover_project, load_credentials
from dask_gce.errors import APIError, NotFound, PermissionDenied, SettingsError
from dask_gce.fit import check_fit
from dask_gce.gpus import check_gpus, complete_for_gpus
from dask_gce.hardware import check_hardware, check_image, doubt_architecture
from dask_gce.images import architecture_of
from dask_gce.inventory import list_clusters
from dask_gce.obtainability import ask_for_advice, order, zones_like
from dask_gce.placement import Location, MachineShape, Placement
from dask_gce.reach.firewall import Firewall
from dask_gce.reach.firewall_needs import Needs
from dask_gce.reach.firewall_rules import Mark, Network
from dask_gce.reach.ingress import find_clients
from dask_gce.reach.networks import survey
from dask_gce.reach.route import Route, choose_route, named_network
from dask_gce.reach.surroundings import look_around
from dask_gce.settings import Settings
from dask_gce.startup import Tls
from dask_gce.trust import client_tls, establish_trust

logger = logging.getLogger(__name__)

#: Seconds that one call may take, with all its repeats.
CALL_TIMEOUT = 180.0

#: Seconds that a cluster which ends with its client may be without one, unless a setting says
#: otherwise.
NO_CLIENT_TIMEOUT = 600.0


@dataclass(frozen=True)
class Preparation:
    """What a cluster starts from.

    Parameters
    ----------
    compute : Compute
        The Compute API; to be closed by whoever holds this.
    blueprint : Blueprint
        How the cluster's machines are made.
    schedulers : Placement
        Where the scheduler may be.
    workers : Placement
        Where workers may be.
    route : Route
        Which way leads from here to the scheduler.
    firewall : Firewall
        The cluster's firewall rules, of which none is made yet.
    security : distributed.security.Security
        The client's side of the cluster's security.
    client_tls : Tls or None
        The same as PEM text; None for plain TCP.
    order : str
        In which order the places are tried and why, in words; empty for that of the settings.
    warnings : tuple of str
        What does not keep the cluster from being made, but may not be meant so.
    """

    compute: Compute
    blueprint: Blueprint
    schedulers: Placement
    workers: Placement
    route: Route
    firewall: Firewall
    security: Security = field(repr=False)
    client_tls: Tls | None = field(default=None, repr=False)
    order: str = ""
    warnings: tuple[str, ...] = ()


async def open_compute(settings: Settings) -> Compute:
    """Make the client of the Compute API that a cluster's settings ask for.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.

    Returns
    -------
    Compute
        The Compute API, to be closed by the caller; it begins to import Google's library.

    Raises
    ------
    CredentialsError
        If there are no credentials or no project.
    """
    credentials = await asyncio.to_thread(load_credentials, settings)
    project = await asyncio.to_thread(discover_project, settings)
    compute = Compute(
        project,
        endpoint=settings.api_endpoint,
        credentials=credentials,
        threads=settings.api_connections,
        rate=settings.api_rate,
        # A single call does not outlast the wait that it is part of.
        call_timeout=min(CALL_TIMEOUT, settings.start_timeout),
    )
    # Importing Google's library takes a second, which the rest of the work can use.
    compute.preload()
    return compute


async def prepare(
    compute: Compute,
    settings: Settings,
    cluster: str,
    *,
    detached: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Preparation:
    """Find out all that a cluster needs.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    settings : Settings
        The cluster's settings.
    cluster : str
        The cluster's name.
    detached : bool
        Whether the cluster is to outlive this process.
    tell : callable
        Told of what takes time, in a sentence; in another thread too.

    Returns
    -------
    Preparation
        What was found.

    Raises
    ------
    SettingsError
        If no zone offers the machine types, if a cluster of that name exists, if the user's own
        certificates cannot be used, or if the environment cannot be made.
    GCEError
        If Compute Engine does not answer or refuses.
    """
    if settings.no_client_timeout is None:
        settings = replace(settings, no_client_timeout=math.inf if detached else NO_CLIENT_TIMEOUT)
    lifetime = settings.max_lifetime
    # Before the certificates, which are to last a little longer.
    expires = None if lifetime == math.inf else int(time.time() + lifetime)
    trust = await asyncio.to_thread(
        establish_trust, settings.security, cluster, max_lifetime=lifetime
    )
    if settings.name is not None:
        await _check_that_name_is_free(compute, cluster)
    (schedulers, workers, why), image, (route, clients), found = await side_by_side(
        find_places(compute, settings),
        _look_up_image(compute, settings),
        find_way(compute, settings),
        survey(compute, settings),
    )
    check_hardware(settings, schedulers, workers)
    check_gpus(settings, schedulers, workers)
    settings = complete_for_gpus(settings, schedulers, workers)
    check_fit(settings, schedulers, workers)
    check_image(settings, image, [*schedulers, *workers])
    environment = await asyncio.to_thread(
        resolve, settings.environment, runtime=settings.runtime, tell=tell
    )
    blueprint = Blueprint(
        settings=settings,
        project=compute.project,
        cluster=cluster,
        identity=uuid.uuid4().hex,
        owner=names.label_value(await asyncio.to_thread(current_user)),
        client=await asyncio.to_thread(client_mark, detached),
        expires=expires,
        tls=trust.machines,
        environment=environment,
        configuration=changed_configuration(),
    )
    mark = Mark(cluster, blueprint.identity, blueprint.owner, blueprint.client, expires)
    needs = Needs(settings, compute.project, mark, found, clients)
    warnings = [
        doubt_architecture(settings, [*schedulers, *workers]),
        _describe_open_door(settings, route),
        _describe_left_out(environment),
        *_describe_blockers(needs),
    ]
    for warning in filter(None, warnings):
        logger.warning("%s", warning)
    return Preparation(
        compute,
        blueprint,
        Placement(schedulers),
        Placement(workers),
        route,
        Firewall(compute, needs),
        trust.client,
        await asyncio.to_thread(client_tls, trust.client),
        why,
        tuple(filter(None, warnings)),
    )


async def side_by_side(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Let look-ups go on at the same time; where one fails, the others end.

    Parameters
    ----------
    *works : coroutine
        The look-ups.

    Returns
    -------
    list
        What they return.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def find_way(compute: Compute, settings: Settings) -> tuple[Route, tuple[str, ...]]:
    """Find out which way leads to a scheduler, and whom the firewall has to let in for it.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    settings : Settings
        The cluster's settings.

    Returns
    -------
    route : Route
        The way, and why it is this one.
    clients : tuple of str
        Ranges of addresses.
    """
    route = await find_route(compute, settings)
    return route, await find_clients(settings, route)


async def find_route(compute: Compute, settings: Settings) -> Route:
    """Find out which way leads from this process to a scheduler.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    settings : Settings
        The cluster's settings.

    Returns
    -------
    Route
        The way, and why it is this one.
    """
    here = await look_around(settings) if settings.connect == "auto" else None
    network = named_network(settings, compute.project)
    if here is not None and network is None:
        network = await _look_up_network(compute, settings)
    return choose_route(settings, project=compute.project, network=network, here=here)


def _describe_open_door(settings: Settings, route: Route) -> str:
    """Say so where everybody may knock at the scheduler's door."""
    ranges = settings.allow_ingress_from or ()
    if not (settings.firewall and route.kind == "external" and reach_everybody(ranges)):
        return ""
    guarded = "guard" if settings.security else "do not guard (security=False)"
    return (
        f"allow_ingress_from = {', '.join(ranges)}: the whole Internet reaches the scheduler's "
        f"port, which certificates {guarded}, and its dashboard, which asks for nothing. Name your "
        "own address."
    )


def _describe_blockers(needs: Needs) -> list[str]:
    """Say so where a rule of somebody else's keeps out what the cluster's own would let in."""
    # No refusal: a policy of the organisation, which is not seen here, may let it in all the same.
    return [
        f"Firewall rule {blocker} keeps out {need}. A rule of the cluster's own does not help "
        "against it; let whoever made it change it: dask gce check has more."
        for need in needs
        if (blocker := needs.blocker(need))
    ]


async def _look_up_network(compute: Compute, settings: Settings) -> Network | None:
    """Return the network of the subnetwork that settings name; None if it may not be looked at."""
    *parents, name = str(settings.subnetwork).split("/")
    owner = parents[parents.index("projects") + 1] if "projects" in parents[:-1] else None
    region = (
        parents[parents.index("regions") + 1]
        if "regions" in parents[:-1]
        else names.region_of(settings.zone[0])
    )
    try:
        found = await compute.get_subnetwork(region, name, owner)
    except APIError as error:
        logger.info("The network of subnetwork %s is not known: %s", settings.subnetwork, error)
        return None
    path = re.search(r"projects/([^/]+)/global/networks/([^/]+)$", str(found.get("network")))
    return None if path is None else Network(path[1], path[2])


def _describe_left_out(environment: Environment | None) -> str:
    """Say so where not all that is installed here comes to the machines."""
    if environment is None or not environment.left_out:
        return ""
    packages = "; ".join(f"{name} ({reason})" for name, reason in environment.left_out.items())
    return f"environment: these packages are left out of the machines: {packages}"


async def _look_up_image(compute: Compute, settings: Settings) -> dict[str, Any]:
    """Return what is known of the boot image, unless it is one of Google's own."""
    image = settings.source_image
    if architecture_of(image) is not None:
        return {}
    owner, _, name = image.rpartition("global/images/")
    project = owner.strip("/").rpartition("/")[2] or compute.project
    family = name.startswith("family/")
    if not family and project != compute.project:
        return {}
    with contextlib.suppress(PermissionDenied):
        # Who may use an image need not be allowed to look at it.
        try:
            if family:
                return await compute.get_image_from_family(project, name.rpartition("/")[2])
            return await compute.get_image(name)
        except NotFound as error:
            raise SettingsError(
                f"source_image = {image!r}: project {project} has no such "
                f"{'family of images' if family else 'image'}. See those it has: gcloud compute "
                f"images list --no-standard-images --project {project}",
                key="source_image",
            ) from error
    return {}


async def _check_that_name_is_free(compute: Compute, cluster: str) -> None:
    """Refuse a name that is taken: nobody could tell the two clusters apart."""
    # Those that end may be the last of a cluster that was closed a moment ago.
    found = [each for each in (await list_clusters(compute, cluster)).clusters if _is_there(each)]
    if not found:
        return
    one = found[0]
    raise SettingsError(
        f"name = {cluster!r}: a cluster of this name has {len(one.machines)} instances in project "
        f"{compute.project}, for example {one.machines[0].name}; its owner is "
        f"{one.owner or 'unknown'}. Choose another name, connect to it "
        f"(GCECluster.from_name({cluster!r})), or delete it: dask gce delete {cluster} "
        f"--project {compute.project}",
        key="name",
    )


def _is_there(record: ClusterRecord) -> bool:
    return any(machine.on for machine in record.machines)


async def find_places(
    compute: Compute, settings: Settings
) -> tuple[list[Location], list[Location], str]:
    """Return where machines may be, in the order in which that is tried.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    settings : Settings
        The cluster's settings.

    Returns
    -------
    schedulers : list of Location
        For the scheduler: the zones that are best for the workers come first, for it stays where it
        is while they come and go.
    workers : list of Location
        For workers.
    why : str
        Which order that is and why, in words; empty where nothing was to be chosen.

    Raises
    ------
    SettingsError
        If no zone offers the machine types.
    """
    (schedulers, workers), advice = await side_by_side(
        find_locations(compute, settings), ask_for_advice(compute, settings)
    )
    ordered, why = order(workers, advice)
    if ordered != workers:
        schedulers = zones_like(schedulers, ordered)
    return schedulers, ordered, why


async def find_locations(
    compute: Compute, settings: Settings
) -> tuple[list[Location], list[Location]]:
    """Return where the scheduler may be, and where workers may be.

    A zone counts before a machine type, so that a cluster stays in the first zone for as long as
    that has any of the types to give.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    settings : Settings
        The cluster's settings.

    Returns
    -------
    schedulers : list of Location
        For the scheduler, the preferred one first.
    workers : list of Location
        For workers.

    Raises
    ------
    SettingsError
        If no zone offers the machine types.
    """
    roles = (settings.scheduler_machine_type, settings.worker_machine_type)
    wanted = [(zone, name) for zone in settings.zone for name in dict.fromkeys(sum(roles, ()))]
    answers = await asyncio.gather(
        *(compute.get_machine_type(zone, name) for zone, name in wanted), return_exceptions=True
    )
    shapes: dict[tuple[str, str], MachineShape] = {}
    missing: APIError | None = None
    for place, answer in zip(wanted, answers, strict=True):
        if not isinstance(answer, BaseException):
            shapes[place] = MachineShape.parse(answer)
        # 404 for the machine type; 400 for a zone that does not exist.
        elif isinstance(answer, APIError) and answer.status in (400, 404):
            missing = answer
        else:
            raise answer
    schedulers, workers = (
        [
            Location(zone, shapes[zone, name])
            for zone in settings.zone
            for name in names_of_role
            if (zone, name) in shapes
        ]
        for names_of_role in roles
    )
    remedy = ""
    if not settings.allow_cross_zone:
        if schedulers and workers:
            remedy = " in one zone (allow_cross_zone would do with less)"
        zones = {each.zone for each in schedulers} & {each.zone for each in workers}
        schedulers = [each for each in schedulers if each.zone in zones]
        workers = [each for each in workers if each.zone in zones]
    if schedulers and workers:
        return schedulers, workers
    types = " and ".join(sorted({" or ".join(names_of_role) for names_of_role in roles}))
    raise SettingsError(
        f"zone = {', '.join(settings.zone)}: none offers {types}{remedy}: {missing}\n"
        f"See which zones do: gcloud compute machine-types list "
        f"--filter='name=({' '.join(settings.worker_machine_type)})'",
        key="zone",
    ) from missing
