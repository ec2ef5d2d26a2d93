"""How the machines of one cluster are made: settings and certificates become instance specs.

Everything that has to be found out first (project, zone, machine types, certificates) is found by
the cluster and handed in. From then on a blueprint is a pure function of role and name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask.utils import parse_bytes

from dask_gce import names, startup
from dask_gce.instance import InstanceSpec
from dask_gce.settings import Settings

#: What the operating system and the container engine keep for themselves: at least this much
#: memory, in bytes, or this share of a large machine.
SYSTEM_MEMORY = 256 * 2**20
SYSTEM_MEMORY_SHARE = 0.05


@dataclass(frozen=True)
class MachineShape:
    """What a machine type offers, as ``machineTypes.get`` tells.

    Parameters
    ----------
    name : str
        The machine type's name.
    cpus : int
        Its vCPUs.
    memory : int
        Its memory in bytes.
    """

    name: str
    cpus: int
    memory: int

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> MachineShape:
        """Read a machine type from API JSON.

        Parameters
        ----------
        data : mapping
            A ``compute#machineType`` resource.

        Returns
        -------
        MachineShape
            Its shape.
        """
        return cls(str(data["name"]), int(data["guestCpus"]), int(data["memoryMb"]) * 2**20)

    @property
    def usable_memory(self) -> int:
        """Memory for Dask in bytes: all but what the system keeps."""
        return self.memory - max(SYSTEM_MEMORY, int(self.memory * SYSTEM_MEMORY_SHARE))


@dataclass(frozen=True)
class Blueprint:
    """The plan from which every machine of one cluster is made.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The project ID.
    zone : str
        The zone of all its machines.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    worker_shape : MachineShape
        The workers' machine type.
    owner : str
        Who made the cluster, for its instances' labels.
    tls : mapping of str to Tls
        Certificates by role; empty for plain TCP.
    """

    settings: Settings
    project: str
    zone: str
    cluster: str
    identity: str
    worker_shape: MachineShape
    owner: str = ""
    tls: Mapping[startup.Role, startup.Tls] = field(default_factory=dict, repr=False)

    @property
    def protocol(self) -> str:
        """The scheme of the cluster's addresses, ``"tls"`` or ``"tcp"``."""
        return "tls" if self.tls else "tcp"

    @property
    def nthreads(self) -> int:
        """Threads of one worker."""
        options = self.settings.worker_options
        chosen = options.get("nthreads") or self.settings.nthreads
        return int(chosen) if chosen else self.worker_shape.cpus

    @property
    def memory(self) -> int:
        """Memory of one worker in bytes, for ``scale(memory=...)``."""
        limit = self.memory_limit
        if limit in (None, 0, "auto"):
            return self.worker_shape.usable_memory
        try:
            number = float(limit)
        except ValueError:
            return int(parse_bytes(limit))
        # As distributed.worker_memory.parse_memory_limit: up to 1 is a share of the machine.
        return int(number * self.worker_shape.memory if number <= 1 else number)

    @property
    def memory_limit(self) -> int | float | str | None:
        """The worker's ``memory_limit`` as Dask takes it."""
        options = self.settings.worker_options
        chosen = options.get("memory_limit", self.settings.memory_limit)
        return self.worker_shape.usable_memory if chosen is None else chosen

    def address(self, scheduler: str) -> str:
        """Return the address at which workers find a scheduler.

        It is known before the instance exists, because Compute Engine's zonal DNS names are made
        of the instance's name: https://docs.cloud.google.com/compute/docs/internal-dns

        Parameters
        ----------
        scheduler : str
            The scheduler's instance name.

        Returns
        -------
        str
            A Dask address, ``"tls://NAME.ZONE.c.PROJECT.internal:8786"``.
        """
        host = names.zonal_dns_name(scheduler, self.zone, self.project)
        return f"{self.protocol}://{host}:{self.settings.scheduler_port}"

    def scheduler(self, name: str) -> InstanceSpec:
        """Return the scheduler's instance.

        Parameters
        ----------
        name : str
            Its name.

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
        return self._instance(name, settings.scheduler_machine_type, payload)

    def worker(self, name: str, scheduler_address: str) -> InstanceSpec:
        """Return a worker's instance.

        Parameters
        ----------
        name : str
            Its name, and the Dask worker's.
        scheduler_address : str
            The scheduler's Dask address.

        Returns
        -------
        InstanceSpec
            What to insert.
        """
        settings = self.settings
        host, _, port = scheduler_address.partition("://")[2].rpartition(":")
        payload = startup.Payload(
            role="worker",
            project=self.project,
            container_image=settings.container_image,
            spec=startup.worker_spec(
                worker_class=settings.worker_class,
                scheduler_address=scheduler_address,
                nthreads=self.nthreads,
                memory_limit=self.memory_limit,
                options=settings.worker_options,
            ),
            env_vars=settings.env_vars,
            tls=self.tls.get("worker"),
            scheduler={"host": host, "port": int(port), "timeout": settings.worker_start_timeout},
            endpoint=settings.api_endpoint or startup.PUBLIC_ENDPOINT,
        )
        return self._instance(name, settings.worker_machine_type, payload)

    def _instance(self, name: str, machine_type: str, payload: startup.Payload) -> InstanceSpec:
        settings = self.settings
        return InstanceSpec(
            name=name,
            project=self.project,
            zone=self.zone,
            machine_type=machine_type,
            source_image=settings.source_image,
            boot_disk_size=settings.boot_disk_size,
            boot_disk_type=settings.boot_disk_type,
            network=settings.network,
            subnetwork=settings.subnetwork,
            external_ip=settings.external_ip,
            tags=settings.network_tags,
            labels={
                **settings.labels,
                **names.cluster_labels(self.cluster, payload.role, self.owner),
                names.ID_LABEL: self.identity,
            },
            metadata=startup.build_metadata(payload),
            service_account=settings.service_account,
            scopes=settings.scopes,
            overrides=settings.instance_overrides,
        )
