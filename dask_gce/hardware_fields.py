"""What an instance asks of its host, beside its machine type, on the wire.

Owns the shape of these fields of ``instances.insert``: GPUs, local SSDs, CPU platform, reservation,
Confidential VM, secure boot. Whether they can be had together is the matter of `hardware` and
`gpus`; the request as a whole is that of `instance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ORDINARY", "Hardware", "hardware_fields", "local_ssd"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What is asked of an instance's host, beside its machine type.

    Parameters
    ----------
    accelerator_type : str or None
        Type of the GPUs that are added to it; None for none.
    accelerator_count : int
        How many are added.
    migrates : bool
        Whether it can be moved to another host while it runs.
    min_cpu_platform : str or None
        The oldest CPU platform it may be on.
    reservation : str or None
        Reservation that it is taken from, a name or ``projects/P/reservations/NAME``.
    confidential_type : str or None
        Technology that makes it a Confidential VM; None for none.
    secure_boot : bool
        Whether it boots signed software only.
    """

    accelerator_type: str | None = None
    accelerator_count: int = 0
    migrates: bool = True
    min_cpu_platform: str | None = None
    reservation: str | None = None
    confidential_type: str | None = None
    secure_boot: bool = False


#: What most instances ask: nothing. They share it.
ORDINARY: Final = Hardware()


def local_ssd(zone: str) -> dict[str, Any]:
    """Return a local SSD as one of an instance's disks.

    See https://docs.cloud.google.com/compute/docs/disks/add-local-ssd .

    Parameters
    ----------
    zone : str
        The instance's zone.

    Returns
    -------
    dict
        An ``AttachedDisk`` of the API.

    Examples
    --------
    >>> local_ssd("us-central1-a")["type"]
    'SCRATCH'
    """
    return {
        "type": "SCRATCH",
        "interface": "NVME",
        "autoDelete": True,
        "initializeParams": {"diskType": f"zones/{zone}/diskTypes/local-ssd"},
    }


def hardware_fields(asked: Hardware, zone: str) -> dict[str, Any]:
    """Return the fields of an instance that say what its host must have.

    Parameters
    ----------
    asked : Hardware
        What is asked of it.
    zone : str
        The instance's zone.

    Returns
    -------
    dict
        Fields of an ``Instance`` of the API; none for an ordinary host.

    Examples
    --------
    >>> hardware_fields(Hardware(min_cpu_platform="Intel Ice Lake"), "us-central1-a")
    {'minCpuPlatform': 'Intel Ice Lake'}
    """
    fields: dict[str, Any] = {}
    if asked.accelerator_type is not None and asked.accelerator_count:
        kind = f"zones/{zone}/acceleratorTypes/{asked.accelerator_type}"
        fields["guestAccelerators"] = [
            {"acceleratorType": kind, "acceleratorCount": asked.accelerator_count}
        ]
    if asked.min_cpu_platform is not None:
        fields["minCpuPlatform"] = asked.min_cpu_platform
    if asked.reservation is not None:
        # https://docs.cloud.google.com/compute/docs/instances/reservations-consume
        fields["reservationAffinity"] = {
            "consumeReservationType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [asked.reservation],
        }
    if asked.confidential_type is not None:
        fields["confidentialInstanceConfig"] = {"confidentialInstanceType": asked.confidential_type}
    if asked.secure_boot:
        # https://docs.cloud.google.com/compute/shielded-vm/docs/modifying-shielded-vm
        fields["shieldedInstanceConfig"] = {
            "enableSecureBoot": True,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        }
    return fields
