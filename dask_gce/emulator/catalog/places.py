"""Regions and their zones, from https://cloud.google.com/compute/docs/regions-zones."""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.errors import not_found
from dask_gce.emulator.links import number_of

_CREATED = "1969-12-31T16:00:00.000-08:00"

#: Zone letters by region; `abc` where nothing is said.
_LETTERS = {"europe-west1": "bcd", "us-central1": "abcf", "us-east1": "bcd"}

_REGIONS = """
africa-south1 asia-east1 asia-east2 asia-northeast1 asia-northeast2 asia-northeast3 asia-south1
asia-south2 asia-southeast1 asia-southeast2 australia-southeast1 australia-southeast2
europe-central2 europe-north1 europe-southwest1 europe-west1 europe-west10 europe-west12
europe-west2 europe-west3 europe-west4 europe-west6 europe-west8 europe-west9 me-central1
me-central2 me-west1 northamerica-northeast1 northamerica-northeast2 northamerica-south1
southamerica-east1 southamerica-west1 us-central1 us-east1 us-east4 us-east5 us-south1 us-west1
us-west2 us-west3 us-west4
"""

#: Zones by region.
REGIONS: dict[str, tuple[str, ...]] = {
    region: tuple(f"{region}-{letter}" for letter in _LETTERS.get(region, "abc"))
    for region in _REGIONS.split()
}

#: Region by zone.
ZONES: dict[str, str] = {zone: region for region, zones in REGIONS.items() for zone in zones}

#: Auto mode networks have one /20 of 10.128.0.0/9 a region. That of us-central1 is Google's own,
#: the others are merely distinct (https://cloud.google.com/vpc/docs/subnets#ip-ranges).
SUBNET_RANGES: dict[str, str] = {
    region: f"10.{128 + 4 * index // 16}.{64 * index % 256}.0/20"
    for index, region in enumerate(sorted(REGIONS, key=lambda name: name != "us-central1"))
}

#: What a limit is shown as that nobody has set, and that nothing is refused for: more than anybody
#: asks for, so that whoever reads it before an insert is told the same as by the insert.
UNLIMITED = 1_000_000.0

#: Quotas every region shows.
_QUOTAS = dict.fromkeys(
    (
        *("CPUS", "PREEMPTIBLE_CPUS", "N2_CPUS", "C2_CPUS", "DISKS_TOTAL_GB", "SSD_TOTAL_GB"),
        *("IN_USE_ADDRESSES", "INSTANCES", "NVIDIA_T4_GPUS", "NVIDIA_L4_GPUS"),
    ),
    UNLIMITED,
)


#: The CPU platforms of every zone.
CPU_PLATFORMS = (
    "Intel Sandy Bridge",
    "Intel Ivy Bridge",
    "Intel Haswell",
    "Intel Broadwell",
    "Intel Skylake",
    "Intel Cascade Lake",
    "Intel Ice Lake",
    "Intel Sapphire Rapids",
    "Intel Emerald Rapids",
    "Intel Granite Rapids",
    "AMD Rome",
    "AMD Milan",
    "AMD Genoa",
    "AMD Turin",
    "Ampere Altra",
    "Google Axion",
)


def region_of(project: str, zone: str) -> str:
    """Return the region of a zone.

    Parameters
    ----------
    project : str
        Project ID, for the refusal.
    zone : str
        Zone name.

    Returns
    -------
    str
        Region name.

    Raises
    ------
    APIError
        There is no such zone.
    """
    if zone not in ZONES:
        raise not_found(f"projects/{project}/zones/{zone}")
    return ZONES[zone]


def check_region(project: str, region: str) -> str:
    """Return a region's name.

    Parameters
    ----------
    project : str
        Project ID, for the refusal.
    region : str
        Region name.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    APIError
        There is no such region.
    """
    if region not in REGIONS:
        raise not_found(f"projects/{project}/regions/{region}")
    return region


def zone_resource(base_url: str, project: str, zone: str) -> dict[str, Any]:
    """Return a zone as ``zones.get`` answers it.

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
        The ``compute#zone`` resource.
    """
    region = region_of(project, zone)
    return {
        "kind": "compute#zone",
        "id": str(number_of(f"zone {zone}") % 100_000),
        "creationTimestamp": _CREATED,
        "name": zone,
        "description": zone,
        "status": "UP",
        "region": f"{base_url}/projects/{project}/regions/{region}",
        "selfLink": f"{base_url}/projects/{project}/zones/{zone}",
        "availableCpuPlatforms": list(CPU_PLATFORMS),
        "supportsPzs": False,
    }


def region_resource(
    base_url: str,
    project: str,
    region: str,
    *,
    limits: dict[str, float],
    usage: dict[str, float],
) -> dict[str, Any]:
    """Return a region as ``regions.get`` answers it.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project : str
        Project ID.
    region : str
        Region name.
    limits : dict
        What may be used, by quota metric; others are shown as unlimited.
    usage : dict
        What is used, by quota metric.

    Returns
    -------
    dict
        The ``compute#region`` resource.
    """
    check_region(project, region)
    return {
        "kind": "compute#region",
        "id": str(number_of(f"region {region}") % 100_000),
        "creationTimestamp": _CREATED,
        "name": region,
        "description": region,
        "status": "UP",
        "zones": [f"{base_url}/projects/{project}/zones/{zone}" for zone in REGIONS[region]],
        "quotas": [
            {"metric": metric, "limit": limit, "usage": usage.get(metric, 0.0)}
            for metric, limit in {**_QUOTAS, **limits}.items()
        ],
        "selfLink": f"{base_url}/projects/{project}/regions/{region}",
        "supportsPzs": False,
    }
