"""Images as boot disks know them: Google's public ones, and those that a project has made.

Owns: what an image of a project looks like, which image is the newest of a family, which image a
link means, and where the contents of a disk are found. The methods of the API are in
`methods.images`, the public images in `catalog.images`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog import images as public
from dask_gce.emulator.errors import invalid, not_found, not_ready
from dask_gce.emulator.links import NAME, fingerprint, last_segment, new_id, now, path_of
from dask_gce.emulator.machine import Contents

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]

#: Fields of an image that are shown as they were sent.
_VERBATIM = ("description", "family")


@dataclass(frozen=True, eq=False)
class OwnImage:
    """An image of a project of the user's.

    Parameters
    ----------
    path : str
        Its path from ``projects/`` on.
    shown : dict
        The ``compute#image`` resource, changed in place as it comes into being.
    """

    path: str
    shown: Resource

    @property
    def id(self) -> str:
        """Its ID."""
        return str(self.shown["id"])

    @property
    def family(self) -> str:
        """Its family; empty if it is in none."""
        return str(self.shown.get("family", ""))

    @property
    def size_gb(self) -> int:
        """The least size of a disk made from it, in GB."""
        return int(self.shown["diskSizeGb"])

    @property
    def architecture(self) -> str:
        """``X86_64`` or ``ARM64``."""
        return str(self.shown["architecture"])

    @property
    def guest_features(self) -> list[dict[str, str]]:
        """What its system supports."""
        return list(self.shown.get("guestOsFeatures", ()))

    @property
    def current(self) -> bool:
        """Whether a disk that asks for its family may be made from it."""
        return self.shown["status"] == "READY" and self.shown.get("deprecated", {}).get(
            "state", "ACTIVE"
        ) in ("ACTIVE", "")

    def licenses(self, base_url: str) -> list[str]:
        """Return the links of its licences.

        Parameters
        ----------
        base_url : str
            The address of the API up to and with ``/compute/v1``.

        Returns
        -------
        list of str
            The links.
        """
        return list(self.shown.get("licenses", ()))

    def resource(self, base_url: str) -> Resource:
        """Return it as ``images.get`` answers.

        Parameters
        ----------
        base_url : str
            The address of the API up to and with ``/compute/v1``.

        Returns
        -------
        dict
            The ``compute#image`` resource.
        """
        return self.shown


#: What a disk can be made from.
SourceImage = public.Image | OwnImage


def make_image(
    cloud: Cloud, project: Project, name: str, body: Resource, labels: dict[str, str]
) -> OwnImage:
    """Return a new image, PENDING and without a source, and add it to its project.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where it belongs.
    name : str
        Its name, which is free.
    body : dict
        The ``Image`` from the request.
    labels : dict
        Its labels, which have been checked.

    Returns
    -------
    OwnImage
        The image.
    """
    path = f"{project.path}/global/images/{name}"
    shown: Resource = {
        "kind": "compute#image",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": name,
        "sourceType": "RAW",
        "status": "PENDING",
        "archiveSizeBytes": "0",
        "labelFingerprint": fingerprint(labels),
        "selfLink": cloud.url(path),
        **{field: body[field] for field in _VERBATIM if body.get(field)},
    }
    if labels:
        shown["labels"] = labels
    image = project.images[name] = OwnImage(path, shown)
    return image


def get(cloud: Cloud, project: str, name: str) -> SourceImage:
    """Return an image by name.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : str
        The project that has it.
    name : str
        Image name.

    Returns
    -------
    SourceImage
        The image.

    Raises
    ------
    APIError
        The project has no such image.
    """
    if project in public.IMAGES:
        return public.get(project, name)
    owner = cloud.project(project)
    if name not in owner.images:
        raise not_found(f"{owner.path}/global/images/{name}")
    return owner.images[name]


def from_family(cloud: Cloud, project: str, family: str) -> SourceImage:
    """Return the newest image of a family that is not deprecated.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : str
        The project that has it.
    family : str
        Image family.

    Returns
    -------
    SourceImage
        The image.

    Raises
    ------
    APIError
        The project has no such family, or no image of it that may be used.
    """
    if project in public.IMAGES:
        return public.from_family(project, family)
    owner = cloud.project(project)
    for image in reversed(list(owner.images.values())):
        if image.family == family and image.current:
            return image
    raise not_found(f"{owner.path}/global/images/family/{family}")


_SOURCE = re.compile(
    r"(?:projects/(?P<project>[^/]+)/)?"
    r"(?:global/images/family/(?P<family>[^/]+)"
    r"|zones/[^/]+/imageFamilyViews/(?P<view>[^/]+)"
    r"|global/images/(?P<image>[^/]+))"
)


def from_link(cloud: Cloud, project: str, link: str, field: str) -> SourceImage:
    """Return the image that a ``sourceImage`` field means.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : str
        The project of the request, for links that name none.
    link : str
        A full or partial link to an image, a family or a family view.
    field : str
        The field's path, for the refusal.

    Returns
    -------
    SourceImage
        The image.

    Raises
    ------
    APIError
        It is no such link, or the image does not exist or is not complete.
    """
    match = _SOURCE.fullmatch(path_of(link))
    if match is None:
        raise invalid(field, link, "The URL is malformed.")
    owner = match["project"] or project
    family = match["family"] or match["view"]
    name = family or match["image"]
    if not NAME.fullmatch(name):
        raise invalid(field, link, "The URL is malformed.")
    if family:
        return from_family(cloud, owner, family)
    image = get(cloud, owner, name)
    if isinstance(image, OwnImage) and image.shown["status"] != "READY":
        raise not_ready(image.path)
    return image


async def read_disk(cloud: Cloud, project: Project, zone: str, disk: Resource) -> Contents | None:
    """Return what a disk holds: copied from the machine that boots from it, where there is one.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where the disk is.
    zone : str
        Its zone.
    disk : dict
        The disk.

    Returns
    -------
    Contents or None
        Its contents; None where the kind of machines keeps none.
    """
    for user in disk.get("users", ()):
        instance = project.instances.get(zone, {}).get(last_segment(user))
        if instance is not None and instance.boot_disk is disk:
            return await instance.capture()
    return cloud.shelf.get(disk["id"])
