"""What a network's firewall rules let in, and what the cluster's own ones say."""

from __future__ import annotations

import ipaddress
import json
import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dask_gce import names, tags
from dask_gce.errors import SettingsError
from dask_gce.reach.admission import Rule, Traffic, admits, blocking_rule, parse_rule
from dask_gce.reach.firewall_rules import (
    Mark,
    Network,
    build_rule,
    parse_mark,
    render_create,
    render_delete,
    render_mark,
    split_families,
)

IDENTITY = "3f9a61c2" + "0" * 24
NETWORK = Network("a-project", "inner")
MARK = Mark("grid", IDENTITY, "zoë", "1a-2b-3-4", 1_800_000_000)


def rule(**fields):
    allowed = {"allowed": [{"IPProtocol": "tcp"}]}
    return parse_rule({"name": "r", **({} if "denied" in fields else allowed), **fields})


def lets_in(*rules, ports=((8786, 8786),), ranges=("203.0.113.7",), **more):
    return admits(rules, ranges=ranges, ports=ports, **more)


# -- tags and names -------------------------------------------------------------------------------


@given(st.integers(1, names.MAX_CLUSTER_NAME), st.sampled_from(["", "7c2e", "v6"]))
def test_every_cluster_has_tags_and_rules_of_its_own(length, suffix):
    cluster = "a" * length
    made = [
        tags.cluster_tag(cluster, IDENTITY),
        tags.scheduler_tag(cluster, IDENTITY),
        *(tags.rule_name(cluster, IDENTITY, each, suffix) for each in ("clients", "machines")),
    ]
    assert len(set(made)) == 4
    for each in made:
        assert names.check_name(each) == each
        assert "-3f9a61c2" in each


def test_only_the_scheduler_has_its_tag():
    (common,) = tags.machine_tags("grid", IDENTITY, "worker")
    both = tags.machine_tags("grid", IDENTITY, "scheduler")
    assert both == (common, f"{common}-scheduler")


def test_a_name_that_is_too_long_is_refused():
    with pytest.raises(SettingsError, match="at most 63"):
        tags.scheduler_tag("a" * (names.MAX_CLUSTER_NAME + 1), IDENTITY)


# -- marks ----------------------------------------------------------------------------------------


@given(
    st.builds(
        Mark,
        st.text(min_size=1),
        st.text(min_size=1),
        st.text(),
        st.text(),
        st.none() | st.integers(0),
        st.text(),
    )
)
@example(MARK)
def test_a_mark_is_read_as_it_was_written(mark):
    text = render_mark(mark)
    assert "\n" not in text
    assert parse_mark(text) == mark


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(json.dumps)
)
@example("[" * 100_000)
@example('{"dask-gce-cluster": 1, "dask-gce-id": "x"}')
@example('{"dask-gce-cluster": "grid"}')
@example('{"dask-gce-cluster": "grid", "dask-gce-id": "x", "dask-gce-owner": null}')
def test_what_others_wrote_is_no_mark(description):
    assert parse_mark(description) is None


def test_an_end_that_is_none_does_not_count():
    for end in ("true", '"1"', "1.5", "null"):
        text = f'{{"dask-gce-cluster": "g", "dask-gce-id": "x", "dask-gce-expires": {end}}}'
        assert parse_mark(text) == Mark("g", "x")


# -- our own rules --------------------------------------------------------------------------------


def test_a_rule_lets_in_who_it_says_and_nobody_else():
    ports = [(8787, 8787), (8786, 8786)]
    body = build_rule(
        "let-in", NETWORK, MARK, ranges=["203.0.113.7"], target_tag="dask", ports=ports
    )
    assert body["network"] == "projects/a-project/global/networks/inner"
    assert body["allowed"] == [{"IPProtocol": "tcp", "ports": ["8786", "8787"]}]
    assert body["sourceRanges"] == ["203.0.113.7/32"]
    made = parse_rule(body)
    assert parse_mark(made.description) == MARK
    assert lets_in(made, ports=ports, target_tags=["dask"])
    assert not lets_in(made, ports=ports, target_tags=["other"])
    assert not lets_in(made, ports=[(8788, 8788)], target_tags=["dask"])
    assert not lets_in(made, ranges=["203.0.113.8"], target_tags=["dask"])


def test_a_rule_among_machines_goes_by_their_tag():
    made = parse_rule(
        build_rule("m", NETWORK, MARK, source_tag="grid", target_tag="grid", ports=[(1024, 65_535)])
    )
    ours = {"ranges": (), "source_tags": ["grid"], "target_tags": ["grid", "mine"]}
    assert lets_in(made, **ours)
    assert not lets_in(made, **{**ours, "source_tags": ["other"]})
    assert not lets_in(made, target_tags=["grid"])


