"""How the machines of one cluster are made: settings and certificates become instance specs.

Everything that has to be found out first (project, machine types, certificates) is found by the
cluster and handed in. From then on a blueprint is a pure function of role, name and location.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dask.utils import parse_bytes

from dask_gce import names, startup
from dask_gce.instance import InstanceSpec
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings


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
    """

    settings: Settings
    project: str
    cluster: str
    identity: str
    owner: str = ""
    client: str = ""
    expires: int | None = None
    tls: Mapping[startup.Role, startup.Tls] = field(default_factory=dict, repr=False)
    # Workers differ in their names only, so a thousand of them share one set of metadata.
    _workers: dict[tuple[Location, str], InstanceSpec] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def protocol(self) -> str:
        """The scheme of the cluster's addresses, ``"tls"`` or ``"tcp"``."""
        return "tls" if self.tls else "tcp"

    @property
    def processes(self) -> int:
        """How many Dask workers a machine runs."""
        return self.settings.processes

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is added to a machine's name to name its workers; empty when it has but one."""
        several = range(self.processes) if self.processes > 1 else ()
        return tuple(f"-{number}" for number in several)

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
        options = self.settings.worker_options
        chosen = options.get("nthreads") or self.settings.nthreads
        return int(chosen) if chosen else max(1, shape.cpus // self.processes)

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
        limit = self.memory_limit(shape)
        # As distributed.worker_memory.parse_memory_limit: a share for its share of the vCPUs,
        # and up to 1 a share of the machine.
        if limit == "auto":
            return int(shape.usable_memory * min(1, self.nthreads(shape) / shape.cpus))
        if not limit:
            return shape.usable_memory // self.processes
        try:
            number = float(limit)
        except ValueError:
            return int(parse_bytes(limit))
        return int(number * shape.memory if number <= 1 else number)

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
        options = self.settings.worker_options
        chosen = options.get("memory_limit", self.settings.memory_limit)
        return shape.usable_memory // self.processes if chosen is None else chosen

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
        """Return the scheduler's instance.

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
            endpoint=settings.api_endpoint or startup.PUBLIC_ENDPOINT,
        )
        return self._instance(name, location, payload)

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
        settings = self.settings
        host, _, port = scheduler_address.partition("://")[2].rpartition(":")
        payload = startup.Payload(
            role="worker",
            project=self.project,
            container_image=settings.container_image,
            spec=startup.worker_spec(
                worker_class=settings.worker_class,
                scheduler_address=scheduler_address,
                nthreads=self.nthreads(location.shape),
                memory_limit=self.memory_limit(location.shape),
                options=settings.worker_options,
            ),
            processes=self.processes,
            env_vars=settings.env_vars,
            tls=self.tls.get("worker"),
            scheduler={"host": host, "port": int(port), "timeout": settings.worker_start_timeout},
            endpoint=settings.api_endpoint or startup.PUBLIC_ENDPOINT,
        )
        return self._instance("", location, payload)

    def _instance(self, name: str, location: Location, payload: startup.Payload) -> InstanceSpec:
        settings = self.settings
        return InstanceSpec(
            name=name,
            project=self.project,
            zone=location.zone,
            machine_type=location.machine_type,
            source_image=settings.source_image,
            boot_disk_size=settings.boot_disk_size,
            boot_disk_type=settings.boot_disk_type,
            network=settings.network,
            subnetwork=settings.subnetwork,
            external_ip=settings.external_ip,
            tags=settings.network_tags,
            labels={**settings.labels, **self._labels(payload.role)},
            metadata=startup.build_metadata(payload),
            service_account=settings.service_account,
            scopes=settings.scopes,
            overrides=settings.instance_overrides,
        )

    def _labels(self, role: startup.Role) -> dict[str, str]:
        labels = names.cluster_labels(self.cluster, role, self.owner)
        labels[names.ID_LABEL] = self.identity
        if self.client:
            labels[names.CLIENT_LABEL] = self.client
        if self.expires is not None:
            labels[names.EXPIRES_LABEL] = str(self.expires)
        return labels
