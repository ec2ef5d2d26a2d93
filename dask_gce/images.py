"""Boot images and container images: the spellings accepted and the ones used.

Owns the short forms of boot images, the form of container image names, and which official Dask
image fits the client. Whether an image exists, only Google or the registry knows.

Sources: `Public images <https://cloud.google.com/compute/docs/images/os-details>`_,
`Image references
<https://github.com/distribution/reference/blob/main/reference.go>`_ and the build of the official
images, https://github.com/dask/dask-docker/blob/main/.github/workflows/build.yml.
"""

from __future__ import annotations

import re
from typing import Final

from dask_gce.errors import SettingsError

__all__ = [
    "OFFICIAL_IMAGE",
    "VM_IMAGE",
    "architecture_of",
    "check_container_image",
    "for_architecture",
    "official_image",
    "parse_source_image",
]

OFFICIAL_IMAGE: Final = "ghcr.io/dask/dask"
#: The boot image of machines on which Dask runs without a container.
VM_IMAGE: Final = "debian-cloud/debian-12"

_PUBLIC_PROJECTS: Final = {
    "cos": "cos-cloud",
    "debian": "debian-cloud",
    "rocky": "rocky-linux-cloud",
    "ubuntu": "ubuntu-os-cloud",
}
_RESOURCE = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_PROJECT = r"(?:[a-z0-9.-]+:)?[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_URL = re.compile(r"https://(?:www|compute)\.googleapis\.com/compute/[^/]+/(?=projects/)")
_PATH = re.compile(rf"(?:projects/{_PROJECT}/)?global/images/(?:family/)?{_RESOURCE}")
_SHORT = re.compile(rf"(?P<project>{_PROJECT})/(?P<family>{_RESOURCE})")

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_TAG = r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
_DIGEST = r"(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,128})?"
_CONTAINER = re.compile(f"{_HOST}{_COMPONENT}(?:/{_COMPONENT})*{_TAG}{_DIGEST}")
_MAX_CONTAINER: Final = 512
_RELEASE = re.compile(r"[0-9]{4}\.[0-9]{1,2}\.[0-9]+")


def parse_source_image(image: str, *, key: str = "source_image") -> str:
    """Parse a boot image in any accepted spelling into a partial URL.

    Parameters
    ----------
    image : str
        ``PROJECT/FAMILY``, ``family/FAMILY`` (of the cluster's own project), a path or a full URL.
    key : str
        The setting to name in the error.

    Returns
    -------
    str
        ``projects/P/global/images/...`` or, for the cluster's own project, ``global/images/...``.

    Raises
    ------
    SettingsError
        If it has none of these forms.

    Examples
    --------
    >>> parse_source_image("cos-cloud/cos-stable")
    'projects/cos-cloud/global/images/family/cos-stable'
    >>> parse_source_image("family/ours")
    'global/images/family/ours'
    """
    path = _URL.sub("", image, count=1)
    if _PATH.fullmatch(path):
        return path
    short = _SHORT.fullmatch(path)
    if short is None:
        raise SettingsError(f"{key} = {image!r} is no boot image: {_advice(image)}.", key=key)
    family = f"global/images/family/{short['family']}"
    return family if short["project"] == "family" else f"projects/{short['project']}/{family}"


def _advice(image: str) -> str:
    if re.fullmatch(_RESOURCE, image):
        project = _PUBLIC_PROJECTS.get(image.partition("-")[0])
        if project:
            return f"write the project before the family, '{project}/{image}'"
        return (
            f"write 'PROJECT/{image}' or 'family/{image}' for a family, "
            f"'global/images/{image}' for an image"
        )
    return (
        "write it as 'PROJECT/FAMILY', such as 'cos-cloud/cos-stable', "
        "or as 'projects/PROJECT/global/images/IMAGE'"
    )


#: Boot images that this package chooses itself, and the same for Arm.
_FOR_ARM: Final = {
    "projects/cos-cloud/global/images/family/cos-stable": (
        "projects/cos-cloud/global/images/family/cos-arm64-stable"
    ),
    "projects/debian-cloud/global/images/family/debian-12": (
        "projects/debian-cloud/global/images/family/debian-12-arm64"
    ),
}
#: Projects in whose images' names Google writes the architecture, if it is Arm.
_TELLING: Final = (
    *_PUBLIC_PROJECTS.values(),
    "deeplearning-platform-release",
    "ubuntu-os-accelerator-images",
)


def for_architecture(image: str, architecture: str) -> str:
    """Return the boot image for machines of an architecture.

    Parameters
    ----------
    image : str
        A boot image as a partial URL.
    architecture : str
        ``"ARM64"`` or ``"X86_64"``.

    Returns
    -------
    str
        The same image, or its like for Arm where that is one which this package chooses itself.

    Examples
    --------
    >>> for_architecture(parse_source_image("cos-cloud/cos-stable"), "ARM64")
    'projects/cos-cloud/global/images/family/cos-arm64-stable'
    """
    return _FOR_ARM.get(image, image) if architecture == "ARM64" else image


def architecture_of(image: str) -> str | None:
    """Return the architecture that a boot image is for, as far as its name tells.

    Parameters
    ----------
    image : str
        A boot image as a partial URL.

    Returns
    -------
    str or None
        ``"ARM64"`` or ``"X86_64"`` for Google's public images; None for others.

    Examples
    --------
    >>> architecture_of("projects/debian-cloud/global/images/family/debian-12-arm64")
    'ARM64'
    >>> architecture_of("global/images/family/ours") is None
    True
    """
    if not image.startswith(tuple(f"projects/{project}/" for project in _TELLING)):
        return None
    return "ARM64" if "arm64" in image else "X86_64"


def check_container_image(image: str, *, key: str = "container_image") -> str:
    """Check the form of a container image's name.

    Parameters
    ----------
    image : str
        The name with registry, tag or digest.
    key : str
        The setting to name in the error.

    Returns
    -------
    str
        The name, unchanged.

    Raises
    ------
    SettingsError
        If no registry would know such a name.

    Examples
    --------
    >>> check_container_image("ghcr.io/dask/dask:2026.8.0-py3.11")
    'ghcr.io/dask/dask:2026.8.0-py3.11'
    """
    if len(image) > _MAX_CONTAINER or not _CONTAINER.fullmatch(image):
        raise SettingsError(
            f"{key} = {image!r} is no container image: write it as [HOST/]NAME[:TAG], "
            f"such as '{OFFICIAL_IMAGE}:latest', with the name in lower case.",
            key=key,
        )
    return image


def official_image(dask_version: str, python_version: tuple[int, int]) -> str:
    """Return the official Dask image that fits a client.

    Parameters
    ----------
    dask_version : str
        The client's version of Dask.
    python_version : tuple of int
        Major and minor version of the client's Python.

    Returns
    -------
    str
        The image of that release and Python; ``latest`` if that version of Dask is no release, for
        then there is no image of it.

    Examples
    --------
    >>> official_image("2026.8.0", (3, 11))
    'ghcr.io/dask/dask:2026.8.0-py3.11'
    >>> official_image("2026.8.1.dev3+g1a2b3c4", (3, 11))
    'ghcr.io/dask/dask:latest'
    """
    if not _RELEASE.fullmatch(dask_version):
        return f"{OFFICIAL_IMAGE}:latest"
    major, minor = python_version
    return f"{OFFICIAL_IMAGE}:{dask_version}-py{major}.{minor}"
