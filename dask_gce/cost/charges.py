"""What a whole machine costs an hour: with its GPUs, its disks and its address.

Owns which of its parts are charged for, and how much of the price is known. What the parts cost is
in `prices`; how long the machine runs is in `spending`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from dask_gce.families import family_of
from dask_gce.instance import InstanceSpec
from dask_gce.prices import TABLE, Tariff, billed_size

__all__ = [
    "Charge",
    "Price",
    "PriceBook",
    "Pricing",
    "add_up",
    "changed_by",
    "charge_of",
    "default_disk",
    "render_dollars",
]

#: GB of one local SSD: https://docs.cloud.google.com/compute/docs/disks/local-ssd
_LOCAL_SSD: Final = 375

#: Disk type of series that do not boot from pd-standard where none is named, as the reference of
#: ``disks[].initializeParams.diskType`` says: https://cloud.google.com/compute/docs/reference/rest
_BALANCED: Final = frozenset({"c3", "c3d", "m3"})
_STANDARD: Final = frozenset(
    {"a2", "c2", "c2d", "e2", "f1", "g1", "m1", "m2", "n1", "n2", "n2d", "t2a", "t2d"}
)

#: Fields of a request that change what a machine costs in a way that is not followed here.
_CHANGING: Final = frozenset(
    {"machineType", "disks", "guestAccelerators", "networkInterfaces", "advancedMachineFeatures"}
)


@dataclass(frozen=True)
class Charge:
    """What is charged for of one machine.

    Parameters
    ----------
    machine_type : str
        Its machine type.
    zone : str
        Its zone.
    spot : bool
        Whether it is a Spot machine.
    gpu_type : str
        Type of the GPUs that were added to it; empty for none.
    gpus : int
        How many were added.
    local_ssds : int
        How many local SSDs were added.
    disk_type : str or None
        Type of its boot disk; None if it is not known.
    disk_size : int
        Size of that disk in GB; 0 if it is not known, or is not to be part of the price.
    address : bool
        Whether it has an external address.
    changed : tuple of str
        Fields that ``instance_overrides`` changes, so that what they cost is not known.
    """

    machine_type: str
    zone: str
    spot: bool = False
    gpu_type: str = ""
    gpus: int = 0
    local_ssds: int = 0
    disk_type: str | None = None
    disk_size: int = 0
    address: bool = False
    changed: tuple[str, ...] = ()

    @property
    def region(self) -> str:
        """The region of its zone."""
        return self.zone.rpartition("-")[0]


@dataclass(frozen=True)
class Price:
    """What something costs, as far as it is known.

    Parameters
    ----------
    amount : float or None
        US dollars; without what is in `missing`. None if too little is known for an amount.
    missing : tuple of str
        Parts whose price is not known, in words.
    as_of : datetime.date or None
        Of when the oldest of the prices is; None if there is none.
    live : bool
        Whether all prices are from Google's own list.
    """

    amount: float | None
    missing: tuple[str, ...] = ()
    as_of: date | None = None
    live: bool = False

    @property
    def complete(self) -> bool:
        """Whether the price of every part is known."""
        return self.amount is not None and not self.missing

    @property
    def source(self) -> str:
        """Where it comes from: ``"price list"``, ``"table"`` or, without an amount, nothing."""
        if self.amount is None:
            return ""
        return "price list" if self.live else "table"

    def __str__(self) -> str:
        if self.amount is None:
            return "unknown"
        return f"{'about' if self.complete else 'at least'} {render_dollars(self.amount)}"

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            ``amount`` in US dollars or None, ``complete``, ``missing``, ``as_of``, ``source``.
        """
        return {
            "amount": None if self.amount is None else round(self.amount, 6),
            "complete": self.complete,
            "missing": list(self.missing),
            "as_of": None if self.as_of is None else self.as_of.isoformat(),
            "source": self.source or None,
        }


def render_dollars(amount: float) -> str:
    """Say an amount of money.

    Parameters
    ----------
    amount : float
        US dollars.

    Returns
    -------
    str
        In dollars and cents; what is less than ten cents in hundredths of cents.

    Examples
    --------
    >>> render_dollars(1234.5), render_dollars(0.0168), render_dollars(0)
    ('$1,234.50', '$0.0168', '$0.00')
    """
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.4f}"


def add_up(prices: Iterable[Price]) -> Price:
    """Add prices; what is not known of one is not known of the sum.

    Parameters
    ----------
    prices : iterable of Price
        The prices.

    Returns
    -------
    Price
        Their sum: zero of none, unknown if all are.

    Examples
    --------
    >>> add_up([Price(1.0), Price(None, ("a machine",))])
    Price(amount=1.0, missing=('a machine',), as_of=None, live=False)
    """
    every = list(prices)
    known = [each for each in every if each.amount is not None]
    if every and not known:
        amount = None
    else:
        amount = sum(each.amount for each in known if each.amount is not None)
    dates = [each.as_of for each in known if each.as_of is not None]
    return Price(
        amount,
        tuple(dict.fromkeys(part for each in every for part in each.missing)),
        min(dates, default=None),
        bool(known) and all(each.live for each in known),
    )


