"""What machines cost, as far as a table knows: list prices, and None rather than a guess.

Owns the table `prices.csv`, whose source and date stand in it, and what of it a machine type takes.
It knows the predefined types of the series e2, n1 and n2, on demand. Custom types cost more by a
share that the table does not have, spot prices change from month to month, and other series are
priced otherwise: of all of these it says that it does not know.

Source: `VM instance pricing <https://cloud.google.com/compute/vm-instance-pricing>`_.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

from dask_gce.errors import SettingsError
from dask_gce.machine_types import parse_machine_type

__all__ = ["hourly_price"]

#: GB of memory for each vCPU, by series and class:
#: https://docs.cloud.google.com/compute/docs/general-purpose-machines
_MEMORY: Final = {
    ("e2", "highcpu"): 1.0,
    ("e2", "standard"): 4.0,
    ("e2", "highmem"): 8.0,
    ("n1", "highcpu"): 0.9,
    ("n1", "standard"): 3.75,
    ("n1", "highmem"): 6.5,
    ("n2", "highcpu"): 1.0,
    ("n2", "standard"): 4.0,
    ("n2", "highmem"): 8.0,
}

#: What shared-core types are charged for, in vCPUs and GB; they show more vCPUs than that.
_SHARED: Final = {"e2-micro": (0.25, 1.0), "e2-small": (0.5, 2.0), "e2-medium": (1.0, 4.0)}

#: Does not have the memory that its name tells.
_EXCEPTIONS: Final = frozenset({"n2-highmem-128"})


def _read() -> dict[tuple[str, str], tuple[float, float]]:
    lines = Path(__file__).with_name("prices.csv").read_text(encoding="utf-8").splitlines()
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {(row["family"], row["region"]): (float(row["vcpu"]), float(row["gb"])) for row in table}


# Read with the module, so that no event loop waits for it.
_RATES: Final = _read()


def hourly_price(machine_type: str, zone: str, *, spot: bool = False) -> float | None:
    """Return what an hour of a machine costs, by the list.

    Disks, addresses, traffic and discounts are not part of it.

    Parameters
    ----------
    machine_type : str
        The machine type's name.
    zone : str
        The zone it is in.
    spot : bool
        Whether it is a spot machine.

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
    rates = _RATES.get((machine_type.partition("-")[0], zone.rpartition("-")[0]))
    size = _size(machine_type)
    if spot or rates is None or size is None:
        return None
    return rates[0] * size[0] + rates[1] * size[1]


def _size(machine_type: str) -> tuple[float, float] | None:
    """Return the vCPUs and GB that a machine type is charged for."""
    if machine_type in _SHARED:
        return _SHARED[machine_type]
    try:
        name = parse_machine_type(machine_type)
    except SettingsError:
        return None
    memory = _MEMORY.get((name.family, name.size_class))
    if name.cpus is None or memory is None or name.name in _EXCEPTIONS:
        return None
    return name.cpus, name.cpus * memory
