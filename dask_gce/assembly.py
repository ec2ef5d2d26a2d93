"""How a cluster comes by its machines: made anew, or found where another process has made them.

Owns the first requests, the connection file, and who is told what of the machines. What has to be
found out first is in `preparation` and `reunion`; what is done later about the plan in `scaling`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Literal, TypeVar

from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.boot.shipping import ship
from dask_gce.cluster_secrets import ClusterSecrets
from dask_gce.compute import Compute
from dask_gce.connection_content import Connection
from dask_gce.connections import (
    connection_path,
    delete_connection,
    load_connection,
    save_connection,
)
from dask_gce.credentials import discover_project
from dask_gce.errors import GCEError, SettingsError, StartTimeout
from dask_gce.fleet import Fleet
from dask_gce.guarding import GuardedCluster, all_of
from dask_gce.instance import build_insert
from dask_gce.inventory import list_clusters
from dask_gce.placement import Location
from dask_gce.preparation import Preparation, open_compute, prepare, side_by_side
from dask_gce.private_files import hold_folder
from dask_gce.quota import QuotaView
from dask_gce.reach.approach import Approach
from dask_gce.reunion import Reunion, as_instance, check_endpoint, rejoin
from dask_gce.scheduler import GCEScheduler
from dask_gce.secret_calls import SecretPlan, latest_end
from dask_gce.services import load_services
from dask_gce.settings import Settings
from dask_gce.sweeper import sweep_at_start
from dask_gce.trust import end_of
from dask_gce.worker import GCEWorker

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CreateMode = Literal["create", "connect", "create-or-connect"]

#: Seconds between looks whether the workers on the scheduler's machine have arrived.
ARRIVAL_PAUSE = 0.05

#: Seconds between attempts to be the only one who makes a cluster.
ALONE_PAUSE = 0.1


class AssembledCluster(GuardedCluster):
    """A cluster that gets its machines.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str
        The cluster's name.
    create_mode : {"create", "connect", "create-or-connect"}
        Whether to make machines, to find them, or what is possible.
    shutdown_on_close : bool or None
        Whether closing deletes them; None: if they were made here.
    joinable : bool
        Whether others can connect also to machines that closing deletes.
    **options
        What SpecCluster takes.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        create_mode: CreateMode = "create",
        shutdown_on_close: bool | None = None,
        joinable: bool = False,
        **options: Any,
    ) -> None:
        self._joinable = joinable
        self._mode = _check_mode(create_mode, settings)
        self._ends_by_default = shutdown_on_close is None
        # Whether another process has made the machines.
        self._joined = create_mode == "connect"
        # Whether all is there; until then whatever ends a cluster that is being made deletes it.
        self._complete = False
        # The certificates in Secret Manager; None if they are not there.
        self._secrets: ClusterSecrets | None = None
        # Removes the connection file; None as long as there cannot be one.
        self._forget: Callable[[], bool] | None = None
        ends = create_mode == "create" if shutdown_on_close is None else shutdown_on_close
        super().__init__(settings, name, shutdown_on_close=ends, **options)

    @property
    def shutdown_on_close(self) -> bool:
        """Whether closing, and the interpreter's exit, end the cluster for everybody."""
        return self._shutdown_on_close

    @shutdown_on_close.setter
    def shutdown_on_close(self, ends: bool) -> None:
        self._shutdown_on_close = ends
        self._settle_exit()

    def _settle_exit(self) -> None:
        """Have the interpreter's exit do what closing would, once there is a cluster."""
        if self._complete and self._fleet is not None and self._prepared is not None:
            self._fleet.delete_at_exit = self.shutdown_on_close
            self._prepared.firewall.delete_at_exit = self.shutdown_on_close

    @property
    def _detached(self) -> bool:
        """Whether it is not over when this process is, as others may use it."""
        stays = not (self._ends_by_default or self.shutdown_on_close)
        return stays or self._mode != "create"

    async def _assemble(self) -> None:
        """Find out what is needed, then ask for the first machines or find them."""
        if self._mode == "connect":
            await self._join(await self._load_connection())
            return
        async with self._alone():
            await self._find_or_make()

    async def _find_or_make(self) -> None:
        compute = await open_compute(self.settings)
        try:
            if self._mode == "create-or-connect" and await self._is_there(compute):
                connection = await self._load_connection(compute.project)
                self._joined = True
            else:
                detached = self._detached
                prepared = await prepare(
                    compute, self.settings, self.name, detached=detached, tell=self._log
                )
                # With what follows from the machines that were found, as the number of their GPUs.
                self.settings = prepared.blueprint.settings
                await self._learn_prices(prepared)
                self._heed_limit(prepared)
                self._wanted = max(self._wanted, self._local_count)
                if self._ends_by_default:
                    self.shutdown_on_close = True
                if detached or self._joinable:
                    # On record before the first machine is.
                    await self._record(prepared)
                self._prepared = prepared
        finally:
            if self._prepared is None:
                await compute.close()
        if self._joined:
            await self._join(connection)
        else:
            await self._keep_secrets(prepared)
            self._begin(prepared)
            if self.settings.sweep_on_start:
                self._spawn(self._sweep(prepared))

    async def _sweep(self, prepared: Preparation) -> None:
        """Delete what earlier clusters of this user have left, beside the start."""

        def tell(what: str) -> None:
            self.events.note(self.name, "swept", what)
            self._log(f"Swept: {what}")

        await sweep_at_start(prepared.compute, self.settings, prepared.blueprint.identity, tell)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep others of this user from making the same cluster until the cloud shows this one."""
        if self._mode == "create":
            yield
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.start_timeout
        project = await asyncio.to_thread(discover_project, self.settings)
        folder = connection_path(self.name, project).parent
        while (held := await _in_thread(hold_folder, folder, undo=_let_folder_go)) is None:
            if loop.time() > deadline:
                raise GCEError(
                    f"Another process has been making or joining a cluster of project {project} "
                    f"for {self.settings.start_timeout:g} s (start_timeout), and {self.name} waits "
                    "for it."
                )
            await asyncio.sleep(ALONE_PAUSE)
        try:
            yield
            await self._until_shown()
        finally:
            _let_folder_go(held)

    async def _until_shown(self) -> None:
        """Wait until a list of the machines shows the scheduler's, or there will be none."""
        fleet = self._fleet
        while not self._joined and fleet is not None and self._scheduler.failure is None:
            member = fleet.members.get(self._scheduler.name)
            if member is None or member.failure is not None or member.instance is not None:
                return
            await asyncio.sleep(ARRIVAL_PAUSE)

    async def _is_there(self, compute: Compute) -> bool:
        inventory = await list_clusters(compute, self.name)
        return any(machine.on for record in inventory.clusters for machine in record.machines)

    # -- making -----------------------------------------------------------------------------------

    def _begin(self, prepared: Preparation) -> None:
        """Ask for the scheduler's machine and for those of the first workers, side by side."""
        fleet = self._lay_out(prepared)
        location = prepared.schedulers.locations[0]
        self._log(
            f"Starting the scheduler of {self.name}: {location.machine_type} in {location.zone}, "
            f"project {prepared.blueprint.project}"
        )
        machines = self._machines_for(self._wanted, adapting=False)
        self._check_first(prepared, machines)
        self._tell_estimate(prepared, machines)
        self._watch(fleet)
        self._target, self._untold = machines, True
        self._fill()
        self._correct_state()

    def _lay_out(self, prepared: Preparation) -> Fleet:
        """Settle where the scheduler will be, and with it where its workers can be."""
        location = prepared.schedulers.locations[0]
        name = names.instance_name(self.name, "scheduler")
        fleet = self._prepare_fleet(prepared, name, location, moved=self._follow_scheduler)
        # A worker that could not even be asked for is better found out before the scheduler runs.
        address = self._scheduler.contact_address
        build_insert(prepared.blueprint.worker("worker", self._choose_location(), address))
        return fleet

    async def _keep_secrets(self, prepared: Preparation) -> None:
        """Bring the certificates to where machines look for them, before the first does."""
        blueprint = prepared.blueprint
        if not blueprint.keeps_secrets:
            return
        self._secrets = await self._open_secrets(blueprint)
        await self._secrets.create(await self._plan_secrets(prepared))

    async def _plan_secrets(self, prepared: Preparation) -> SecretPlan:
        blueprint = prepared.blueprint
        account = str(self.settings.service_account)
        if account == "default":
            account = await _find_default_account(prepared.compute)
        return SecretPlan(
            bundles=blueprint.tls,
            account=account,
            regions=sorted({names.region_of(zone) for zone in self.settings.zone}),
            labels=blueprint.labels("scheduler"),
            end=latest_end(blueprint.expires, end_of(*blueprint.tls.values())),
            # It may be tried in one place after the other.
            patience=self.settings.start_timeout * len(prepared.schedulers.locations),
        )

    async def _settle_down(self, prepared: Preparation) -> None:
        """Make what outlives a client, now that there is a machine that removes it at its end."""
        if self._secrets is None:
            await self._open_firewall(prepared)
        else:
            await side_by_side(self._open_firewall(prepared), self._secrets.prolong())

    async def _remove_the_rest(self) -> None:
        works: list[Awaitable[None]] = [super()._remove_the_rest()]
        if self._secrets is not None:
            works.append(self._secrets.delete())
        await all_of(works)

    async def _open_secrets(self, blueprint: Blueprint) -> ClusterSecrets:
        services = await asyncio.to_thread(load_services, self.settings, blueprint.project)
        return ClusterSecrets(services, self.name, blueprint.identity, exist=self._joined)

    def _prepare_fleet(
        self, prepared: Preparation, scheduler: str, location: Location, *, moved: Any
    ) -> Fleet:
        blueprint, settings = prepared.blueprint, self.settings
        self.security = prepared.security
        self.events.note(self.name, "route", str(prepared.route))
        if prepared.order:
            self.events.note(self.name, "ordered", prepared.order)
        self._log(f"The way to the scheduler: {prepared.route}")
        limit = settings.max_workers
        here = settings.workers_on_scheduler
        self._fleet = fleet = Fleet(
            prepared.compute,
            self.name,
            blueprint.identity,
            events=self.events,
            max_workers=math.inf if limit is None else (limit - here) // blueprint.processes,
            # What is half made is worth nothing, however long the whole is to stay.
            delete_at_exit=not self._joined,
            before_exit=None if self._secrets is None else self._secrets.delete_now,
            on_exit=partial(_abandon, weakref.ref(self), self._forget),
            changed=self._watcher.disturb,
            others=self._welcome if self._shared else None,
            zones=settings.zone if self._shared and settings.allow_cross_zone else (),
            scrubs=bool(blueprint.tls) and settings.secrets == "metadata",
            spending=self._spending,
            quota=QuotaView(
                prepared.compute,
                {
                    each.machine_type: each.shape
                    for each in (*prepared.schedulers.locations, *prepared.workers.locations)
                },
            ),
        )
        if self._secrets is not None:
            self._secrets.hand_over()
        self.scheduler = GCEScheduler(
            name=scheduler,
            fleet=fleet,
            blueprint=blueprint,
            placement=prepared.schedulers,
            location=location,
            approach=Approach(
                prepared.route,
                settings,
                blueprint.project,
                security=prepared.security,
                note=self.events.note,
            ),
            moved=moved,
            explain=prepared.firewall.explain_missing,
            admit=None if self._joined else partial(self._settle_down, prepared),
        )
        self._scheduler.failure = self._closed_off
        self.scheduler_spec = {"cls": GCEScheduler, "options": {}}
        self.new_spec = {"cls": GCEWorker, "options": {"fleet": fleet, "blueprint": blueprint}}
        if blueprint.suffixes:
            self.new_spec["group"] = list(blueprint.suffixes)
        return fleet

    async def _ship_packages(self) -> None:
        """Send the scheduler the packages that no index has; workers get them from there."""
        prepared = self._prepared
        environment = None if prepared is None else prepared.blueprint.environment
        if environment is not None:
            await ship(
                self.scheduler_comm,
                environment.wheels,
                timeout=self.settings.start_timeout,
                tell=self._log,
            )

    async def _await_local_workers(self) -> None:
        """Wait for the workers on the scheduler's own machine: it is no use without them."""
        fleet, timeout = self._fleet, self.settings.worker_start_timeout
        if fleet is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        wanted, name = self._local_count, self._scheduler.name
        while (count := self._registered().get(name, 0)) < wanted:
            if self._lost is not None:
                raise self._lost
            if loop.time() > deadline:
                what = f"only {count} of its {wanted} workers registered within {timeout:g} s"
                raise await fleet.explain(name, StartTimeout, what)
            await asyncio.sleep(ARRIVAL_PAUSE)

    # -- finding ----------------------------------------------------------------------------------

    async def _load_connection(self, project: str | None = None) -> Connection:
        project = project or self.settings.project
        connection = await asyncio.to_thread(load_connection, self.name, project)
        check_endpoint(self.settings, connection)
        return connection

    async def _join(self, connection: Connection) -> None:
        """Take over the machines of a cluster that runs."""
        # The way to it is the reader's own: who made it may have been somewhere else.
        self.settings = settings = connection.restore_settings().with_way_of(self.settings)
        await self._share()
        self._forget = _forgetting(connection)
        compute = await open_compute(settings)
        try:
            reunion = await rejoin(compute, settings, connection)
            self._prepared = reunion.prepared
        finally:
            if self._prepared is None:
                await compute.close()
        if reunion.prepared.blueprint.keeps_secrets:
            # For whoever ends the cluster.
            self._secrets = await self._open_secrets(reunion.prepared.blueprint)
        await self._learn_prices(reunion.prepared)
        await self._open_firewall(reunion.prepared)
        self._take_over(reunion)

    def _take_over(self, reunion: Reunion) -> None:
        name, location = reunion.scheduler.name, reunion.location
        fleet = self._prepare_fleet(reunion.prepared, name, location, moved=None)
        names.note_used([name])
        fleet.adopt(self._scheduler.spec, as_instance(reunion.scheduler), self._scheduler.timeout)
        self._log(f"Connecting to {self.name}: its scheduler is {name} in {location.zone}")
        if reunion.declared:
            self._log(
                f"{self.name} is declared with {reunion.declared.capitalize()}, which makes again "
                "what is deleted from here. To end it for good: terraform destroy"
            )
        self._watch(fleet)
        for machine, place in reunion.workers.items():
            self._plan_machine(fleet, as_instance(machine), place)
        self._target = len(self.worker_spec)
        self._correct_state()

    # -- the connection file ----------------------------------------------------------------------

    async def _record(self, prepared: Preparation) -> None:
        """Write the connection file, by which others can join from now on."""
        blueprint = prepared.blueprint
        connection = Connection(
            cluster=self.name,
            project=blueprint.project,
            identity=blueprint.identity,
            owner=blueprint.owner,
            client_tls=prepared.client_tls,
            worker_tls=blueprint.tls.get("worker"),
            settings=self.settings.dump(),
            environment=blueprint.environment,
        )
        await self._share()
        self._untold = True
        self._forget = _forgetting(connection)
        try:
            await _in_thread(save_connection, connection)
        except GCEError:
            self._forget = None
            raise

    async def _forget_connection(self) -> None:
        """Remove the connection file of a cluster that is no more."""
        if self._forget is None:
            return
        try:
            await asyncio.to_thread(self._forget)
        except GCEError as error:
            # The machines are gone, which is what matters more.
            logger.error("%s", error)


