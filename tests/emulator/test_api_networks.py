"""Networks, subnetworks, firewall rules and disks by themselves."""

from __future__ import annotations

import pytest
from rest import IMAGE, ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator, Timings

SUBNETWORKS = "regions/us-central1/subnetworks"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def names(rest, path):
    return [one["name"] for one in rest.get(path).get("items", [])]


def test_a_project_begins_with_the_default_network_and_its_rules(rest):
    network = rest.get("global/networks/default")
    assert network["autoCreateSubnetworks"] is True
    subnetwork = rest.get(f"{SUBNETWORKS}/default")
    assert subnetwork["ipCidrRange"] == "10.128.0.0/20"
    assert subnetwork["gatewayAddress"] == "10.128.0.1"
    assert subnetwork["selfLink"] in network["subnetworks"]
    assert names(rest, "global/firewalls") == [
        "default-allow-icmp",
        "default-allow-internal",
        "default-allow-rdp",
        "default-allow-ssh",
    ]
    internal = rest.get("global/firewalls/default-allow-internal")
    assert internal["sourceRanges"] == ["10.128.0.0/9"] and internal["priority"] == 65534


def test_a_custom_network_from_beginning_to_end(rest):
    body = {"name": "vpc", "autoCreateSubnetworks": False, "mtu": 1460}
    done = rest.wait(rest.post("global/networks", body))
    assert done["selfLink"].find("/global/operations/") > 0 and "zone" not in done
    assert rest.get("global/networks/vpc")["subnetworks"] == []
    # Without a subnetwork in its region, an instance has nowhere to be.
    with pytest.raises(Refused, match="custom subnet"):
        rest.insert(networkInterfaces=[{"network": "global/networks/vpc"}])
    subnet = {"name": "s", "network": "global/networks/vpc", "ipCidrRange": "10.1.0.0/24"}
    done = rest.wait(rest.post(SUBNETWORKS, subnet))
    assert done["region"].endswith("/regions/us-central1")
    for change, word in (
        ({"name": "t"}, "conflicts"),
        ({"name": "t", "ipCidrRange": "10.2.0.0/33"}, "CIDR"),
        ({"name": "s"}, "already exists"),
    ):
        with pytest.raises(Refused, match=word):
            rest.post(SUBNETWORKS, {**subnet, **change})
    rest.insert(networkInterfaces=[{"subnetwork": f"{SUBNETWORKS}/s"}])
    assert rest.instance("a")["networkInterfaces"][0]["network"].endswith("/networks/vpc")
    for path in (f"{SUBNETWORKS}/s", "global/networks/vpc"):
        with pytest.raises(Refused, match="already being used"):
            rest.delete(path)
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    rest.wait(rest.delete(f"{SUBNETWORKS}/s"))
    rest.wait(rest.delete("global/networks/vpc"))
    assert names(rest, "global/networks") == ["default"]
    assert names(rest, SUBNETWORKS) == ["default"]
    assert "regions/us-east1" in rest.get("aggregated/subnetworks")["items"]


def test_an_auto_network_brings_its_subnetworks_and_takes_them(rest):
    rest.wait(rest.post("global/networks", {"name": "auto", "autoCreateSubnetworks": True}))
    assert names(rest, SUBNETWORKS) == ["auto", "default"]
    rest.wait(rest.delete("global/networks/auto"))
    assert names(rest, SUBNETWORKS) == ["default"]


RULE = {
    "name": "dask",
    "network": "global/networks/default",
    "allowed": [{"IPProtocol": "tcp", "ports": ["8786-8787"]}],
    "sourceRanges": ["192.0.2.7/32"],
    "targetTags": ["dask"],
}


