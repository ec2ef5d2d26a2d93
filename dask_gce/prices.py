"""What machines cost, as far as lists know: list prices, and None rather than a guess.

Owns the table `prices.csv`, whose source and date stand in it, what of a list a machine type takes,
and what a list is (`Tariff`). The table knows the predefined types of the series e2, n1 and n2, on
demand, persistent disks in three regions of the United States, and external addresses. Custom types
cost more by a share that the table does not have, Spot prices change from month to month, and other
series are priced otherwise: of all of these it says that it does not know. Google's own list, which
`price_list` reads, knows them.

What a whole machine costs, with its disk and its address, is put together in `cost`.

Source: `VM instance pricing <https://cloud.google.com/compute/vm-instance-pricing>`_.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from dask_gce.errors import SettingsError
from dask_gce.machine_types import parse_machine_type

__all__ = ["HOURS_PER_MONTH", "TABLE", "Item", "Size", "Tariff", "billed_size", "hourly_price"]

#: What Google counts a month as where it has a price for a month.
#: https://cloud.google.com/compute/vm-instance-pricing
HOURS_PER_MONTH: Final = 730

#: GB of memory for each vCPU, by series and class:
#: https://docs.cloud.google.com/compute/docs/general-purpose-machines
#: https://docs.cloud.google.com/compute/docs/compute-optimized-machines
_MEMORY: Final = {
    ("e2", "highcpu"): 1.0,
    ("e2", "standard"): 4.0,
    ("e2", "highmem"): 8.0,
    ("n1", "highcpu"): 0.9,
    ("n1", "standard"): 3.75,
    ("n1", "highmem"): 6.5,
    **{
        (series, size): memory
        for series in ("n2", "n2d")
        for size, memory in (("highcpu", 1.0), ("standard", 4.0), ("highmem", 8.0))
    },
    **{
        (series, size): memory
        for series in ("c2d", "c3", "c4a", "n4")
        for size, memory in (("highcpu", 2.0), ("standard", 4.0), ("highmem", 8.0))
    },
    ("c3d", "standard"): 4.0,
    ("c3d", "highmem"): 8.0,
    ("c2", "standard"): 4.0,
    ("t2d", "standard"): 4.0,
    ("t2a", "standard"): 4.0,
    ("g2", "standard"): 4.0,
}

#: What shared-core types are charged for, in vCPUs and GB; they show more vCPUs than that.
_SHARED: Final = {"e2-micro": (0.25, 1.0), "e2-small": (0.5, 2.0), "e2-medium": (1.0, 4.0)}

#: GPUs that machine types come with, and are charged for beside vCPUs and memory:
#: https://docs.cloud.google.com/compute/docs/accelerator-optimized-machines
_GPUS: Final = {
    **{
        f"g2-standard-{cpus}": ("nvidia-l4", count)
        for cpus, count in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8))
    },
    **{f"a2-highgpu-{count}g": ("nvidia-tesla-a100", count) for count in (1, 2, 4, 8)},
}
#: vCPUs and GB for each GPU of those whose names count GPUs.
_PER_GPU: Final = {("a2", "highgpu"): (12, 85.0)}

#: Do not have the memory that their names tell.
_EXCEPTIONS: Final = frozenset({"n2-highmem-128"})


class Item(NamedTuple):
    """One thing that has a price an hour.

    Parameters
    ----------
    kind : str
        ``"vcpu"``, ``"gb"`` (of memory), ``"gpu"``, ``"disk"`` (a GB of it), ``"ssd"`` (a GB of
        local SSD) or ``"address"``.
    name : str
        Of vCPUs and memory the series, with ``-custom`` behind it for custom types; of a GPU or a
        disk its type; else empty.
    region : str
        The region; empty if it costs the same in all of them.
    spot : bool
        Whether it is that of a Spot machine.
    """

    kind: str
    name: str
    region: str
    spot: bool = False


class Size(NamedTuple):
    """What a machine type is charged for.

    Parameters
    ----------
    name : str
        Whose vCPUs and memory they are, as in `Item`.
    cpus : float
        Number of vCPUs.
    memory : float
        GB of memory.
    gpu_type : str
        Type of the GPUs that it comes with; empty if it comes with none.
    gpus : int
        How many these are.
    """

    name: str
    cpus: float
    memory: float
    gpu_type: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class Tariff:
    """A list of prices.

    Parameters
    ----------
    rates : mapping of Item to float
        What each costs an hour, in US dollars.
    as_of : datetime.date
        Of when it is.
    live : bool
        Whether it is Google's own; else it is the table that comes with this package.
    """

    rates: Mapping[Item, float] = field(repr=False)
    as_of: date
    live: bool = False

    def rate(self, kind: str, name: str, region: str, *, spot: bool = False) -> float | None:
        """Return what something costs an hour.

        Parameters
        ----------
        kind, name, region : str
            What it is, as in `Item`.
        spot : bool
            Whether it is that of a Spot machine.

        Returns
        -------
        float or None
            US dollars; None if the list does not know.
        """
        found = self.rates.get(Item(kind, name, region, spot))
        return self.rates.get(Item(kind, name, "", spot)) if found is None else found


def _read() -> dict[tuple[str, str], tuple[float, float]]:
    lines = Path(__file__).with_name("prices.csv").read_text(encoding="utf-8").splitlines()
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {(row["family"], row["region"]): (float(row["vcpu"]), float(row["gb"])) for row in table}


# Read with the module, so that no event loop waits for it.
_RATES: Final = _read()

#: A GB of a disk for a month: https://cloud.google.com/compute/disks-image-pricing, of which the
#: figures for the United States are written down, in the regions whose other prices are those of
#: us-central1 too. On 2026-11-21.
_DISKS: Final = {"pd-standard": 0.04, "pd-balanced": 0.10, "pd-ssd": 0.17}
_DISK_REGIONS: Final = ("us-central1", "us-east1", "us-west1")

#: An external address that a machine uses, everywhere:
#: https://cloud.google.com/vpc/network-pricing#ipaddress, as of 2026-10-16. What a project has of
#: them for nothing each month is not part of it.
_ADDRESS: Final = {False: 0.005, True: 0.0025}

#: What comes with this package.
TABLE: Final = Tariff(
    {
        **{Item("vcpu", *key): cpu for key, (cpu, _) in _RATES.items()},
        **{Item("gb", *key): memory for key, (_, memory) in _RATES.items()},
        **{
            # A disk costs the same under a Spot machine.
            Item("disk", name, region, spot): price / HOURS_PER_MONTH
            for name, price in _DISKS.items()
            for region in _DISK_REGIONS
            for spot in (False, True)
        },
        **{Item("address", "", "", spot): price for spot, price in _ADDRESS.items()},
    },
    date(2026, 11, 21),
)


def hourly_price(
    machine_type: str, zone: str, *, spot: bool = False, tariff: Tariff = TABLE
) -> float | None:
    """Return what an hour of a machine costs, by the list.

    GPUs that it comes with are part of it. Disks, addresses, traffic and discounts are not.

    Parameters
    ----------
    machine_type : str
        The machine type's name.
    zone : str
        The zone it is in.
    spot : bool
        Whether it is a Spot machine.
    tariff : Tariff
        The list.

    Returns
    -------
    float or None
        US dollars; None if the price is not known.

    Examples
    --------
    >>> round(hourly_price("e2-standard-4", "us-central1-a"), 3)
    0.134
    >>> hourly_price("n2-custom-4-16384", "us-central1-a") is None
    True
    """
    size = billed_size(machine_type)
    if size is None:
        return None
    region = zone.rpartition("-")[0]
    cpu = tariff.rate("vcpu", size.name, region, spot=spot)
    memory = tariff.rate("gb", size.name, region, spot=spot)
    gpu = tariff.rate("gpu", size.gpu_type, region, spot=spot) if size.gpus else 0.0
    if cpu is None or memory is None or gpu is None:
        return None
    return cpu * size.cpus + memory * size.memory + gpu * size.gpus


def billed_size(machine_type: str) -> Size | None:
    """Return what a machine type is charged for, by its name.

    Parameters
    ----------
    machine_type : str
        The machine type's name.

    Returns
    -------
    Size or None
        What it is charged for; None if the name does not tell, or what it comes with has prices
        that are not known, as local SSDs.

    Examples
    --------
    >>> billed_size("e2-small").cpus, billed_size("g2-standard-24").gpus
    (0.5, 2)
    >>> billed_size("n2-custom-4-16384")
    Size(name='n2-custom', cpus=4, memory=16.0, gpu_type='', gpus=0)
    >>> billed_size("c3-standard-8-lssd") is None
    True
    """
    if machine_type in _SHARED:
        return Size("e2", *_SHARED[machine_type])
    try:
        name = parse_machine_type(machine_type)
    except SettingsError:
        return None
    if name.kind == "custom":
        # Extended memory has a price of its own,
        # and a shared-core type is charged for a share that its name does not tell.
        shared = name.name.rpartition("custom-")[2].partition("-")[0]
        if name.memory_mb is None or name.extended or shared != str(name.cpus):
            return None
        return Size(f"{name.family}-custom", int(shared), name.memory_mb / 1024)
    gpu_type, gpus = _GPUS.get(name.name, ("", 0))
    if (name.family, name.size_class) in _PER_GPU and gpus:
        cpus, memory = _PER_GPU[name.family, name.size_class]
        return Size(name.family, cpus * gpus, memory * gpus, gpu_type, gpus)
    per_cpu = _MEMORY.get((name.family, name.size_class))
    if name.cpus is None or per_cpu is None or name.name in _EXCEPTIONS:
        return None
    if name.name != f"{name.family}-{name.size_class}-{name.cpus}":
        return None  # a variant, with local SSDs for example
    if name.family == "g2" and not gpus:
        return None
    return Size(name.family, name.cpus, name.cpus * per_cpu, gpu_type, gpus)
