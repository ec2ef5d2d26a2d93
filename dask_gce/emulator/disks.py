"""Persistent disks: what a new one looks like, and how instances hold and let go of them.

Owns: disk resources and the rules for their size and type. The methods of the API that deal with
disks are in `methods.disks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog.machine_types import (
    HYPERDISK_FIRST,
    HYPERDISK_ONLY,
    MachineType,
)
from dask_gce.emulator.errors import bad_request, invalid, not_found
from dask_gce.emulator.images import SourceImage
from dask_gce.emulator.links import last_segment, new_id, now, path_of

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]

#: Disk types: description, default size in GB, sizes one may ask for.
DISK_TYPES: dict[str, tuple[str, int, str]] = {
    "hyperdisk-balanced": ("Hyperdisk Balanced Persistent Disk", 100, "4GB-65536GB"),
    "hyperdisk-extreme": ("Hyperdisk Extreme Persistent Disk", 1000, "64GB-65536GB"),
    "hyperdisk-throughput": ("Hyperdisk Throughput Persistent Disk", 2048, "2048GB-32768GB"),
    "local-ssd": ("Local SSD", 375, "375GB-375GB"),
    "pd-balanced": ("Balanced Persistent Disk", 100, "10GB-65536GB"),
    "pd-extreme": ("Extreme Persistent Disk", 1000, "500GB-65536GB"),
    "pd-ssd": ("SSD Persistent Disk", 100, "10GB-65536GB"),
    "pd-standard": ("Standard Persistent Disk", 500, "10GB-65536GB"),
}

_LEAST_GB = 10
_MOST_GB = 65_536


def default_disk_type(family: str) -> str:
    """Return the disk type that a machine family takes when none is asked for.

    Parameters
    ----------
    family : str
        The family, for example ``c4``.

    Returns
    -------
    str
        The name of the disk type.

    Examples
    --------
    >>> default_disk_type("c4"), default_disk_type("c3"), default_disk_type("n1")
    ('hyperdisk-balanced', 'pd-balanced', 'pd-standard')
    """
    if family in HYPERDISK_FIRST:
        return "hyperdisk-balanced"
    return "pd-balanced" if family in ("c3", "c3d") else "pd-standard"


def check_disk_type(project: Project, zone: str, link: str, field: str, *, bare: bool) -> str:
    """Return the name of the disk type that a field means.

    Parameters
    ----------
    project : Project
        The project of the request.
    zone : str
        The zone of the disk.
    link : str
        What the field holds.
    field : str
        The field, for the refusal.
    bare : bool
        Whether it must be a name, as in bulk inserts, or a link.

    Returns
    -------
    str
        The name.

    Raises
    ------
    APIError
        It has the wrong form or there is no such type.
    """
    path = path_of(link).removeprefix(f"{project.path}/")
    name = last_segment(path)
    if bare != ("/" not in link) or (not bare and path != f"zones/{zone}/diskTypes/{name}"):
        raise invalid(field, link, "Must be a name." if bare else "The URL is malformed.")
    if name not in DISK_TYPES:
        raise not_found(f"{project.path}/zones/{zone}/diskTypes/{name}")
    return name


def check_size(asked: str | None, image: SourceImage | None, field: str) -> int:
    """Return the size of a new disk in GB.

    Parameters
    ----------
    asked : str or None
        The size from the request.
    image : SourceImage or None
        What it is made from.
    field : str
        The field, for the refusal.

    Returns
    -------
    int
        The size.

    Raises
    ------
    APIError
        It is smaller than its image or than any disk may be, or too large.
    """
    least = image.size_gb if image else _LEAST_GB
    if asked is None:
        return least if image else 500
    size = int(asked)
    if image and size < image.size_gb:
        raise invalid(
            field,
            size,
            f"Requested disk size cannot be smaller than the image size ({image.size_gb} GB)",
        )
    if not _LEAST_GB <= size <= _MOST_GB:
        raise invalid(
            field, size, f"Disk size must be between {_LEAST_GB} GB and {_MOST_GB} GB, inclusive."
        )
    return size


def check_fit(machine_type: MachineType, disk_type: str) -> None:
    """Refuse a disk type that a machine type cannot use.

    Parameters
    ----------
    machine_type : MachineType
        The machine type.
    disk_type : str
        The name of the disk type.
    """
    if disk_type.startswith("pd-") and machine_type.family in HYPERDISK_ONLY:
        raise bad_request(
            f"{disk_type} disk type cannot be used by {machine_type.name} machine type."
        )


@dataclass(frozen=True)
class DiskPlan:
    """A disk to be made, or found, for a new instance.

    Parameters
    ----------
    name : str or None
        Its name; None takes it from the instance.
    size_gb : int
        Its size in GB.
    disk_type : str
        The name of its type.
    image : SourceImage or None
        What it is made from.
    labels : dict
        Its labels.
    description : str
        Its description.
    """

    name: str | None
    size_gb: int
    disk_type: str
    image: SourceImage | None
    labels: dict[str, str]
    description: str = ""

    def make(self, cloud: Cloud, project: Project, zone: str, name: str) -> Resource:
        """Return the new disk and add it to its project.

        Parameters
        ----------
        cloud : Cloud
            The state.
        project : Project
            Where it belongs.
        zone : str
            The zone.
        name : str
            Its name, which is free.

        Returns
        -------
        dict
            The ``compute#disk`` resource.
        """
        path = f"{project.path}/zones/{zone}"
        disk: Resource = {
            "kind": "compute#disk",
            "id": new_id(),
            "creationTimestamp": now(),
            "name": name,
            "sizeGb": str(self.size_gb),
            "zone": cloud.url(path),
            "status": "READY",
            "selfLink": cloud.url(f"{path}/disks/{name}"),
            "type": cloud.url(f"{path}/diskTypes/{self.disk_type}"),
            "labelFingerprint": "42WmSpB8rSM=",
            "physicalBlockSizeBytes": "4096",
        }
        if self.labels:
            disk["labels"] = dict(self.labels)
        if self.description:
            disk["description"] = self.description
        if self.image:
            disk["sourceImage"] = cloud.url(self.image.path)
            disk["sourceImageId"] = self.image.resource(cloud.base_url)["id"]
            disk["licenses"] = self.image.licenses(cloud.base_url)
            disk["guestOsFeatures"] = self.image.guest_features
            disk["architecture"] = self.image.architecture
            cloud.shelf.share(disk["sourceImageId"], disk["id"])
        project.disks.setdefault(zone, {})[name] = disk
        return disk


def attach(disk: Resource, user: str) -> None:
    """Note that an instance uses a disk that no other uses.

    Parameters
    ----------
    disk : dict
        The disk.
    user : str
        The instance's link.
    """
    disk["users"] = [user]
    disk["lastAttachTimestamp"] = now()


def detach(disk: Resource, user: str) -> None:
    """Note that an instance uses a disk no more.

    Parameters
    ----------
    disk : dict
        The disk.
    user : str
        The instance's link.
    """
    users = [one for one in disk.get("users", ()) if one != user]
    disk.pop("users", None)
    if users:
        disk["users"] = users
    disk["lastDetachTimestamp"] = now()
