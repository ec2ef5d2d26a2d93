"""What a machine type can be combined with: GPUs, local SSDs, Confidential VMs, reservations.

Owns the checks of these fields of an instance, in Google's words as far as they are known. Sources:
https://cloud.google.com/compute/docs/gpus,
https://cloud.google.com/compute/docs/disks/local-ssd#choose_number_local_ssds,
https://cloud.google.com/confidential-computing/confidential-vm/docs/supported-configurations and
https://cloud.google.com/compute/docs/instances/specify-min-cpu-platform.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog import accelerators
from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.catalog.places import CPU_PLATFORMS
from dask_gce.emulator.errors import APIError, bad_request, invalid
from dask_gce.emulator.links import last_segment, path_of

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]

#: Local SSDs that a machine can be given, besides none: family -> (most vCPUs, numbers) in order.
_LOCAL_SSDS = {
    "n1": ((96, "1 2 3 4 5 6 7 8 16 24"),),
    "n2": (
        (10, "1 2 4 8 16 24"),
        (20, "2 4 8 16 24"),
        (40, "4 8 16 24"),
        (80, "8 16 24"),
        (128, "16 24"),
    ),
    "n2d": ((16, "1 2 4 8 16 24"), (48, "2 4 8 16 24"), (80, "4 8 16 24"), (224, "8 16 24")),
    "c2": ((8, "1 2 4 8"), (16, "2 4 8"), (30, "4 8"), (60, "8")),
    "c2d": ((16, "1 2 4 8"), (32, "2 4 8"), (56, "4 8"), (112, "8")),
    "a2": ((12, "1 2 4 8"), (24, "2 4 8"), (48, "4 8"), (96, "8")),
}
#: The same of G2, by the number of GPUs.
_LOCAL_SSDS_OF_G2 = {1: "1", 2: "2", 4: "4", 8: "8"}

#: G4 takes them too, in numbers that are not known here: by the number of GPUs, the most.
_LOCAL_SSDS_OF_G4 = {1: 4, 2: 8, 4: 16, 8: 32}

_CONFIDENTIAL = {
    "SEV": r"(n2d|c2d|c3d|c4d)-",
    "SEV_SNP": r"n2d-",
    "TDX": r"(c3-standard-\d+|a3-highgpu-1g)$",
}
#: Those that run on whichever CPU platform there is.
_NO_CPU_PLATFORM = frozenset({"e2", "f1", "g1"})


def check_accelerators(
    cloud: Cloud,
    project: Project,
    zone: str,
    asked: list[Resource],
    *,
    machine_type: MachineType,
    field: str,
    bulk: bool,
) -> list[Resource]:
    """Return the accelerators of an instance as it shows them.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where it is to be.
    zone : str
        The zone, which exists.
    asked : list of dict
        The ``AcceleratorConfig`` objects from the request.
    machine_type : MachineType
        The instance's machine type.
    field : str
        The field that holds them, without ``.guestAccelerators``, for refusals.
    bulk : bool
        Whether types are names, as bulk inserts want them, or links.

    Returns
    -------
    list of dict
        Those asked for, and those that the machine type comes with.

    Raises
    ------
    APIError
        There is no such type, or the machine type cannot have so many.
    """
    counts: dict[str, int] = {}
    for index, one in enumerate(asked):
        where = f"{field}.guestAccelerators[{index}]"
        link, count = one.get("acceleratorType", ""), one.get("acceleratorCount", 0)
        name = last_segment(link)
        wanted = name if bulk else f"zones/{zone}/acceleratorTypes/{name}"
        if (link if bulk else path_of(link).removeprefix(f"{project.path}/")) != wanted:
            explanation = "Must be a name." if bulk else "The URL is malformed."
            raise invalid(f"{where}.acceleratorType", link, explanation)
        found = accelerators.find(project.id, zone, name.removesuffix("-vws"))
        comes_with = machine_type.accelerator, machine_type.accelerators
        if (name.removesuffix("-vws"), count) == comes_with:
            counts[name] = count
            continue  # what it comes with may be named
        if machine_type.family != "n1" or machine_type.shared_cpu or not found.vcpus:
            raise bad_request(
                f"[{machine_type.name}, {name}] features are not compatible for creating instance."
            )
        if count not in found.vcpus:
            allowed = ", ".join(map(str, found.vcpus))
            raise invalid(
                f"{where}.acceleratorCount",
                count,
                f"The number of accelerator cards of type {name} must be one of [{allowed}].",
            )
        if machine_type.guest_cpus > found.vcpus[count]:
            raise invalid(
                f"{where}.acceleratorCount",
                count,
                f"At most {found.vcpus[count]} vCPUs can be used along with {count} accelerator"
                " cards in an instance.",
            )
        counts[name] = count
    if machine_type.accelerators and not counts:
        counts[machine_type.accelerator] = machine_type.accelerators
    url = cloud.url(f"{project.path}/zones/{zone}/acceleratorTypes")
    return [
        {"acceleratorType": f"{url}/{name}", "acceleratorCount": count}
        for name, count in counts.items()
    ]


def check_local_ssds(machine_type: MachineType, count: int) -> None:
    """Refuse a number of local SSDs that a machine type cannot have.

    Parameters
    ----------
    machine_type : MachineType
        The machine type.
    count : int
        How many are asked for.

    Raises
    ------
    APIError
        It can have another number, or none.

    Examples
    --------
    >>> from dask_gce.emulator.catalog.machine_types import MACHINE_TYPES
    >>> check_local_ssds(MACHINE_TYPES["n2-standard-16"], 2)
    """
    if not count or count == machine_type.local_ssds:
        return
    if machine_type.family == "g4":
        most = _LOCAL_SSDS_OF_G4[machine_type.accelerators]
        allowed = " ".join(map(str, range(1, most + 1)))
    elif machine_type.family == "g2":
        allowed = _LOCAL_SSDS_OF_G2[machine_type.accelerators]
    else:
        lines = _LOCAL_SSDS.get(machine_type.family, ())
        allowed = next((each for most, each in lines if machine_type.guest_cpus <= most), "")
    if machine_type.local_ssds or not allowed:
        raise bad_request(
            f"[{machine_type.name}, local-ssd] features are not compatible for creating instance."
        )
    if str(count) not in allowed.split():
        numbers = ", ".join(["0", *allowed.split()])
        raise bad_request(
            f"Number of local SSDs for an instance of type {machine_type.name} should be one of"
            f" [{numbers}], while [{count}] is requested."
        )


def check_placement(
    body: Resource, machine_type: MachineType, field: str, *, reservations: Collection[str]
) -> None:
    """Check what an instance asks of its host beside the machine type.

    Parameters
    ----------
    body : dict
        ``Instance`` or ``InstanceProperties``.
    machine_type : MachineType
        Its machine type.
    field : str
        Where the body is, for refusals.
    reservations : collection of str
        The names of the reservations that there are.

    Raises
    ------
    APIError
        The machine type or the zone has no such host, or the fields contradict each other.
    """
    _check_reservation(body.get("reservationAffinity", {}), field, reservations)
    _check_confidential(body, machine_type, field)
    platform = body.get("minCpuPlatform")
    if platform is not None:
        where = f"{field}.minCpuPlatform"
        if machine_type.family in _NO_CPU_PLATFORM:
            raise bad_request(
                f"[{machine_type.name}, min-cpu-platform] features are not compatible for creating"
                " instance."
            )
        if platform not in CPU_PLATFORMS:
            raise invalid(where, platform, "The CPU platform does not exist in this zone.")


def _check_reservation(affinity: Resource, field: str, reservations: Collection[str]) -> None:
    kind = affinity.get("consumeReservationType", "ANY_RESERVATION")
    where, values = f"{field}.reservationAffinity", affinity.get("values", [])
    if kind != "SPECIFIC_RESERVATION":
        if values:
            raise invalid(where, "", "Only SPECIFIC_RESERVATION has values.")
        return
    if affinity.get("key") != "compute.googleapis.com/reservation-name" or len(values) != 1:
        raise invalid(where, "", "A specific reservation needs its key and one value.")
    name = last_segment(values[0])
    if name not in reservations:
        raise invalid(where, name, f"Specified reservations [{values[0]}] do not exist.")


def _check_confidential(body: Resource, machine_type: MachineType, field: str) -> None:
    config = body.get("confidentialInstanceConfig", {})
    kind = config.get("confidentialInstanceType")
    if kind is None and config.get("enableConfidentialCompute"):
        kind = "SEV"
    if kind is None:
        return
    if not re.match(_CONFIDENTIAL.get(kind, r"$"), machine_type.name):
        raise bad_request(
            f"[{machine_type.name}, confidential-instance-type-{kind}] features are not compatible"
            " for creating instance."
        )
    if (kind, machine_type.family) == ("SEV", "n2d"):
        return  # the only ones that move to another host
    if body.get("scheduling", {}).get("onHostMaintenance", "MIGRATE") == "MIGRATE":
        raise invalid(
            f"{field}.scheduling.onHostMaintenance",
            "MIGRATE",
            "Confidential VMs do not support live migration.",
        )


def check_architecture(architecture: str, machine_type: MachineType) -> None:
    """Refuse a boot disk for other processors than a machine type has.

    Parameters
    ----------
    architecture : str
        The disk's.
    machine_type : MachineType
        The machine type.

    Raises
    ------
    APIError
        They differ.
    """
    if architecture != machine_type.architecture:
        raise APIError(
            400,
            "invalidResourceUsage",
            f"Invalid resource usage: 'Requested boot disk architecture ({architecture}) is not"
            f" compatible with machine type architecture ({machine_type.architecture}).'.",
        )
