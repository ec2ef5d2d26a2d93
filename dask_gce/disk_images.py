"""The disk images that `image_build` has made: which there are, and their end.

Their labels are the only database, as it is with clusters: an image that lacks the label is none of
ours, is not listed and cannot be deleted from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import GCEError

__all__ = ["DiskImage", "delete_image", "find_image", "list_images", "read_image"]

#: Seconds that Compute Engine may take to delete an image.
DELETE_TIMEOUT: Final = 300.0


@dataclass(frozen=True)
class DiskImage:
    """A disk image that machines of clusters can boot from.

    Parameters
    ----------
    name : str
        Its name.
    project : str
        The project ID.
    family : str
        The family that it is in.
    runtime : str
        The runtime that it was made for, ``"container"`` or ``"vm"``.
    description : str
        What is on it, in words.
    owner : str
        Who made it, as a label value; empty if unknown.
    identity : str
        What tells it from other images that had its name.
    status : str
        What Compute Engine says of it: ``"READY"``, or why it is of no use.
    created : datetime.datetime
        When it was asked for, in UTC.
    disk_size : int
        The least size of a boot disk made from it, in GB of 1024 cubed bytes.
    stored : int
        What is stored of it, and paid for, in bytes.
    """

    name: str
    project: str
    family: str
    runtime: str
    description: str
    owner: str
    identity: str
    status: str
    created: datetime
    disk_size: int
    stored: int

    @property
    def source_image(self) -> str:
        """What `source_image` takes for this image and no other."""
        return f"projects/{self.project}/global/images/{self.name}"

    @property
    def source_family(self) -> str:
        """What `source_image` takes for the newest image of its family."""
        return f"projects/{self.project}/global/images/family/{self.family}"

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Keys like the fields, the time in ISO 8601; and ``source_image``, ``source_family``.
        """
        return {
            "name": self.name,
            "project": self.project,
            "family": self.family,
            "runtime": self.runtime,
            "description": self.description,
            "owner": self.owner,
            "id": self.identity,
            "status": self.status,
            "created": self.created.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "disk_size": self.disk_size,
            "stored": self.stored,
            "source_image": self.source_image,
            "source_family": self.source_family,
        }


def read_image(project: str, data: Mapping[str, Any]) -> DiskImage:
    """Read an image of ours from API JSON.

    Parameters
    ----------
    project : str
        The project ID.
    data : mapping
        A ``compute#image`` resource.

    Returns
    -------
    DiskImage
        What it says.
    """
    labels = data.get("labels", {})
    # Python 3.10 does not read the Z of ISO 8601.
    created = datetime.fromisoformat(str(data["creationTimestamp"]).replace("Z", "+00:00"))
    return DiskImage(
        name=str(data["name"]),
        project=project,
        family=str(data.get("family", "")),
        runtime=str(labels.get(names.IMAGE_LABEL, "")),
        description=str(data.get("description", "")),
        owner=str(labels.get(names.OWNER_LABEL, "")),
        identity=str(labels.get(names.ID_LABEL, "")),
        status=str(data.get("status", "")),
        created=created.astimezone(timezone.utc),
        disk_size=int(data.get("diskSizeGb", 0)),
        stored=int(data.get("archiveSizeBytes", 0)),
    )


async def list_images(compute: Compute) -> list[DiskImage]:
    """Find the images of a project that were made for clusters.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.

    Returns
    -------
    list of DiskImage
        The images, the newest first.

    Raises
    ------
    GCEError
        If Compute Engine does not answer or refuses.
    """
    found = await compute.list_images(f"labels.{names.IMAGE_LABEL}:*")
    images = [read_image(compute.project, data) for data in found]
    return sorted(images, key=lambda image: (image.created, image.name), reverse=True)


async def find_image(compute: Compute, name: str) -> DiskImage:
    """Find an image that was made for clusters.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.
    name : str
        The image.

    Returns
    -------
    DiskImage
        The image.

    Raises
    ------
    GCEError
        If there is no such image, or it was made by something else.
    """
    images = await list_images(compute)
    for image in images:
        if image.name == name:
            return image
    known = ", ".join(image.name for image in images) or "none"
    raise GCEError(
        f"Project {compute.project} has no image {name!r} that dask gce image build has made; "
        f"there are: {known}."
    )


async def delete_image(compute: Compute, image: DiskImage) -> None:
    """Delete an image, and wait until it is gone. Disks that were made from it stay.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    image : DiskImage
        The image.

    Raises
    ------
    GCEError
        If Compute Engine refuses, fails, or takes too long.
    """
    operation = await compute.delete_image(image.name)
    if operation is not None:
        await compute.wait_operation(operation, DELETE_TIMEOUT)
