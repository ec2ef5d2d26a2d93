"""Static addresses: reserved, used by instances, and kept for whoever names them."""

from __future__ import annotations

import httplib2
import pytest
from googleapiclient.discovery import build
from rest import PROJECT, ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.machine import AddressTaken
from dask_gce.emulator.machines.addresses import Leases

REGION = "us-central1"
ADDRESSES = f"regions/{REGION}/addresses"
SUBNETWORK = f"regions/{REGION}/subnetworks/default"
INSTANCES = f"zones/{ZONE}/instances"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


@pytest.fixture
def of_kind(request):
    """Return a client of an emulator whose machines are of a kind."""
    timings = Timings(pending=0, creating=0, provisioning=0, staging=0, stopping=0, deleting=0)
    with ComputeEmulator(request.param, timings=timings) as emulator:
        yield Rest(emulator)


def internal(name="s", **fields):
    return {"name": name, "addressType": "INTERNAL", **fields}


def refused(rest, verb, path, body=None):
    with pytest.raises(Refused) as caught:
        rest.call(verb, path, body)
    return caught.value.status, caught.value.reason


def reserve(rest, body):
    rest.wait(rest.post(ADDRESSES, body))
    return rest.get(f"{ADDRESSES}/{body['name']}")


def interface(rest, name="a"):
    return rest.instance(name)["networkInterfaces"][0]


def error_of(rest, **fields):
    return rest.insert(**fields)["error"]["errors"][0]