class PriceBook:
    """Lists of prices, of which the first that knows a part is believed.

    Parameters
    ----------
    tariffs : sequence of Tariff
        The lists.

    Examples
    --------
    >>> charge = Charge("e2-standard-4", "us-central1-a", disk_type="pd-standard", disk_size=30)
    >>> str(PriceBook().price(charge))
    'about $0.14'
    >>> str(PriceBook().price(Charge("e2-standard-4", "us-central1-a", spot=True)))
    'unknown'
    """

    def __init__(self, tariffs: Sequence[Tariff] = (TABLE,)) -> None:
        self.tariffs = tuple(tariffs)
        # A thousand machines have few prices, and are added up again for each that is asked for.
        self._known: dict[Charge, Price] = {}

    def price(self, charge: Charge) -> Price:
        """Return what an hour of a machine costs.

        Without vCPUs, memory, GPUs and local SSDs there is no amount. A disk or an address is so
        small a part that without its price the others make one, of which it is said what is
        missing.

        Parameters
        ----------
        charge : Charge
            What is charged for.

        Returns
        -------
        Price
            US dollars an hour.
        """
        if charge not in self._known:
            self._known[charge] = self._look_up(charge)
        return self._known[charge]

    def _look_up(self, charge: Charge) -> Price:
        used: list[Tariff] = []
        missing = [f"what instance_overrides changes ({', '.join(charge.changed)})"]
        if not charge.changed:
            missing.clear()

        def look_up(amount: float, kind: str, name: str = "", what: str = "") -> float:
            """Return the price of an amount of something; note what is not known."""
            for tariff in self.tariffs if amount else ():
                rate = tariff.rate(kind, name, charge.region, spot=charge.spot)
                if rate is not None:
                    used.append(tariff)
                    return rate * amount
            if amount:
                missing.append(f"{what} in {charge.region}")
            return 0.0

        size = billed_size(charge.machine_type)
        market = "Spot " if charge.spot else ""
        machine = f"{market}{charge.machine_type}"
        if size is None:
            return Price(None, (*missing, f"{machine} in {charge.region}"))
        total = look_up(size.cpus, "vcpu", size.name, machine)
        total += look_up(size.memory, "gb", size.name, machine)
        total += look_up(size.gpus, "gpu", size.gpu_type, f"{market}{size.gpu_type}")
        total += look_up(charge.gpus, "gpu", charge.gpu_type, f"{market}{charge.gpu_type}")
        ssds = charge.local_ssds * _LOCAL_SSD
        total += look_up(ssds, "ssd", "", f"{market}local SSDs")
        essential = not missing
        disk = charge.disk_type or "boot"
        total += look_up(charge.disk_size, "disk", disk, f"{disk} disks")
        total += look_up(charge.address, "address", "", f"{market}external addresses")
        return Price(
            total if essential else None,
            tuple(dict.fromkeys(missing)),
            min((each.as_of for each in used), default=None) if essential else None,
            essential and all(each.live for each in used),
        )


def default_disk(machine_type: str) -> str | None:
    """Return the type of a boot disk where none is asked for.

    Parameters
    ----------
    machine_type : str
        The machine type.

    Returns
    -------
    str or None
        The disk type; None if it is not known.

    Examples
    --------
    >>> default_disk("e2-standard-4"), default_disk("c3-standard-4"), default_disk("n4-standard-4")
    ('pd-standard', 'pd-balanced', 'hyperdisk-balanced')
    """
    family = family_of(machine_type)
    if family in _STANDARD:
        return "pd-standard"
    return "pd-balanced" if family in _BALANCED else "hyperdisk-balanced"


def charge_of(spec: InstanceSpec) -> Charge:
    """Return what is charged for of an instance.

    Parameters
    ----------
    spec : InstanceSpec
        The instance.

    Returns
    -------
    Charge
        What is charged for.
    """
    hardware = spec.hardware
    return Charge(
        spec.machine_type,
        spec.zone,
        spot=spec.spot or _typed_spot(spec.overrides),
        gpu_type=hardware.accelerator_type or "",
        gpus=hardware.accelerator_count if hardware.accelerator_type else 0,
        local_ssds=spec.local_ssds,
        disk_type=spec.boot_disk_type or default_disk(spec.machine_type),
        disk_size=spec.boot_disk_size,
        address=spec.external_ip,
        changed=changed_by(spec.overrides),
    )


def changed_by(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which fields of a request a user has typed that change what a machine costs.

    Parameters
    ----------
    overrides : mapping
        The setting ``instance_overrides``.

    Returns
    -------
    tuple of str
        The fields.
    """
    return tuple(sorted(_CHANGING & overrides.keys()))


def _typed_spot(overrides: Mapping[str, Any]) -> bool:
    """Tell whether a user has made machines Spot by hand."""
    scheduling = overrides.get("scheduling")
    if not isinstance(scheduling, Mapping):
        return False
    return scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible"))


#: Tells what an hour of a machine costs.
Pricing = Callable[[Charge], Price]
