"""Accelerator types: the GPUs of https://cloud.google.com/compute/docs/gpus.

Which zone has which is not kept: every zone has all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dask_gce.emulator.errors import not_found
from dask_gce.emulator.links import number_of


@dataclass(frozen=True)
class AcceleratorType:
    """A type of GPU.

    Parameters
    ----------
    name : str
        Its name.
    description : str
        The model.
    most : int
        How many a machine can have at most.
    vcpus : dict
        For those that are added to machine types of N1: the most vCPUs, by the number of GPUs.
        Empty for those that come with machine types.
    """

    name: str
    description: str
    most: int
    vcpus: dict[int, int] = field(default_factory=dict)

    def resource(self, base_url: str, project: str, zone: str) -> dict[str, Any]:
        """Return it as ``acceleratorTypes.get`` answers.

        Parameters
        ----------
        base_url : str
            The address of the API up to and with ``/compute/v1``.
        project : str
            Project ID.
        zone : str
            Zone name.

        Returns
        -------
        dict
            The ``compute#acceleratorType`` resource.
        """
        zone_url = f"{base_url}/projects/{project}/zones/{zone}"
        return {
            "kind": "compute#acceleratorType",
            "id": str(number_of(f"accelerator type {self.name}") % 100_000),
            "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
            "name": self.name,
            "description": self.description,
            "maximumCardsPerInstance": self.most,
            "zone": zone_url,
            "selfLink": f"{zone_url}/acceleratorTypes/{self.name}",
        }


#: Every accelerator type by name.
ACCELERATOR_TYPES = {
    one.name: one
    for one in (
        AcceleratorType("nvidia-a100-80gb", "NVIDIA A100 80GB", 8),
        AcceleratorType("nvidia-b200", "NVIDIA B200", 8),
        AcceleratorType("nvidia-h100-80gb", "NVIDIA H100 80GB", 8),
        AcceleratorType("nvidia-h100-mega-80gb", "NVIDIA H100 80GB Mega", 8),
        AcceleratorType("nvidia-h200-141gb", "NVIDIA H200 141GB", 8),
        AcceleratorType("nvidia-l4", "NVIDIA L4", 8),
        AcceleratorType("nvidia-rtx-pro-6000", "NVIDIA RTX PRO 6000", 8),
        AcceleratorType("nvidia-tesla-a100", "NVIDIA A100 40GB", 16),
        AcceleratorType("nvidia-tesla-p100", "NVIDIA P100", 4, {1: 16, 2: 32, 4: 96}),
        AcceleratorType("nvidia-tesla-p4", "NVIDIA P4", 4, {1: 24, 2: 48, 4: 96}),
        AcceleratorType("nvidia-tesla-t4", "NVIDIA T4", 4, {1: 48, 2: 48, 4: 96}),
        AcceleratorType("nvidia-tesla-v100", "NVIDIA V100", 8, {1: 12, 2: 24, 4: 48, 8: 96}),
    )
}


def find(project: str, zone: str, name: str) -> AcceleratorType:
    """Return an accelerator type of a zone.

    Parameters
    ----------
    project : str
        Project ID, for the refusal.
    zone : str
        Zone name, for the refusal.
    name : str
        The type's name.

    Returns
    -------
    AcceleratorType
        The type.

    Raises
    ------
    APIError
        There is no such type.
    """
    if name not in ACCELERATOR_TYPES:
        raise not_found(f"projects/{project}/zones/{zone}/acceleratorTypes/{name}")
    return ACCELERATOR_TYPES[name]
