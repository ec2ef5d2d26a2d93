"""A cluster's plan: which machines there should be, and which workers are on which machine.

Owns what is known: the plan itself (`worker_spec`), its target, and the names. Nothing is decided
here: how many there should be is in `scaling`, who goes and how in `retirement`, and what follows
from a failure in `replacement`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection, Coroutine
from datetime import datetime, timezone
from typing import Any, cast

from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from dask_gce import names
from dask_gce.errors import GCEError
from dask_gce.events import EventLog
from dask_gce.fleet import Fleet
from dask_gce.machine_states import MachineFacts, MachineState
from dask_gce.mix import Mix
from dask_gce.placement import Location
from dask_gce.preparation import Preparation
from dask_gce.scheduler import GCEScheduler
from dask_gce.settings import Settings
from dask_gce.state_board import StateBoard

logger = logging.getLogger(__name__)


class PlannedCluster(SpecCluster):
    """A cluster that knows what it should consist of.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str
        The cluster's name.
    **options
        What SpecCluster takes.
    """

    def __init__(self, settings: Settings, name: str, **options: Any) -> None:
        self.settings = settings
        #: What happened to the cluster's machines, oldest first.
        self.events = EventLog()
        self._board = StateBoard(self._facts_of, name)
        self.events.listen(self._board.take)
        #: What went wrong with machines of this cluster, oldest first; as many as are kept.
        self.failures: list[GCEError] = []
        # Why there is no scheduler any more. Without it nothing is worth its machine.
        self._lost: GCEError | None = None
        self._prepared: Preparation | None = None
        self._fleet: Fleet | None = None
        # Workers to start with, and machines there should be beside the scheduler's.
        self._wanted = settings.n_workers
        self._target_machines = 0
        self._plan_lock = threading.RLock()
        # Machines that are being let go: whether they were named by the user.
        self._leaving: set[str] = set()
        self._named: set[str] = set()
        self._kept: set[str] = set()
        # Machines that are not Spot, the planned ones among them and others.
        self._on_demand: set[str] = set()
        # Machines without a worker that could be asked to go.
        self._gone: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        super().__init__(name=name, **options)

    # -- what there is ----------------------------------------------------------------------------

    @property
    def _ready(self) -> Preparation:
        if self._prepared is None:
            raise GCEError(f"Cluster {self.name} has not started; await it before you scale it.")
        return self._prepared

    @property
    def plan(self) -> set[str]:
        """The names of the workers that should be there."""
        return self._workers_of(list(self.worker_spec)) | self._local_workers

    @property
    def requested(self) -> set[str]:
        """The names of the workers whose machines were asked for."""
        machines = [name for name in list(self.workers) if name in self.worker_spec]
        return self._workers_of(machines) | self._local_workers

    @property
    def _local_workers(self) -> set[str]:
        """The names of the workers on the scheduler's own machine that are there.

        Its machine sees to them. If one that is missing were requested too, Adaptive would go on
        letting it go, as one that has not arrived, instead of one that costs a machine.
        """
        if self._prepared is None or self.scheduler is None or self._lost is not None:
            return set()
        workers = list(self.scheduler_info["workers"].values())
        present = {str(worker["name"]) for worker in workers}
        suffixes = self._prepared.blueprint.local_suffixes
        return present & {self.scheduler.name + suffix for suffix in suffixes}

    @property
    def _local_count(self) -> int:
        return self.settings.workers_on_scheduler

    def _workers_of(self, machines: Collection[str]) -> set[str]:
        """Return the names of the Dask workers on machines."""
        suffixes = self._prepared.blueprint.suffixes if self._prepared else ()
        if not suffixes:
            return set(machines)
        return {name + suffix for name in machines for suffix in suffixes}

    def _machine_of(self, worker: str) -> str:
        """Return the name of the machine that a Dask worker is on."""
        if worker in self.worker_spec or worker in self.workers:
            return worker
        if self._prepared is None:
            return worker
        blueprint = self._prepared.blueprint
        machine, hyphen, number = worker.rpartition("-")
        local = self.scheduler is not None and machine == self.scheduler.name
        suffixes = blueprint.local_suffixes if local else blueprint.suffixes
        return machine if hyphen + number in suffixes else worker

    def _registered(self) -> dict[str, int]:
        """Return the machines whose workers the scheduler knows, and how many it knows."""
        found: dict[str, int] = {}
        # A copy: scale() runs in the user's thread, while workers come and go in the loop's.
        for worker in list(self.scheduler_info["workers"].values()):
            machine = self._machine_of(str(worker["name"]))
            found[machine] = found.get(machine, 0) + 1
        return found

    def _note_arrival(self, machines: Collection[str]) -> None:
        """Mark the machines ready all of whose workers have arrived."""
        if self._fleet is None:
            return
        processes = self._ready.blueprint.processes
        if processes == 1:
            for name in machines:
                self._fleet.mark_ready(name)
            return
        registered = self._registered()
        for name in machines:
            if registered.get(name, 0) >= processes:
                self._fleet.mark_ready(name)

    # -- its machines -----------------------------------------------------------------------------

    @property
    def machines(self) -> list[MachineState]:
        """The cluster's machines with their states, in the order in which they were asked for.

        Of those that failed, were lost or deleted, the last ones are among them.
        """
        return self._board.machines()

    @property
    def board(self) -> StateBoard:
        """The same states, counted: for what shows them again and again."""
        return self._board

    def summary(self) -> str:
        """Say which workers there are, and how long it took until all had come.

        Returns
        -------
        str
            For example ``"8 workers, 32 cores, 128 GB in 41 s"``: vCPUs and memory are those of
            the machines that run. The time is left out where another process has asked for them.
        """
        return self._board.summary()

    def _facts_of(self, name: str) -> MachineFacts | None:
        """Return what is known of a machine that was asked for."""
        member = None if self._fleet is None else self._fleet.members.get(name)
        if member is None or self._prepared is None:
            return None
        spec, created = member.spec, None
        role = spec.labels.get(names.ROLE_LABEL, "worker")
        place = self._prepared.schedulers if role == "scheduler" else self._prepared.workers
        shapes = (each.shape for each in place.locations if each.machine_type == spec.machine_type)
        shape = next(shapes, None)
        if member.instance is not None and member.instance.created is not None:
            created = datetime.fromtimestamp(member.instance.created, timezone.utc)
        return MachineFacts(
            role=role,
            zone=spec.zone,
            machine_type=spec.machine_type,
            cores=0 if shape is None else shape.cpus,
            memory=0 if shape is None else shape.memory,
            spot=spec.spot,
            workers=(
                self._local_count if role == "scheduler" else self._prepared.blueprint.processes
            ),
            requested=created,
        )

    # -- the plan ---------------------------------------------------------------------------------

    @property
    def _target(self) -> int:
        """How many machines there should be beside the scheduler's."""
        return self._target_machines

    @_target.setter
    def _target(self, machines: int) -> None:
        self._target_machines = machines
        processes = self._prepared.blueprint.processes if self._prepared else 1
        self._board.expect(self._local_count + machines * processes)

    def _fill(self) -> None:
        """Plan new machines up to the target."""
        while len(self.worker_spec) < self._target:
            self.worker_spec.update(self.new_worker_spec())

    def _new_worker_name(self, worker_number: int) -> str:
        return names.instance_name(self.name, "worker")

    def _trim(self, machines: int) -> None:
        """Take surplus machines out of the plan: those that have not arrived, then the newest.

        As many on demand stay as there should be of so many machines, and Spot ones beside them.
        """
        if len(self.worker_spec) <= machines:
            return
        arrived = self._registered()
        # The oldest of those that have arrived first.
        best = sorted(self.worker_spec, key=lambda name: name not in arrived)
        on_demand = [name for name in best if name in self._on_demand]
        # Those that nobody has asked for yet become whatever is missing.
        unasked = [name for name in best if name not in self.workers]
        least = self._mix.on_demand(machines)
        stay = {*on_demand[:least], *unasked[: max(0, least - len(on_demand))]}

        def rank(name: str) -> int:
            if name in self._on_demand:
                return 1 if name in arrived else 3
            return 0 if name in self.workers else 2

        others = sorted((name for name in best if name not in stay), key=rank)
        for name in others[max(0, machines - len(stay)) :]:
            self.worker_spec.pop(name, None)

    # -- Spot and on demand -----------------------------------------------------------------------

    @property
    def _mix(self) -> Mix:
        settings = self.settings
        return Mix(bool(settings.spot), settings.spot_fraction, settings.min_on_demand)

    def _count_on_demand(self) -> int:
        return sum(name in self.worker_spec for name in self._on_demand)

    def _choose_leaving(self, machines: Collection[str], count: int) -> list[str]:
        """Return the first so many of the machines whose end leaves enough on demand."""
        spare = self._mix.spare(self._count_on_demand(), len(self.worker_spec), leaving=count)
        chosen: list[str] = []
        for name in machines:
            if len(chosen) == count:
                break
            if name in self._on_demand and name in self.worker_spec:
                if spare == 0:
                    continue
                spare -= 1
            chosen.append(name)
        return chosen

    def _choose_workers_leaving(self, workers: Collection[str], like: Collection[str]) -> list[str]:
        """Return the first of the workers, of as many machines as others have."""
        machines = dict.fromkeys(map(self._machine_of, workers))
        count = len(set(map(self._machine_of, like)))
        chosen = set(self._choose_leaving(machines, count))
        return [worker for worker in workers if self._machine_of(worker) in chosen]

    @property
    def _scheduler(self) -> GCEScheduler:
        return cast(GCEScheduler, self.scheduler)

    def _choose_location(self) -> Location:
        """Return where the next worker is made, and whether it is Spot."""
        spot = self._is_next_spot()
        # Where all are short of machines, that is no reason not to ask again after a pause.
        return self._find_place(spot=spot) or self._ready.workers.choose_blocked(
            self._only_zone, spot=spot
        )

    def _is_next_spot(self) -> bool:
        if not self.settings.spot:
            return False
        machines = max(self._target, len(self.worker_spec))
        return self._count_on_demand() >= self._mix.on_demand(machines)

    @property
    def _only_zone(self) -> str | None:
        """The zone that workers have to be in, if there is only one."""
        return None if self.settings.allow_cross_zone else self._scheduler.location.zone

    def _find_place(self, *, spot: bool) -> Location | None:
        """Return a place that has machines to give, as far as is known; None if there is none."""
        workers, zone = self._ready.workers, self._only_zone
        chosen = workers.choose(zone, spot=spot)
        if chosen is None and spot and self.settings.spot == "fallback":
            chosen = workers.choose(zone)
        return chosen

    # -- what runs beside -------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside everything else; it ends with the cluster."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Something went wrong in cluster %s", self.name, exc_info=error)

    def _correct_state_soon(self) -> None:
        if self.status in (Status.starting, Status.running):
            self._correct_state()
