"""What firewall rules and names mean to namespace machines, on paper: no root, no packet."""

from __future__ import annotations

import pytest
from dnslib import QTYPE, RCODE, DNSRecord

from dask_gce.emulator.machines.namespace.dns import Names, answer, check_installed, collect_names
from dask_gce.emulator.machines.namespace.firewall import open_ports, render
from dask_gce.emulator.machines.namespace.view import (
    Interface,
    Match,
    View,
    read_interface,
    read_rule,
)
from dask_gce.emulator.record import InstanceRecord

NETWORK = "http://127.0.0.1:1/compute/v1/projects/p-123456/global/networks/default"
OTHER = f"{NETWORK}-2"
ZONE = "us-central1-a"

SERVER = Interface(
    "p-123456",
    ZONE,
    "server",
    NETWORK,
    "10.128.0.2",
    external=True,
    tags=frozenset({"web"}),
    accounts=frozenset({"server@example.org"}),
)


def firewall(name="rule", **fields):
    """Return a firewall resource that lets everybody in on port 8000."""
    found = {
        "name": name,
        "network": NETWORK,
        "direction": "INGRESS",
        "priority": 1000,
        "disabled": False,
        **fields,
    }
    if "allowed" not in found and "denied" not in found:
        found["allowed"] = [{"IPProtocol": "tcp", "ports": ["8000"]}]
    if not any(field in found for field in ("sourceRanges", "sourceTags")):
        found["sourceRanges"] = ["0.0.0.0/0"]
    return found


def view(*firewalls, interfaces=(SERVER,)):
    rules = sorted(
        (read_rule(one) for one in firewalls), key=lambda one: (one.priority, one.allow, one.name)
    )
    return View(tuple(interfaces), tuple(rules), frozenset(one.address for one in interfaces))


DENY = [{"IPProtocol": "tcp", "ports": ["8000"]}]


@pytest.mark.parametrize(
    ("firewalls", "ports"),
    [
        ([], set()),
        ([firewall()], {8000}),
        ([firewall(network=OTHER)], set()),
        ([firewall(sourceRanges=["127.0.0.1/32"])], {8000}),
        ([firewall(sourceRanges=["198.51.100.0/24"])], {8000}),
        ([firewall(sourceRanges=["10.128.0.0/9"])], set()),
        ([firewall(sourceTags=["web"])], set()),
        ([firewall(targetTags=["web"])], {8000}),
        ([firewall(targetTags=["db"])], set()),
        ([firewall(targetServiceAccounts=["server@example.org"])], {8000}),
        ([firewall(targetServiceAccounts=["nobody@example.org"])], set()),
        ([firewall(), firewall("no", denied=DENY, priority=999)], set()),
        ([firewall(), firewall("no", denied=DENY)], set()),
        ([firewall(), firewall("no", denied=DENY, priority=1001)], {8000}),
        ([firewall(), firewall("no", denied=DENY, sourceRanges=["10.0.0.0/8"])], {8000}),
        ([firewall(), firewall("no", denied=[{"IPProtocol": "all"}], priority=1)], set()),
        ([firewall(), firewall("no", denied=[{"IPProtocol": "udp"}], priority=1)], {8000}),
        ([firewall(destinationRanges=["10.128.0.2/32"])], {8000}),
        ([firewall(destinationRanges=["10.128.0.3/32"])], set()),
        ([firewall(allowed=[{"IPProtocol": "tcp", "ports": ["1-16"]}])], set(range(1, 17))),
        ([firewall(allowed=[{"IPProtocol": "tcp", "ports": ["1-17"]}])], set()),
        ([firewall(allowed=[{"IPProtocol": "tcp"}])], set()),
        ([firewall(allowed=[{"IPProtocol": "all"}])], set()),
        ([firewall(allowed=[{"IPProtocol": "udp", "ports": ["8000"]}])], set()),
        ([firewall(allowed=[{"IPProtocol": "6", "ports": ["22", "80"]}])], {22, 80}),
        ([firewall(direction="EGRESS", destinationRanges=["0.0.0.0/0"])], set()),
    ],
)
def test_the_host_opens_those_ports_that_rules_open_to_it(firewalls, ports):
    assert open_ports(view(*firewalls), SERVER) == ports


def test_ranges_of_ports_that_meet_are_one_and_ranges_of_ipv6_are_none():
    entry = {"IPProtocol": "TCP", "ports": ["80", "8080-8090", "81-90", "8000-8085"]}
    rule = read_rule(firewall(allowed=[entry], sourceRanges=["2001:db8::/32", "10.0.0.0/8"]))
    assert rule.matches == (Match(6, ((80, 90), (8000, 8090))),)
    assert [str(one) for one in rule.ranges] == ["10.0.0.0/8"]


