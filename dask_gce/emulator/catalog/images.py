"""The public images: families of Google's image projects and the newest image of each.

One image a family is enough: a boot disk needs its size, architecture and guest features, and the
machines behind the instances bring their own system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dask_gce.emulator.errors import not_found
from dask_gce.emulator.links import number_of

_RELEASED = "20261103"

#: project -> lines of: family, image name (`*` is the release date), disk size in GB.
_FAMILIES = {
    "cos-cloud": """
        cos-stable cos-stable-125-19216-220-10 10
        cos-beta cos-beta-129-19506-0-12 10
        cos-dev cos-dev-133-19602-0-0 10
        cos-125-lts cos-125-19216-220-10 10
        cos-121-lts cos-121-18867-294-40 10
        cos-arm64-stable cos-arm64-stable-125-19216-220-10 10
        cos-arm64-125-lts cos-arm64-125-19216-220-10 10
    """,
    "debian-cloud": """
        debian-11 debian-11-bullseye-v* 10
        debian-12 debian-12-bookworm-v* 10
        debian-12-arm64 debian-12-bookworm-arm64-v* 10
        debian-13 debian-13-trixie-v* 10
        debian-13-arm64 debian-13-trixie-arm64-v* 10
    """,
    "ubuntu-os-cloud": """
        ubuntu-2204-lts ubuntu-2204-jammy-v* 10
        ubuntu-2404-lts-amd64 ubuntu-2404-noble-amd64-v* 10
        ubuntu-2404-lts-arm64 ubuntu-2404-noble-arm64-v* 10
        ubuntu-minimal-2404-lts-amd64 ubuntu-minimal-2404-noble-amd64-v* 10
        ubuntu-minimal-2404-lts-arm64 ubuntu-minimal-2404-noble-arm64-v* 10
    """,
    "rocky-linux-cloud": """
        rocky-linux-8 rocky-linux-8-v* 20
        rocky-linux-9 rocky-linux-9-v* 20
        rocky-linux-9-arm64 rocky-linux-9-arm64-v* 20
        rocky-linux-9-optimized-gcp rocky-linux-9-optimized-gcp-v* 20
    """,
    "deeplearning-platform-release": """
        common-cu128-ubuntu-2204-nvidia-570 common-cu128-ubuntu-2204-nvidia-570-v* 50
        common-cu128-ubuntu-2404-nvidia-570 common-cu128-ubuntu-2404-nvidia-570-v* 50
    """,
    "ubuntu-os-accelerator-images": """
        ubuntu-accelerator-2404-amd64-with-nvidia-570 ubuntu-accelerator-2404-amd64-v* 50
    """,
}


@dataclass(frozen=True)
class Image:
    """A public image.

    Parameters
    ----------
    project : str
        The image project, for example ``debian-cloud``.
    family : str
        Its family.
    name : str
        Its name.
    size_gb : int
        The least size of a disk made from it, in GB.
    """

    project: str
    family: str
    name: str
    size_gb: int

    @property
    def architecture(self) -> str:
        """``X86_64`` or ``ARM64``."""
        return "ARM64" if "arm64" in self.name else "X86_64"

    @property
    def path(self) -> str:
        """Its path from ``projects/`` on."""
        return f"projects/{self.project}/global/images/{self.name}"

    @property
    def guest_features(self) -> list[dict[str, str]]:
        """What its system supports."""
        return [{"type": one} for one in ("UEFI_COMPATIBLE", "VIRTIO_SCSI_MULTIQUEUE", "GVNIC")]

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
        return [f"{base_url}/projects/{self.project}/global/licenses/{self.family}"]

    def resource(self, base_url: str) -> dict[str, Any]:
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
        return {
            "kind": "compute#image",
            "id": str(number_of(f"image {self.name}")),
            "creationTimestamp": "2026-11-03T10:00:00.000-08:00",
            "name": self.name,
            "description": f"{self.family}, released {_RELEASED}",
            "sourceType": "RAW",
            "rawDisk": {"source": "", "containerType": "TAR"},
            "status": "READY",
            "archiveSizeBytes": "1073741824",
            "diskSizeGb": str(self.size_gb),
            "family": self.family,
            "architecture": self.architecture,
            "guestOsFeatures": self.guest_features,
            "licenses": self.licenses(base_url),
            "storageLocations": ["us", "eu", "asia"],
            "labelFingerprint": "42WmSpB8rSM=",
            "selfLink": f"{base_url}/{self.path}",
        }


#: Every public image, by project and name.
IMAGES: dict[str, dict[str, Image]] = {}
for _project, _lines in _FAMILIES.items():
    for _line in _lines.strip().splitlines():
        _family, _name, _size = _line.split()
        _name = _name.replace("*", _RELEASED)
        IMAGES.setdefault(_project, {})[_name] = Image(_project, _family, _name, int(_size))


def get(project: str, name: str) -> Image:
    """Return an image by name.

    Parameters
    ----------
    project : str
        Image project.
    name : str
        Image name.

    Returns
    -------
    Image
        The image.

    Raises
    ------
    APIError
        The project has no such image.
    """
    try:
        return IMAGES[project][name]
    except KeyError:
        raise not_found(f"projects/{project}/global/images/{name}") from None


def from_family(project: str, family: str) -> Image:
    """Return the newest image of a family.

    Parameters
    ----------
    project : str
        Image project.
    family : str
        Image family.

    Returns
    -------
    Image
        The image.

    Raises
    ------
    APIError
        The project has no such family.

    Examples
    --------
    >>> from_family("cos-cloud", "cos-stable").size_gb
    10
    """
    for image in IMAGES.get(project, {}).values():
        if image.family == family:
            return image
    raise not_found(f"projects/{project}/global/images/family/{family}")