def test_the_commands_are_words_for_a_shell():
    body = build_rule(
        "let-in", NETWORK, MARK, source_tag="s", target_tag="t", ports=[(1024, 65_535)]
    )
    words = shlex.split(render_create(body, NETWORK))
    assert words[words.index("--source-tags") + 1] == "s"
    assert words[words.index("--allow") + 1] == "tcp:1024-65535"
    assert "--source-ranges" not in words
    odd = Network("a-project; rm -rf /", "inner")
    assert "a-project; rm -rf /" in shlex.split(render_create(body, odd))
    assert shlex.split(render_delete(["a", "b"], odd.project))[-3:] == [
        "b",
        "--project",
        odd.project,
    ]


def test_a_rule_takes_addresses_of_one_version():
    assert split_families(["10.0.0.1"]) == [["10.0.0.1"]]
    assert split_families(["::/0"]) == [["::/0"]]
    assert split_families([]) == []


# -- what is let in -------------------------------------------------------------------------------


def test_without_a_rule_everything_stays_outside():
    assert not lets_in()
    assert lets_in(ports=[])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, True, id="from anywhere"),
        pytest.param({"direction": "EGRESS"}, False, id="outwards"),
        pytest.param({"disabled": True}, False, id="disabled"),
        pytest.param({"sourceRanges": ["203.0.113.0/24"]}, True, id="a range"),
        pytest.param({"sourceRanges": ["203.0.113.0/29", "203.0.113.8/29"]}, True, id="of two"),
        pytest.param({"sourceRanges": ["198.51.100.0/24"]}, False, id="another range"),
        pytest.param({"sourceRanges": ["::/0"]}, False, id="another version"),
        pytest.param({"sourceRanges": ["what?"]}, False, id="no range"),
        pytest.param({"sourceTags": ["a"]}, False, id="machines only"),
        pytest.param({"sourceServiceAccounts": ["a@b"]}, False, id="accounts only"),
        pytest.param({"sourceTags": ["a"], "sourceRanges": ["0.0.0.0/0"]}, True, id="any source"),
        pytest.param({"targetTags": ["dask", "other"]}, True, id="our tag"),
        pytest.param({"targetTags": ["other"]}, False, id="another tag"),
        pytest.param({"targetServiceAccounts": ["me@p"]}, True, id="our account"),
        pytest.param({"targetServiceAccounts": ["you@p"]}, False, id="another account"),
        pytest.param({"allowed": [{"IPProtocol": "6", "ports": ["8786"]}]}, True, id="number"),
        pytest.param({"allowed": [{"IPProtocol": "TCP", "ports": ["1-9000"]}]}, True, id="capital"),
        pytest.param({"allowed": [{"IPProtocol": "all"}]}, True, id="all protocols"),
        pytest.param({"allowed": [{"IPProtocol": "udp"}]}, False, id="udp"),
        pytest.param({"allowed": [{"IPProtocol": "tcp", "ports": ["8787"]}]}, False, id="port"),
        pytest.param({"allowed": [{"IPProtocol": "tcp", "ports": ["x"]}]}, False, id="no port"),
    ],
)
def test_a_rule_lets_in_what_fits_it(fields, expected):
    ours = {"target_tags": ["dask"], "account": "me@p"}
    assert lets_in(rule(**fields), **ours) is expected


def test_an_account_that_is_not_known_lets_nobody_in_for_certain():
    assert not lets_in(rule(targetServiceAccounts=["me@p"]), account=None)
    # What keeps out may be meant.
    denied = rule(denied=[{"IPProtocol": "tcp"}], targetServiceAccounts=["me@p"], priority=1)
    assert not lets_in(rule(), denied, account=None)
    assert lets_in(rule(), denied, account="")


def test_the_first_rule_that_fits_decides():
    everything, nothing = [{"IPProtocol": "all"}], [{"IPProtocol": "tcp", "ports": ["8786"]}]
    for denied, expected in ((999, False), (1000, False), (1001, True)):
        deny = rule(name="deny", denied=nothing, priority=denied)
        for order in ((rule(allowed=everything), deny), (deny, rule(allowed=everything))):
            assert lets_in(*order) is expected
            asked = {"ranges": ["203.0.113.7"], "ports": [(8786, 8786)]}
            assert blocking_rule(order, **asked) == ("" if expected else "deny")
            # Of another port it says nothing.
            assert lets_in(*order, ports=[(8787, 8787)])


def test_ports_may_be_let_in_by_several_rules():
    low = rule(allowed=[{"IPProtocol": "tcp", "ports": ["1000-2000", "2001"]}])
    high = rule(allowed=[{"IPProtocol": "tcp", "ports": ["2002-65535"]}])
    assert lets_in(low, high, ports=[(1024, 65_535)])
    assert not lets_in(low, ports=[(1024, 65_535)])
    assert not lets_in(low, high, ports=[(999, 1000)])


