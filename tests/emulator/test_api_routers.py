"""Routers and their NATs, by which a client tells whether machines reach the internet."""

from __future__ import annotations

import httplib2
import pytest
from googleapiclient.discovery import build
from rest import PROJECT, Refused, Rest

REGION = "us-central1"
ROUTERS = f"regions/{REGION}/routers"
NAT = {
    "name": "nat",
    "natIpAllocateOption": "AUTO_ONLY",
    "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES",
}
DEFAULT = f"regions/{REGION}/subnetworks/default"
SOME = {
    **NAT,
    "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
    "subnetworks": [{"name": DEFAULT, "sourceIpRangesToNat": ["ALL_IP_RANGES"]}],
}


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def router(name="r", **fields):
    return {"name": name, "network": "global/networks/default", **fields}


def refused(rest, verb, path, body=None):
    with pytest.raises(Refused) as caught:
        rest.call(verb, path, body)
    return caught.value.status, caught.value.reason


def test_a_router_comes_and_goes(emulator, rest):
    service = build(
        "compute",
        "v1",
        http=httplib2.Http(),
        client_options={"api_endpoint": f"{emulator.endpoint}/compute/v1/"},
    )
    routers, where = service.routers(), {"project": PROJECT, "region": REGION}
    rest.wait(routers.insert(body=router(nats=[NAT]), **where).execute())
    made = routers.get(router="r", **where).execute()
    assert made["network"].endswith(f"/projects/{PROJECT}/global/networks/default")
    assert made["nats"][0]["type"] == "PUBLIC" and made["nats"][0].items() >= NAT.items()
    assert routers.list(**where).execute()["items"] == [made]
    scopes = routers.aggregatedList(project=PROJECT).execute()["items"]
    assert scopes[f"regions/{REGION}"] == {"routers": [made]}
    assert scopes["regions/europe-west1"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    rest.wait(routers.delete(router="r", **where).execute())
    assert "items" not in routers.list(**where).execute()
    assert refused(rest, "GET", f"{ROUTERS}/r") == (404, "notFound")
    assert refused(rest, "DELETE", f"{ROUTERS}/r") == (404, "notFound")
    service.close()


def test_a_nat_is_added_to_a_router_and_taken_away(rest):
    rest.wait(rest.post(ROUTERS, router()))
    assert "nats" not in rest.get(f"{ROUTERS}/r")
    made = rest.get(f"{ROUTERS}/r")
    # As gcloud does: it sends back what it got.
    rest.wait(rest.call("PATCH", f"{ROUTERS}/r", {**made, "nats": [SOME]}))
    subnetwork = rest.get(f"{ROUTERS}/r")["nats"][0]["subnetworks"][0]["name"]
    assert subnetwork.endswith(f"/projects/{PROJECT}/{DEFAULT}")
    rest.wait(rest.call("PATCH", f"{ROUTERS}/r", {"nats": [], "description": "d"}))
    assert "nats" not in rest.get(f"{ROUTERS}/r")
    assert rest.get(f"{ROUTERS}/r")["description"] == "d"
    assert refused(rest, "PATCH", f"{ROUTERS}/r", {"name": "s"})[0] == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Upper"},
        {"network": None},
        {"nats": [{**NAT, "name": ""}]},
        {"nats": [NAT, {**SOME}]},
        {"nats": [{**NAT, "sourceSubnetworkIpRangesToNat": None}]},
        {"nats": [{**NAT, "natIpAllocateOption": None}]},
        {"nats": [{**NAT, "natIpAllocateOption": "MANUAL_ONLY"}]},
        {"nats": [{**NAT, "subnetworks": [{"name": DEFAULT}]}]},
        {"nats": [{**SOME, "subnetworks": []}]},
        {"nats": [{**SOME, "subnetworks": [{"name": "x"}]}]},
        {"nats": [{**SOME, "subnetworks": [{"name": "regions/europe-west1/subnetworks/default"}]}]},
        {"bgpPeers": [{"name": "p"}]},
    ],
)
def test_malformed_routers_are_refused(rest, fields, discovery):
    body = {key: value for key, value in {**router(), **fields}.items() if value is not None}
    assert refused(rest, "POST", ROUTERS, body)[0] == 400
    assert "items" not in rest.get(ROUTERS)
    discovery.take()


def test_a_router_of_a_network_that_is_not_there(rest):
    assert refused(rest, "POST", ROUTERS, router(network="global/networks/n"))[0] == 404
    assert refused(rest, "GET", "regions/nowhere/routers")[0] == 404


def test_addresses_go_through_one_nat(rest):
    rest.wait(rest.post(ROUTERS, router(nats=[SOME])))
    assert refused(rest, "POST", ROUTERS, router("s", nats=[SOME]))[0] == 400
    assert refused(rest, "POST", ROUTERS, router("s", nats=[NAT]))[0] == 400
    assert refused(rest, "POST", ROUTERS, router())[1] == "alreadyExists"
    # In another region, or another network, there are others.
    rest.wait(rest.post("regions/europe-west1/routers", router("s", nats=[NAT])))
    rest.wait(rest.post("global/networks", {"name": "n", "autoCreateSubnetworks": False}))
    other = router("t", network="global/networks/n", nats=[NAT])
    rest.wait(rest.post(ROUTERS, other))
    assert refused(rest, "DELETE", "global/networks/n")[1] == "resourceInUseByAnotherResource"
    foreign = {**SOME, "name": "m"}
    body = router("u", network="global/networks/n", nats=[foreign])
    assert refused(rest, "POST", ROUTERS, body)[0] == 400
    rest.wait(rest.delete(f"{ROUTERS}/t"))
    rest.wait(rest.delete("global/networks/n"))
