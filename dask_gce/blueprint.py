"""How the machines of one cluster are made: settings and certificates become instance specs.

Everything that has to be found out first (project, machine types, certificates) is found by the
cluster and handed in. From then on a blueprint is a pure function of role, name and location; only
where the cluster has no end of its own, the end of a machine counts from the moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dask_gce import families, images, names, shares, startup
from dask_gce.boot.environment import Environment
from dask_gce.boot.versions import expectation
from dask_gce.hardware_fields import Hardware
from dask_gce.instance import InstanceSpec
from dask_gce.leavings import render_leavings
from dask_gce.placement import Location, MachineShape
from dask_gce.secret_names import version_name
from dask_gce.settings import Settings

#: Seconds that a boot may take in any case before the machine itself takes it for one that hangs:
#: no patience of a client's is to be shorter by a hair's breadth.
BOOT_AT_LEAST = 60.0


@dataclass(frozen=True)
class Blueprint:
    """The plan from which every machine of one cluster is made.

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
    owner : str
        Who made the cluster, for its instances' labels.
    client : str
        Which process made it, as `client` tells; empty for no such label.
    expires : int or None
        When it is past its use, in seconds since 1970 UTC; None if it says nothing about that.
    tls : mapping of str to Tls
        Certificates by role; empty for plain TCP.
    environment : Environment or None
        What is installed on the machines; None for what the container image has.
    configuration : mapping of str to object
        The Dask configuration of the machines, as Dask reads it from a file.
    """

    settings: Settings
    project: str
    cluster: str
    identity: str
    owner: str = ""
    client: str = ""
    expires: int | None = None
    tls: Mapping[startup.Role, startup.Tls] = field(default_factory=dict, repr=False)
    environment: Environment | None = field(default=None, repr=False)
    configuration: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # Workers differ in their names only, so a thousand of them share one set of metadata.
    _workers: dict[tuple[Location, str], InstanceSpec] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def extend(self, expires: int) -> None:
        """Let the machines that are made from now on live for longer.

        Parameters
        ----------
        expires : int
            The cluster's new end, in seconds since 1970 UTC.
        """
        # The one thing of a cluster that changes while it runs, for all who hold its blueprint.
        object.__setattr__(self, "expires", expires)
        self._workers.clear()

    @property
    def protocol(self) -> str:
        """The scheme of the cluster's addresses, ``"tls"`` or ``"tcp"``."""
        return "tls" if self.tls else "tcp"

    @property
    def keeps_secrets(self) -> bool:
        """Whether the certificates are in Secret Manager."""
        return bool(self.tls) and self.settings.secrets == "secret-manager"

    @property
    def processes(self) -> int:
        """How many Dask workers a machine runs."""
        return self.settings.processes

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is added to a machine's name to name its workers; empty when it has but one."""
        several = range(self.processes) if self.processes > 1 else ()
        return tuple(f"-{number}" for number in several)

    @property
    def local_workers(self) -> int:
        """How many Dask workers run on the scheduler's machine."""
        return self.settings.workers_on_scheduler

    @property
    def local_suffixes(self) -> tuple[str, ...]:
        """What is added to the name of the scheduler's machine to name the workers on it."""
        return tuple(f"-{number}" for number in range(self.local_workers))

    def nthreads(self, shape: MachineShape) -> int:
        """Return the threads of one worker.

        Parameters
        ----------
        shape : MachineShape
            The machine it runs on.

        Returns
        -------
        int
            Threads.
        """
        return shares.share(self.settings, shape).nthreads

    def memory(self, shape: MachineShape) -> int:
        """Return the memory of one worker, for ``scale(memory=...)``.

        Parameters
        ----------
        shape : MachineShape
            The machine it runs on.

        Returns
        -------
        int
            Memory in bytes.
        """
        return shares.share(self.settings, shape).memory

    def memory_limit(self, shape: MachineShape) -> int | float | str | None:
        """Return a worker's ``memory_limit`` as Dask takes it.

        Parameters
        ----------
        shape : MachineShape
            The machine it runs on.

        Returns
        -------
        int or float or str or None
            What the user chose, else the worker's share in bytes of what the system leaves.
        """
        return shares.share(self.settings, shape).memory_limit

    def local_share(self, shape: MachineShape) -> shares.Share:
        """Return what one of the workers on the scheduler's machine gets of it.

        Parameters
        ----------
        shape : MachineShape
            The scheduler's machine.

        Returns
        -------
        Share
            Threads and memory.
        """
        return shares.local_share(self.settings, shape)

    def address(self, scheduler: str, zone: str) -> str:
        """Return the address at which workers find a scheduler.

        It is known before the instance exists, because Compute Engine's zonal DNS names are made
        of the instance's name: https://docs.cloud.google.com/compute/docs/internal-dns

        Parameters
        ----------
        scheduler : str
            The scheduler's instance name.
        zone : str
            The zone it is in.

        Returns
        -------
        str
            A Dask address, ``"tls://NAME.ZONE.c.PROJECT.internal:8786"``.
        """
        host = names.zonal_dns_name(scheduler, zone, self.project)
        return f"{self.protocol}://{host}:{self.settings.scheduler_port}"

    def scheduler(self, name: str, location: Location) -> InstanceSpec:
        """Return the scheduler's instance, with the workers that run on it.

        Parameters
        ----------
        name : str
            Its name.
        location : Location
            Where to make it.

        Returns
        -------
        InstanceSpec
            What to insert.
        """
        settings = self.settings
        payload = startup.Payload(
            role="scheduler",
            project=self.project,
            container_image=settings.container_image,
            spec=startup.scheduler_spec(
                protocol=self.protocol,
                port=settings.scheduler_port,
                dashboard_port=settings.dashboard_port,
                options=settings.scheduler_options,
            ),
            ports=(settings.scheduler_port, settings.dashboard_port),
            env_vars=settings.env_vars,
            tls=self.tls.get("scheduler"),
            environment=self.environment,
            configuration=self.configuration,
            endpoint=settings.api_endpoint or startup.PUBLIC_ENDPOINT,
            local=self._local(location.shape),
            gpus=shares.gpus_of(settings, location.shape, workers=settings.single_node),
            versions=self._versions(workers=self.local_workers > 0),
            limits=self._limits(settings.start_timeout),
            jupyter=settings.jupyter,
            **self._secrets(),
            **self._container(location.shape),
        )
        return self._instance(name, location, payload)

    def _local(self, shape: MachineShape) -> startup.LocalWorkers | None:
        if not self.local_workers:
            return None
        settings, share = self.settings, self.local_share(shape)
        return startup.LocalWorkers(
            spec=startup.worker_spec(
                worker_class=settings.worker_class,
                scheduler_address=None,
                nthreads=share.nthreads,
                memory_limit=share.memory_limit,
                options=settings.worker_options,
            ),
            processes=self.local_workers,
            tls=self.tls.get("worker"),
        )

    def worker(self, name: str, location: Location, scheduler_address: str) -> InstanceSpec:
        """Return the instance of a worker, or of several.

        Parameters
        ----------
        name : str
            Its name, with which the names of its Dask workers begin.
        location : Location
            Where to make it.
        scheduler_address : str
            The scheduler's Dask address.

        Returns
        -------
        InstanceSpec
            What to insert. All of one location and scheduler share everything but the name.
        """
        key = (location, scheduler_address)
        if key not in self._workers:
            self._workers[key] = self._worker(location, scheduler_address)
        return replace(self._workers[key], name=name)

    def _worker(self, location: Location, scheduler_address: str) -> InstanceSpec:
        settings, share = self.settings, shares.share(self.settings, location.shape)
        host, _, port = scheduler_address.partition("://")[2].rpartition(":")
        payload = startup.Payload(
            role="worker",
            project=self.project,
            container_image=settings.container_image,
            spec=startup.worker_spec(
                worker_class=settings.worker_class,
                scheduler_address=scheduler_address,
                nthreads=share.nthreads,
                memory_limit=share.memory_limit,
                options=settings.worker_options,
                # Dask's own is about a worker's start, for which there is another patience too.
                death_timeout=max(settings.death_timeout, settings.worker_start_timeout),
            ),
            processes=self.processes,
            env_vars=settings.env_vars,
            tls=self.tls.get("worker"),
            environment=self.environment,
            configuration=self.configuration,
            scheduler={"host": host, "port": int(port), "timeout": settings.worker_start_timeout},
            gpus=shares.gpus_of(settings, location.shape, workers=True),
            versions=self._versions(workers=True),
            endpoint=settings.api_endpoint or startup.PUBLIC_ENDPOINT,
            limits=self._limits(settings.worker_start_timeout),
            **self._secrets(),
            **self._container(location.shape),
        )
        return self._instance("", location, payload)

    def _limits(self, patience: float) -> startup.Limits:
        """Return after which time machines end by themselves, for whose start there is patience."""
        settings = self.settings
        return startup.Limits(
            idle_timeout=settings.idle_timeout,
            no_client_timeout=settings.no_client_timeout or math.inf,
            max_lifetime=settings.max_lifetime,
            expires=self.expires,
            death_timeout=settings.death_timeout,
            # Whoever waits for it gives up earlier, and deletes it.
            boot_timeout=max(BOOT_AT_LEAST, 2 * patience),
            leavings=render_leavings(settings, self.project, self.cluster, self.identity),
        )

    def _secrets(self) -> dict[str, Any]:
        """Return where machines find their certificates, if that is not the metadata."""
        if not self.keeps_secrets:
            return {}
        roles: tuple[startup.Role, ...] = ("scheduler", "worker")
        return {
            "secrets": {
                role: version_name(self.project, self.cluster, self.identity, role)
                for role in roles
            },
            "secrets_endpoint": self.settings.api_endpoint or startup.PUBLIC_SECRETS_ENDPOINT,
        }

    def _container(self, shape: MachineShape) -> dict[str, Any]:
        """Return what both roles' containers are given, which no other runtime reads."""
        settings = self.settings
        return {
            "docker_options": settings.docker_options,
            # All that Dask is told of, and no more: else it would be the system that lacks memory.
            "memory": shape.usable_memory,
            "shm_size": settings.shm_size,
        }

    def _versions(self, *, workers: bool) -> str | None:
        """What machines compare their versions with."""
        settings = self.settings
        if not settings.version_check:
            return None
        cuda = workers and settings.worker_class in shares.CUDA_WORKERS
        return expectation(
            settings.runtime, settings.container_image, needed=("dask-cuda",) if cuda else ()
        )

    def _is_workers(self, payload: startup.Payload) -> bool:
        # With a single node the scheduler's machine is the workers'.
        return payload.role == "worker" or self.settings.single_node

    def _hardware(self, shape: MachineShape, payload: startup.Payload) -> Hardware:
        settings = self.settings
        confidential = families.confidential_type(shape.name) if settings.confidential else None
        workers = self._is_workers(payload)
        return Hardware(
            accelerator_type=settings.worker_accelerator_type if workers else None,
            accelerator_count=settings.worker_accelerator_count if workers else 0,
            # Neither GPUs nor memory that nobody else can read move to another host:
            # https://docs.cloud.google.com/compute/docs/instances/live-migration-process
            migrates=not (payload.gpus or settings.confidential),
            min_cpu_platform=settings.min_cpu_platform,
            reservation=settings.reservation if workers else None,
            confidential_type=confidential,
            secure_boot=settings.secure_boot,
        )

    def _instance(self, name: str, location: Location, payload: startup.Payload) -> InstanceSpec:
        settings, shape = self.settings, location.shape
        spot = location.spot and payload.role == "worker"
        return InstanceSpec(
            name=name,
            project=self.project,
            zone=location.zone,
            machine_type=location.machine_type,
            source_image=images.for_architecture(settings.source_image, shape.architecture),
            boot_disk_size=settings.boot_disk_size,
            boot_disk_type=settings.boot_disk_type,
            network=settings.network,
            subnetwork=settings.subnetwork,
            external_ip=settings.external_ip,
            tags=settings.network_tags,
            labels={**settings.labels, **self.labels(payload.role)},
            metadata=startup.build_metadata(payload),
            service_account=settings.service_account,
            scopes=settings.scopes,
            local_ssds=settings.local_ssds if self._is_workers(payload) else 0,
            hardware=self._hardware(location.shape, payload),
            expires=self._end_of_machine(),
            # Who loses the scheduler loses everything.
            spot=spot,
            preemption_notice=spot and settings.preemption_notice,
            overrides=settings.instance_overrides,
        )

    def _end_of_machine(self) -> int | None:
        """Return when Compute Engine ends a machine that is made now."""
        lifetime = self.settings.max_lifetime
        if self.expires is not None or lifetime == math.inf:
            return self.expires
        # A cluster that is declared has no end of its own: each of its machines has one.
        return math.floor(time.time()) + math.ceil(lifetime)

    def labels(self, role: startup.Role) -> dict[str, str]:
        """Return the labels by which what belongs to the cluster is known.

        Parameters
        ----------
        role : {"scheduler", "worker"}
            Whose it is.

        Returns
        -------
        dict of str to str
            The labels, without the user's own.
        """
        labels = names.cluster_labels(self.cluster, role, self.owner)
        labels[names.ID_LABEL] = self.identity
        if self.client:
            labels[names.CLIENT_LABEL] = self.client
        if self.expires is not None:
            labels[names.EXPIRES_LABEL] = str(self.expires)
        return labels