def test_a_firewall_rule_from_beginning_to_end(rest):
    rest.wait(rest.post("global/firewalls", RULE))
    shown = rest.get("global/firewalls/dask")
    assert (shown["direction"], shown["priority"], shown["disabled"]) == ("INGRESS", 1000, False)
    assert {key: shown[key] for key in ("allowed", "sourceRanges", "targetTags")} == {
        key: RULE[key] for key in ("allowed", "sourceRanges", "targetTags")
    }
    with pytest.raises(Refused) as caught:
        rest.post("global/firewalls", RULE)
    assert caught.value.status == 409
    rest.wait(rest.delete("global/firewalls/dask"))
    with pytest.raises(Refused) as caught:
        rest.get("global/firewalls/dask")
    assert caught.value.status == 404


def test_a_project_has_no_more_rules_than_its_quota(rest):
    def quota():
        (found,) = [each for each in rest.get("")["quotas"] if each["metric"] == "FIREWALLS"]
        return found["usage"], found["limit"]

    assert quota() == (4.0, 200.0)
    rest.emulator.quota.set("global", "FIREWALLS", 5)
    rest.wait(rest.post("global/firewalls", RULE))
    assert quota() == (5.0, 5.0)
    with pytest.raises(Refused, match=r"'FIREWALLS' exceeded\.  Limit: 5\.0 globally") as caught:
        rest.post("global/firewalls", {**RULE, "name": "more"})
    assert (caught.value.status, caught.value.reason) == (403, "quotaExceeded")
    rest.wait(rest.delete("global/firewalls/dask"))
    rest.wait(rest.post("global/firewalls", {**RULE, "name": "more"}))
    rest.emulator.quota.set("global", "FIREWALLS", None)
    assert quota() == (5.0, 200.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"allowed": []}, "allowed"),
        ({"denied": [{"IPProtocol": "tcp"}]}, "allowed"),
        ({"allowed": [{"IPProtocol": "quic"}]}, "IPProtocol"),
        ({"allowed": [{"ports": ["1"]}]}, "IPProtocol"),
        ({"allowed": [{"IPProtocol": "icmp", "ports": ["1"]}]}, "ports"),
        ({"allowed": [{"IPProtocol": "tcp", "ports": ["70000"]}]}, "ports"),
        ({"allowed": [{"IPProtocol": "tcp", "ports": ["9-1"]}]}, "ports"),
        ({"sourceRanges": ["192.0.2.7/8"]}, "sourceRanges"),
        ({"targetTags": ["Dask"]}, "targetTags"),
        ({"targetServiceAccounts": ["a@b.c"]}, "targetTags"),
        ({"priority": 65536}, "priority"),
        ({"direction": "EGRESS"}, "direction"),
        ({"network": "global/networks/nowhere"}, "nowhere"),
    ],
)
def test_an_impossible_rule_is_refused(rest, change, field):
    with pytest.raises(Refused, match=field):
        rest.post("global/firewalls", {**RULE, **change})
    assert "dask" not in names(rest, "global/firewalls")


def test_a_disk_takes_its_time(discovery):
    path = f"zones/{ZONE}/disks"
    with ComputeEmulator("paper", timings=Timings(creating=60)) as emulator:
        rest = Rest(emulator)
        rest.post(path, {"name": "data"})
        assert rest.get(f"{path}/data")["status"] == "CREATING"


def test_a_disk_from_beginning_to_end(rest):
    path = f"zones/{ZONE}/disks"
    body = {"name": "data", "sizeGb": "50", "type": f"zones/{ZONE}/diskTypes/pd-ssd"}
    rest.wait(rest.post(path, body))
    shown = rest.get(f"{path}/data")
    assert (shown["status"], shown["sizeGb"]) == ("READY", "50")
    assert shown["type"].endswith("/diskTypes/pd-ssd")
    with pytest.raises(Refused) as caught:
        rest.post(path, body)
    assert caught.value.status == 409
    rest.wait(rest.delete(f"{path}/data"))
    for bad, word in (
        ({"sizeGb": "9"}, "10 GB"),
        ({"sourceImage": IMAGE, "sizeGb": "5"}, "image size"),
        ({"type": "pd-ssd"}, "malformed"),
    ):
        with pytest.raises(Refused, match=word):
            rest.post(path, {"name": "data", **bad})
    assert not rest.emulator.leftovers()
