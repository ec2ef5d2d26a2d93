"""The state of one local Compute Engine: its projects and what they hold.

Owns: the collections of resources, the request IDs that were seen, the default network of a new
project. How resources come and go is told by `instances`, `disks` and `networks`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.conditions import Conditions
from dask_gce.emulator.contents import Shelf
from dask_gce.emulator.errors import APIError, not_found
from dask_gce.emulator.firewalls import DEFAULT_RULES, default_firewalls
from dask_gce.emulator.iam import MACHINE_ROLE, Policy, role_holds
from dask_gce.emulator.identity import Identities, Identity
from dask_gce.emulator.links import PROJECT_ID, number_of
from dask_gce.emulator.machine import MachineKind
from dask_gce.emulator.networks import default_network, default_subnetworks
from dask_gce.emulator.operations import Operation, Operations, Work
from dask_gce.emulator.timings import Timings

if TYPE_CHECKING:
    from dask_gce.emulator.images import OwnImage
    from dask_gce.emulator.lifecycle import Instance
    from dask_gce.emulator.reserved import ReservedAddress
    from dask_gce.emulator.services.secrets import Secret

#: A resource in API JSON.
Resource = dict[str, Any]


class Project:
    """One project and its resources.

    Parameters
    ----------
    project_id : str
        Project ID.
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    """

    def __init__(self, project_id: str, base_url: str) -> None:
        self.id = project_id
        self.number = number_of(project_id)
        #: Instances and disks by zone and name.
        self.instances: dict[str, dict[str, Instance]] = {}
        self.disks: dict[str, dict[str, Resource]] = {}
        #: Global resources by name, images the oldest first; subnetworks by region and name.
        self.images: dict[str, OwnImage] = {}
        self.networks: dict[str, Resource] = default_network(base_url, project_id)
        self.firewalls: dict[str, Resource] = default_firewalls(base_url, project_id)
        self.subnetworks: dict[str, dict[str, Resource]] = default_subnetworks(base_url, project_id)
        #: By request ID, the method and path that were called and the operation that began.
        self.requests: dict[str, tuple[str, Operation]] = {}
        #: The bulk inserts that go on.
        self.bulk_inserts: set[Operation] = set()
        #: Routers by region and name.
        self.routers: dict[str, dict[str, Resource]] = {}
        #: Static addresses by region and name.
        self.addresses: dict[str, dict[str, ReservedAddress]] = {}
        #: Secrets by name.
        self.secrets: dict[str, Secret] = {}
        #: Who has which role in it.
        self.policy = Policy(
            {
                "roles/owner": [f"serviceAccount:{self.user}"],
                MACHINE_ROLE: [f"serviceAccount:{self.service_account}"],
            }
        )

    @property
    def path(self) -> str:
        """Its path."""
        return f"projects/{self.id}"

    @property
    def service_account(self) -> str:
        """The address of its default service account."""
        return f"{self.number}-compute@developer.gserviceaccount.com"

    @property
    def user(self) -> str:
        """Who begins its operations."""
        return f"local@{self.id}.iam.gserviceaccount.com"


class Cloud:
    """Everything one emulator knows.

    Parameters
    ----------
    endpoint : str
        The emulator's address, ``http://127.0.0.1:PORT``.
    kind : MachineKind
        Makes the machines.
    timings : Timings
        How long things take.
    conditions : Conditions
        What goes wrong and what is scarce.
    projects : collection of str or None
        The projects that exist; None when every well-formed ID does.
    """

    def __init__(
        self,
        endpoint: str,
        kind: MachineKind,
        timings: Timings,
        conditions: Conditions,
        projects: Collection[str] | None,
    ) -> None:
        self.base_url = f"{endpoint}/compute/v1"
        self.kind = kind
        self.timings = timings
        self.conditions = conditions
        self.operations = Operations(self.base_url, timings.pending)
        #: What disks and images hold.
        self.shelf = Shelf()
        #: When the operations of Service Usage are done, and what they answer then, by name.
        self.service_operations: dict[str, tuple[float, dict[str, Any]]] = {}
        #: Whose the tokens of machines are.
        self.identities = Identities()
        self.projects: dict[str, Project] = {}
        self._known = None if projects is None else frozenset(projects)

    def project(self, project_id: str) -> Project:
        """Return a project.

        Parameters
        ----------
        project_id : str
            Project ID, or the number of a project that was asked for by its ID before.

        Returns
        -------
        Project
            The project, made now if it exists but was never asked for.

        Raises
        ------
        APIError
            The ID is malformed or no such project exists.
        """
        if project_id not in self.projects:
            for project in self.projects.values():
                if project_id == str(project.number):
                    return project
            if not PROJECT_ID.fullmatch(project_id):
                raise APIError(400, "invalid", f"Invalid value for project: {project_id}")
            if self._known is not None and project_id not in self._known:
                raise not_found(f"projects/{project_id}")
            self.projects[project_id] = Project(project_id, self.base_url)
        return self.projects[project_id]

    def permits(
        self,
        permission: str,
        project: Project,
        identity: Identity | None = None,
        *policies: Policy,
    ) -> bool:
        """Tell whether somebody may do something.

        Parameters
        ----------
        permission : str
            The permission that it takes, for example ``iap.tunnelInstances.accessViaIAP``.
        project : Project
            The project of the resource.
        identity : Identity or None
            The service account of a machine; None is the client.
        *policies : Policy
            The policies of the resource, beside the project's.

        Returns
        -------
        bool
            Whether the tests' rules or, where none fits, the roles grant it. The client owns every
            project, a machine's service account is an editor of the machine's.
        """
        member = "client" if identity is None else identity.member
        ruling = self.conditions.permissions.ruling(permission, project.id, member)
        if ruling is not None or identity is None:
            return ruling is not False
        if identity.project == project.id and role_holds(MACHINE_ROLE, permission):
            return True
        return any(policy.grants(member, permission) for policy in (project.policy, *policies))

    def url(self, path: str) -> str:
        """Return the full link of a resource.

        Parameters
        ----------
        path : str
            Its path, such as ``projects/p/global/networks/default``.

        Returns
        -------
        str
            The link.
        """
        return f"{self.base_url}/{path}"

    def begin(
        self,
        project: Project,
        scope: str,
        operation_type: str,
        target: str,
        work: Work,
        **extra: Any,
    ) -> Operation:
        """Begin an operation.

        Parameters
        ----------
        project : Project
            The project.
        scope : str
            ``global``, ``regions/R`` or ``zones/Z``.
        operation_type : str
            Google's word for it, for example ``insert``.
        target : str
            The path of the resource it works on, below the project's scope.
        work : callable
            What it does.
        **extra
            ``target_id``, or further fields of the operation's resource.

        Returns
        -------
        Operation
            The operation, still PENDING.
        """
        extra.setdefault("user", project.user)
        scope_path = f"{project.path}/{scope}"
        return self.operations.begin(
            scope_path, operation_type, f"{scope_path}/{target}", work, **extra
        )

    def leftovers(self) -> list[str]:
        """Describe what exists or goes on.

        Returns
        -------
        list of str
            A sentence for each instance, disk, image, secret, static address and running operation,
            and for each firewall rule but for those that projects begin with.
        """
        found = []
        for project in self.projects.values():
            for zone, instances in project.instances.items():
                for instance in instances.values():
                    found.append(
                        f"instance {instance.name} in {project.id}/{zone} is {instance.status}"
                    )
            for zone, disks in project.disks.items():
                found += [f"disk {name} in {project.id}/{zone} exists" for name in disks]
            found += [f"image {name} in {project.id} exists" for name in project.images]
            found += [
                f"firewall rule {name} in {project.id} exists"
                for name in project.firewalls
                if name not in DEFAULT_RULES
            ]
            found += [
                f"address {name} in {project.id}/{region} is reserved"
                for region, addresses in project.addresses.items()
                for name in addresses
            ]
            found += [
                f"secret {name} in {project.id} exists"
                for name, secret in project.secrets.items()
                if not secret.expired
            ]
        for operation in self.operations.running():
            target = operation.resource["targetLink"].removeprefix(f"{self.base_url}/")
            found.append(
                f"operation {operation.name} ({operation.resource['operationType']} of {target})"
                f" is {operation.resource['status']}"
            )
        return found

    async def close(self) -> None:
        """Stop every operation and timer. The machines belong to their kind."""
        for project in self.projects.values():
            for instances in project.instances.values():
                for instance in instances.values():
                    instance.close()
        await self.operations.close()