async def _in_thread(
    work: Callable[[T], R], subject: T, *, undo: Callable[[R], object] | None = None
) -> R:
    """Run what blocks in a thread. It goes on there when this is cancelled, and is waited for."""
    working = asyncio.ensure_future(asyncio.to_thread(work, subject))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        if working.exception() is None and undo is not None:
            undo(working.result())
        raise


async def _find_default_account(compute: Compute) -> str:
    account = (await compute.get_project()).get("defaultServiceAccount")
    if not account:
        raise SettingsError(
            f"service_account = 'default': project {compute.project} has no such account, so no "
            "machine could read the certificates (secrets = 'secret-manager'). Name one of: "
            f"gcloud iam service-accounts list --project {compute.project}",
            key="service_account",
        )
    return str(account)


def _let_folder_go(held: int | None) -> None:
    if held is not None:
        os.close(held)


def _forgetting(connection: Connection) -> Callable[[], bool]:
    # Without the connection itself, which holds keys.
    return partial(delete_connection, connection.cluster, connection.project, connection.identity)


def _abandon(known: Any, forget: Any) -> None:
    """Keep distributed's own exit hook away from a cluster whose machines are deleted already."""
    cluster = known()
    if cluster is not None:
        SpecCluster._instances.discard(cluster)
        cluster.status = Status.closed
    if forget is not None:
        forget()
    if cluster is not None:
        # Its output may be closed by now.
        with contextlib.suppress(OSError, ValueError):
            cluster._tell_cost(ended=True)


def _check_mode(mode: str, settings: Settings) -> str:
    modes = ("create", "connect", "create-or-connect")
    if mode not in modes:
        raise SettingsError(
            f"create_mode = {mode!r}: must be one of {', '.join(modes)}.", key="create_mode"
        )
    if mode != "create" and settings.name is None:
        raise SettingsError(
            f"create_mode = {mode!r}: which cluster? Give its name (dask gce list shows them).",
            key="name",
        )
    return mode
