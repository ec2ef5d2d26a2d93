"""The network interfaces of a new instance: an address each, and the machine that has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.errors import invalid
from dask_gce.emulator.links import fingerprint
from dask_gce.emulator.machine import AddressTaken, Machine
from dask_gce.emulator.record import InstanceRecord
from dask_gce.emulator.reserved import address_in_use

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud

Resource = dict[str, Any]


def make_machine(
    cloud: Cloud,
    record: InstanceRecord,
    plans: Sequence[Resource],
    on_exit: Callable[[str], None],
) -> Machine:
    """Return the machine of a new instance, and note its addresses in the instance's resource.

    Parameters
    ----------
    cloud : Cloud
        The state.
    record : InstanceRecord
        The instance.
    plans : sequence of dict
        Its network interfaces, still without addresses.
    on_exit : callable
        Told when the guest ends by itself.

    Returns
    -------
    Machine
        The machine, off.

    Raises
    ------
    APIError
        An address cannot be had; none is held then.
    """
    interfaces: list[Resource] = []
    record.resource["networkInterfaces"] = interfaces
    kind = cloud.kind
    first = ""
    for plan in plans:
        wanted = plan.get("networkIP")
        try:
            address = kind.allocate(record, wanted)
        except ValueError as error:
            if first:
                # The addresses that could be had go back with their machine.
                cloud.operations.spawn(kind.create(record, first, on_exit).discard())
            if isinstance(error, AddressTaken):
                raise address_in_use(error.address) from error
            raise invalid("resource.networkInterfaces.networkIP", wanted, f"{error}.") from error
        first = first or address
        interface = {**plan, "networkIP": address, "fingerprint": fingerprint([address])}
        if "accessConfigs" in plan:
            interface["accessConfigs"] = [
                {**config, "natIP": kind.external_address(address)}
                for config in plan["accessConfigs"]
            ]
        interfaces.append(interface)
    return kind.create(record, first, on_exit)