def test_a_range_of_sources_is_let_in_as_a_whole_or_not():
    half = rule(sourceRanges=["203.0.113.0/25"])
    assert not lets_in(half, ranges=["203.0.113.0/24"])
    deny = rule(denied=[{"IPProtocol": "tcp"}], sourceRanges=["203.0.113.200"], priority=1)
    assert not lets_in(rule(), deny, ranges=["203.0.113.0/24"])
    assert lets_in(rule(), deny, ranges=["203.0.113.0/25"])


def test_machines_are_let_in_by_their_addresses_too():
    internal = rule(sourceRanges=["10.128.0.0/9"], priority=65_534)
    machines = {"source_tags": ["grid"], "target_tags": ["grid"], "ports": [(1024, 65_535)]}
    assert lets_in(internal, ranges=["10.128.0.0/9"], **machines)
    assert lets_in(internal, ranges=["10.132.0.0/20"], **machines)
    assert not lets_in(internal, ranges=["10.0.0.0/20"], **machines)
    assert not lets_in(internal, ranges=(), **machines)
    # Whether such a rule is about them is not known.
    deny = rule(denied=[{"IPProtocol": "tcp"}], sourceRanges=["10.9.0.0/16"], priority=1)
    assert not lets_in(rule(sourceTags=["grid"]), deny, ranges=(), **machines)


# -- against a model that looks at each packet ----------------------------------------------------

ADDRESSES = [f"10.0.0.{number}" for number in range(4)]
PORTS = range(6)
TAGS = ["a", "b"]


def ranges_of_four():
    return st.sampled_from(["10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31", *ADDRESSES])


@st.composite
def some_rules(draw):
    ports = draw(
        st.lists(
            st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(
                lambda ends: (min(ends), max(ends))
            ),
            max_size=2,
        )
    )
    ranges = draw(st.lists(ranges_of_four(), max_size=2))
    sources = draw(st.frozensets(st.sampled_from(TAGS), max_size=1))
    return Rule(
        name="r",
        ingress=draw(st.sampled_from([True, True, False])),
        priority=draw(st.integers(0, 2)),
        disabled=draw(st.sampled_from([False, False, True])),
        allows=draw(st.booleans()),
        traffic=(Traffic(draw(st.sampled_from(["tcp", "6", "all", "udp"])), tuple(ports)),),
        source_ranges=tuple(
            map(ipaddress.ip_network, ranges or ([] if sources else ["0.0.0.0/0"]))
        ),
        source_tags=sources,
        target_tags=draw(st.frozensets(st.sampled_from(TAGS), max_size=1)),
    )


def passes(rules, address, source_tag, target_tag, port):
    """Judge one packet as the documentation says."""
    fitting = [
        each
        for each in rules
        if each.ingress
        and not each.disabled
        and (not each.target_tags or target_tag in each.target_tags)
        and (
            any(ipaddress.ip_address(address) in one for one in each.source_ranges)
            or source_tag in each.source_tags
        )
        and any(low <= port <= high for low, high in each.tcp)
    ]
    best = min((each.priority for each in fitting), default=None)
    decisive = [each for each in fitting if each.priority == best]
    return bool(decisive) and all(each.allows for each in decisive)


@given(
    st.lists(some_rules(), max_size=5),
    st.sampled_from(ADDRESSES),
    st.sampled_from([*TAGS, None]),
    st.sampled_from(TAGS),
    st.sampled_from(PORTS),
    st.sampled_from(PORTS),
)
def test_one_source_is_judged_as_each_of_its_packets(rules, address, source, target, one, other):
    first, last = sorted((one, other))
    expected = all(passes(rules, address, source, target, port) for port in range(first, last + 1))
    assert expected is admits(
        rules,
        ranges=[address],
        source_tags=[source] if source else (),
        target_tags=[target],
        account="",
        ports=[(first, last)],
    )


@given(
    st.lists(some_rules(), max_size=5),
    st.lists(ranges_of_four(), min_size=1, max_size=2),
    st.sampled_from(TAGS),
)
def test_of_many_sources_none_is_believed_in_that_is_kept_out(rules, ranges, target):
    if admits(rules, ranges=ranges, target_tags=[target], account="", ports=[(1, 3)]):
        for address in ADDRESSES:
            if any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in ranges):
                for port in (1, 2, 3):
                    assert passes(rules, address, None, target, port)


@given(
    st.dictionaries(
        st.sampled_from(["sourceRanges", "sourceTags", "targetTags", "description", "network"]),
        st.none() | st.lists(st.text(), max_size=2),
    ),
    st.text(),
)
def test_whatever_a_rule_holds_it_can_be_read(fields, text):
    read = parse_rule({"name": text, "creationTimestamp": text, **fields})
    assert read.name == text
    admits([read], ranges=["10.0.0.1"], ports=[(1, 1)])
