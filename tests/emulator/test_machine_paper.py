"""Paper machines: bookkeeping only, thousands of them, nothing left."""

from __future__ import annotations

import pytest

from dask_gce.emulator.machines import KINDS, make_kind
from dask_gce.emulator.record import InstanceRecord


def record(name: str) -> InstanceRecord:
    return InstanceRecord("local-project", 1, "us-central1-a", {"name": name})


async def test_addresses_are_unique_for_thousands_and_come_back():
    kind = make_kind("paper")
    await kind.start()
    machines = []
    for number in range(6000):
        one = record(f"m{number}")
        machines.append(kind.create(one, kind.allocate(one), lambda how: None))
    addresses = {machine.address for machine in machines}
    assert len(addresses) == 6000
    assert len({kind.external_address(address) for address in addresses}) == 6000
    assert len(kind.leftovers()) == 6000
    with pytest.raises(ValueError, match="in use"):
        kind.allocate(record("again"), machines[7].address)
    await machines[7].discard()
    await machines[7].discard()
    assert kind.allocate(record("again"), machines[7].address) == machines[7].address
    await kind.close()
    await kind.close()
    assert kind.leftovers() == []


# Namespace machines need root, and are shown to do so in tests of their own.
@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("namespace")])
async def test_a_machine_gives_back_the_addresses_of_all_its_interfaces(name):
    kind = make_kind(name)
    await kind.start()
    one, other = record("m"), record("m")
    addresses = [kind.allocate(one), kind.allocate(one)]
    machine = kind.create(one, addresses[0], lambda how: None)
    kept = kind.create(other, kind.allocate(other), lambda how: None)
    if addresses[0] == addresses[1]:
        await kind.close()
        pytest.skip("this host has one loopback address only")
    for address in (*addresses, kept.address):
        with pytest.raises(ValueError, match="in use"):
            kind.allocate(other, address)
    await machine.discard()
    await machine.discard()
    with pytest.raises(ValueError, match="in use"):
        kind.allocate(other, kept.address)
    assert [kind.allocate(other, address) for address in addresses] == addresses
    await kind.close()
    assert kind.leftovers() == []


async def test_power_follows_the_verbs():
    kind = make_kind("paper")
    one = record("m")
    machine = kind.create(one, kind.allocate(one), lambda how: None)
    assert not machine.powered
    await machine.boot()
    assert machine.powered
    await machine.stop(1)
    assert not machine.powered
    await machine.boot()
    await machine.kill()
    assert not machine.powered
    await machine.discard()
    assert kind.leftovers() == []


async def test_an_address_outside_the_network_is_refused():
    kind = make_kind("paper")
    with pytest.raises(ValueError, match=r"192\.168\.0\.1"):
        kind.allocate(record("m"), "192.168.0.1")


def test_an_unknown_kind_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'qemu'.*process, paper"):
        make_kind("qemu")