def test_an_instance_is_seen_by_its_first_interface():
    resource = {
        "name": "server",
        "tags": {"items": ["web"], "fingerprint": "x"},
        "serviceAccounts": [{"email": "server@example.org", "scopes": []}],
        "networkInterfaces": [
            {"network": NETWORK, "networkIP": "10.128.0.2", "accessConfigs": [{}]},
            {"network": OTHER, "networkIP": "10.128.0.3"},
        ],
    }
    assert read_interface("p-123456", ZONE, resource) == SERVER


def test_machines_for_which_the_same_rules_hold_share_them():
    many = [
        Interface("p-123456", ZONE, f"m{number}", NETWORK, f"10.128.0.{number}")
        for number in range(2, 200)
    ]
    text = render(view(firewall(), interfaces=many))
    assert text.count('comment "rule"') == 1
    assert "10.128.0.199 : goto in" in text


def test_without_machines_nothing_passes():
    text = render(View())
    assert "policy drop" in text
    assert "goto" not in text
    assert " { }" not in text


def ask(name, kind="A", interfaces=(SERVER,), asker=SERVER):
    names = collect_names(view(interfaces=interfaces))[asker.address]
    reply = answer(DNSRecord.question(name, kind).pack(), names)
    found = DNSRecord.parse(reply)
    assert found.header.qr == 1
    return RCODE[found.header.rcode], [str(one.rdata) for one in found.rr]


ELSEWHERE = Interface("p-123456", "europe-west1-b", "elsewhere", NETWORK, "10.128.0.9")
STRANGER = Interface("p-123456", ZONE, "stranger", OTHER, "10.128.0.10")
FOREIGNER = Interface("example.com:p-654321", ZONE, "foreigner", NETWORK, "10.128.0.11")
ALL = (SERVER, ELSEWHERE, STRANGER, FOREIGNER)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("server.us-central1-a.c.p-123456.internal", "A", ["10.128.0.2"]),
        ("SERVER.us-central1-a.c.p-123456.INTERNAL.", "A", ["10.128.0.2"]),
        ("server.c.p-123456.internal", "A", ["10.128.0.2"]),
        ("elsewhere.europe-west1-b.c.p-123456.internal", "A", ["10.128.0.9"]),
        ("server.us-central1-a.c.p-123456.internal", "AAAA", []),
        ("metadata.google.internal", "A", ["169.254.169.254"]),
        (
            "9.0.128.10.in-addr.arpa",
            "PTR",
            ["elsewhere.europe-west1-b.c.p-123456.internal."],
        ),
        ("254.169.254.169.in-addr.arpa", "PTR", ["metadata.google.internal."]),
    ],
)
def test_instances_of_a_network_know_each_other_by_name(name, kind, found):
    assert ask(name, kind, ALL) == ("NOERROR", found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("server", "A"),
        ("server.us-central1-b.c.p-123456.internal", "A"),
        ("stranger.us-central1-a.c.p-123456.internal", "A"),
        ("foreigner.us-central1-a.c.p-654321.example.com.internal", "A"),
        ("10.0.128.10.in-addr.arpa", "PTR"),
        ("www.google.com", "A"),
    ],
)
def test_they_know_nobody_else(name, kind):
    assert ask(name, kind, ALL) == ("NXDOMAIN", [])


def test_a_project_of_a_domain_has_the_domain_behind_it():
    name = "foreigner.us-central1-a.c.p-654321.example.com.internal"
    assert ask(name, "A", ALL, FOREIGNER) == ("NOERROR", ["10.128.0.11"])


def test_a_machine_is_called_as_the_name_server_calls_it():
    record = InstanceRecord(FOREIGNER.project, 1, ZONE, {"name": FOREIGNER.name})
    known = collect_names(View(ALL))[FOREIGNER.address].addresses
    assert known[record.hostname] == FOREIGNER.address
    assert known[f"{record.name}.{record.domain}"] == FOREIGNER.address


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 5, b"\xff" * 40, DNSRecord.question("a").reply().pack()]
)
def test_what_is_no_question_is_not_answered(message):
    assert answer(message, Names({})) is None


def test_a_question_of_another_kind_has_no_answer_but_exists():
    kind = QTYPE.reverse["TXT"]
    assert ask("metadata.google.internal", QTYPE[kind]) == ("NOERROR", [])


def test_who_has_no_dnslib_is_told_how_to_get_it(monkeypatch):
    check_installed()
    monkeypatch.setitem(__import__("sys").modules, "dnslib", None)
    with pytest.raises(RuntimeError, match=r"pip install .\.\[namespace\]"):
        check_installed()