def test_an_address_comes_and_goes(emulator, rest):
    service = build(
        "compute",
        "v1",
        http=httplib2.Http(),
        client_options={"api_endpoint": f"{emulator.endpoint}/compute/v1/"},
    )
    addresses, where = service.addresses(), {"project": PROJECT, "region": REGION}
    body = internal(description="d", purpose="GCE_ENDPOINT", subnetwork=SUBNETWORK)
    rest.wait(addresses.insert(body=body, **where).execute())
    made = addresses.get(address="s", **where).execute()
    assert made["status"] == "RESERVED" and "users" not in made
    assert made["addressType"] == "INTERNAL" and made["purpose"] == "GCE_ENDPOINT"
    assert made["subnetwork"].endswith(f"/projects/{PROJECT}/{SUBNETWORK}")
    assert made["address"].startswith("10.128.")
    assert addresses.list(**where).execute()["items"] == [made]
    scopes = addresses.aggregatedList(project=PROJECT).execute()["items"]
    assert scopes[f"regions/{REGION}"] == {"addresses": [made]}
    assert scopes["regions/europe-west1"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    assert emulator.leftovers() == [f"address s in {PROJECT}/{REGION} is reserved"]
    rest.wait(addresses.delete(address="s", **where).execute())
    assert "items" not in addresses.list(**where).execute()
    assert refused(rest, "GET", f"{ADDRESSES}/s") == (404, "notFound")
    assert refused(rest, "DELETE", f"{ADDRESSES}/s") == (404, "notFound")
    assert not emulator.leftovers()
    service.close()


@pytest.mark.parametrize("form", ["address", "link", "partial"])
def test_an_instance_gets_the_address_that_it_names(rest, form):
    made = reserve(rest, internal())
    named = {
        "address": made["address"],
        "link": made["selfLink"],
        "partial": f"{ADDRESSES}/s",
    }[form]
    rest.insert(networkInterfaces=[{"networkIP": named}])
    assert interface(rest)["networkIP"] == made["address"]
    shown = rest.get(f"{ADDRESSES}/s")
    assert shown["status"] == "IN_USE"
    assert shown["users"] == [rest.instance("a")["selfLink"]]
    assert rest.get(ADDRESSES)["items"] == [shown]
    assert refused(rest, "DELETE", f"{ADDRESSES}/s") == (400, "resourceInUseByAnotherResource")
    rest.wait(rest.delete(f"{INSTANCES}/a"))
    assert rest.get(f"{ADDRESSES}/s") == made
    # And the next one.
    rest.insert(networkInterfaces=[{"networkIP": named}])
    assert interface(rest)["networkIP"] == made["address"]
    rest.wait(rest.delete(f"{INSTANCES}/a"))
    rest.wait(rest.delete(f"{ADDRESSES}/s"))
    assert not rest.emulator.leftovers()


def test_nobody_gets_a_reserved_address_by_chance(rest):
    kept = [reserve(rest, internal(name))["address"] for name in ("r", "s")]
    for name in ("a", "b", "c"):
        rest.insert(name=name)
    assert not set(kept) & {interface(rest, name)["networkIP"] for name in ("a", "b", "c")}


def test_two_instances_cannot_have_the_same_address(rest):
    address = reserve(rest, internal())["address"]
    asked = [{"networkIP": address}]
    rest.insert(networkInterfaces=asked)
    error = error_of(rest, name="b", networkInterfaces=asked)
    assert error["code"] == "IP_IN_USE_BY_ANOTHER_RESOURCE" and address in error["message"]
    # Nor one that nobody reserved.
    rest.insert(name="c")
    taken = interface(rest, "c")["networkIP"]
    error = error_of(rest, name="b", networkInterfaces=[{"networkIP": taken}])
    assert error["code"] == "IP_IN_USE_BY_ANOTHER_RESOURCE"
    assert rest.names() == ["a", "c"]


def test_the_address_of_an_instance_is_kept_when_it_is_reserved(rest):
    rest.insert()
    address = interface(rest)["networkIP"]
    made = reserve(rest, internal(address=address))
    assert (made["address"], made["status"]) == (address, "IN_USE")
    assert refused(rest, "POST", ADDRESSES, internal("t", address=address)) == (400, "invalid")
    rest.wait(rest.delete(f"{INSTANCES}/a"))
    for name in ("b", "c"):
        rest.insert(name=name)
        assert interface(rest, name)["networkIP"] != address
    rest.insert(name="d", networkInterfaces=[{"networkIP": address}])
    assert interface(rest, "d")["networkIP"] == address
    # Only what is in no use can be let go, and then anybody may have it.
    rest.wait(rest.delete(f"{INSTANCES}/d"))
    rest.wait(rest.delete(f"{ADDRESSES}/s"))
    made = reserve(rest, internal("t", address=address))
    assert made["status"] == "RESERVED"


def test_an_external_address_stays_with_who_names_it(rest):
    made = reserve(rest, {"name": "e"})
    assert made["addressType"] == "EXTERNAL" and "subnetwork" not in made
    asked = [{"accessConfigs": [{"natIP": made["address"]}]}]
    rest.insert(networkInterfaces=asked)
    assert interface(rest)["accessConfigs"][0]["natIP"] == made["address"]
    assert rest.get(f"{ADDRESSES}/e")["users"] == [rest.instance("a")["selfLink"]]
    error = error_of(rest, name="b", networkInterfaces=asked)
    assert error["code"] == "IP_IN_USE_BY_ANOTHER_RESOURCE"
    # An instance's own can be kept.
    rest.insert(name="c", networkInterfaces=[{"accessConfigs": [{}]}])
    own = interface(rest, "c")["accessConfigs"][0]["natIP"]
    assert reserve(rest, {"name": "f", "address": own})["status"] == "IN_USE"
    with pytest.raises(Refused, match="was not found"):
        rest.insert(name="d", networkInterfaces=[{"accessConfigs": [{"natIP": "198.18.9.9"}]}])
    with pytest.raises(Refused, match="external address"):
        rest.insert(name="d", networkInterfaces=[{"networkIP": f"{ADDRESSES}/e"}])


@pytest.mark.parametrize("of_kind", ["process", "light"], indirect=True)
def test_machines_on_loopback_have_reserved_addresses(of_kind):
    rest = of_kind
    made = reserve(rest, internal())
    assert made["address"].startswith("127.")
    rest.insert(name="other")
    assert interface(rest, "other")["networkIP"] != made["address"]
    rest.insert(networkInterfaces=[{"networkIP": made["address"], "accessConfigs": [{}]}])
    assert interface(rest)["networkIP"] == made["address"]
    assert rest.get(f"{ADDRESSES}/s")["status"] == "IN_USE"
    for name in ("a", "other"):
        rest.wait(rest.delete(f"{INSTANCES}/{name}"))
    assert rest.get(f"{ADDRESSES}/s")["status"] == "RESERVED"
    external = reserve(rest, {"name": "e"})["address"]
    rest.insert(networkInterfaces=[{"accessConfigs": [{"natIP": external}]}])
    assert interface(rest)["accessConfigs"][0]["natIP"] == external


@pytest.mark.parametrize(
    "body",
    [
        {"name": "Upper"},
        internal(address="x"),
        internal(address="8.8.8.8"),
        internal(ipVersion="IPV6"),
        internal(purpose="VPC_PEERING"),
        internal(networkTier="STANDARD"),
        internal(subnetwork="x"),
        internal(subnetwork="regions/europe-west1/subnetworks/default"),
        internal(prefixLength=24),
        {"name": "s", "address": "198.18.0.9"},
        {"name": "s", "subnetwork": SUBNETWORK},
        {"name": "s", "purpose": "GCE_ENDPOINT"},
        {"name": "s", "addressType": "UNSPECIFIED_TYPE"},
    ],
)
def test_malformed_addresses_are_refused(rest, body, discovery):
    assert refused(rest, "POST", ADDRESSES, body)[0] == 400
    assert "items" not in rest.get(ADDRESSES)
    discovery.take()


def test_names_and_links_that_do_not_fit(rest):
    reserve(rest, internal())
    assert refused(rest, "POST", ADDRESSES, internal()) == (409, "alreadyExists")
    assert refused(rest, "GET", "regions/nowhere/addresses")[0] == 404
    for link in ("regions/europe-west1/addresses/s", f"{ADDRESSES}/t", "global/addresses/s"):
        with pytest.raises(Refused):
            rest.insert(networkInterfaces=[{"networkIP": link}])
    assert rest.names() == []


def test_a_subnetwork_with_addresses_stays(rest):
    rest.wait(rest.post("global/networks", {"name": "n", "autoCreateSubnetworks": False}))
    subnetwork = {"name": "sub", "network": "global/networks/n", "ipCidrRange": "10.9.0.0/24"}
    rest.wait(rest.post(f"regions/{REGION}/subnetworks", subnetwork))
    made = reserve(rest, internal(subnetwork=f"regions/{REGION}/subnetworks/sub"))
    assert made["subnetwork"].endswith("/sub")
    path = f"regions/{REGION}/subnetworks/sub"
    assert refused(rest, "DELETE", path) == (400, "resourceInUseByAnotherResource")
    rest.wait(rest.delete(f"{ADDRESSES}/s"))
    rest.wait(rest.delete(path))


def test_labels_change_with_the_right_fingerprint_only(rest):
    made = reserve(rest, internal(labels={"x": "y"}))
    path = f"{ADDRESSES}/s/setLabels"
    body = {"labels": {"x": "z"}, "labelFingerprint": made["labelFingerprint"]}
    rest.wait(rest.post(path, body))
    assert rest.get(f"{ADDRESSES}/s")["labels"] == {"x": "z"}
    assert refused(rest, "POST", path, body) == (412, "conditionNotMet")


def test_addresses_count_for_their_quotas(rest):
    rest.emulator.quota.set(REGION, "STATIC_ADDRESSES", 1)
    rest.emulator.quota.set(REGION, "INTERNAL_ADDRESSES", 1)
    reserve(rest, internal("i"))
    reserve(rest, {"name": "e"})
    for body in (internal("j"), {"name": "f"}):
        assert refused(rest, "POST", ADDRESSES, body) == (403, "quotaExceeded")
    usage = {one["metric"]: one["usage"] for one in rest.get(f"regions/{REGION}")["quotas"]}
    assert (usage["STATIC_ADDRESSES"], usage["INTERNAL_ADDRESSES"]) == (1.0, 1.0)
    for name in ("i", "e"):
        rest.wait(rest.delete(f"{ADDRESSES}/{name}"))
    # What is refused counts nothing.
    assert refused(rest, "POST", ADDRESSES, internal("j", address="8.8.8.8"))[0] == 400
    reserve(rest, internal("j"))


def test_each_kind_of_address_has_permissions_of_its_own(rest):
    made = reserve(rest, internal())
    for permission, verb, path, body in (
        ("compute.addresses.createInternal", "POST", ADDRESSES, internal("t")),
        ("compute.subnetworks.use", "POST", ADDRESSES, internal("t")),
        ("compute.addresses.create", "POST", ADDRESSES, {"name": "t"}),
        ("compute.addresses.deleteInternal", "DELETE", f"{ADDRESSES}/s", None),
        ("compute.addresses.list", "GET", ADDRESSES, None),
    ):
        rest.emulator.permissions.deny(permission)
        with pytest.raises(Refused, match=permission) as caught:
            rest.call(verb, path, body)
        assert caught.value.status == 403
        rest.emulator.permissions.clear()
    rest.emulator.permissions.deny("compute.addresses.useInternal")
    with pytest.raises(Refused, match=r"compute\.addresses\.useInternal"):
        rest.insert(networkInterfaces=[{"networkIP": made["address"]}])


# -- what a kind of machines keeps ----------------------------------------------------------------


class FewAddresses:
    """A pool whose addresses come again at once."""

    shared = False

    def __init__(self, *addresses):
        self.free = list(addresses)

    def allocate(self, requested=None):
        address = self.free[0] if requested is None else requested
        self.free.remove(address)
        return address

    def release(self, address):
        self.free.insert(0, address)


def test_a_reserved_address_never_comes_back_to_the_others():
    pool = FewAddresses("10.0.0.1", "10.0.0.2")
    leases, first, second = Leases(pool), object(), object()
    kept = leases.reserve(None)
    with pytest.raises(AddressTaken):
        leases.reserve(kept)
    assert leases.allocate(first, kept) == kept
    with pytest.raises(AddressTaken):
        leases.allocate(second, kept)
    leases.release(first)
    assert kept not in pool.free
    # Whoever has it when it is let go keeps it, and then it is anybody's.
    assert leases.allocate(second, kept) == kept
    leases.unreserve(kept)
    assert kept not in pool.free
    leases.release(second)
    assert kept in pool.free
    # One that somebody has can be reserved.
    leases.allocate(first, kept)
    assert leases.reserve(kept) == kept
    leases.release(first)
    assert kept not in pool.free
    leases.unreserve(kept)
    leases.unreserve(kept)
    assert sorted(pool.free) == ["10.0.0.1", "10.0.0.2"]


def test_loopback_addresses_that_are_all_the_same_are_shared():
    class OneAddress(FewAddresses):
        shared = True

        def allocate(self, requested=None):
            return "127.0.0.1"

        def release(self, address):
            pass

    leases = Leases(OneAddress())
    assert leases.reserve(None) == leases.reserve("127.0.0.1") == "127.0.0.1"
    assert leases.allocate(object(), "127.0.0.1") == "127.0.0.1"
