"""Names, labels and filters: what Google accepts is what we make and let through."""

from __future__ import annotations

import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce import names
from dask_gce.errors import SettingsError

RFC_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
cluster_names = st.from_regex(
    rf"[a-z]([-a-z0-9]{{0,{names.MAX_CLUSTER_NAME - 2}}}[a-z0-9])?", fullmatch=True
)
roles = st.sampled_from(["scheduler", "worker"])


@given(cluster_names, roles)
def test_instance_names_are_valid_and_begin_with_the_cluster(
    cluster: str, role: names.Role
) -> None:
    name = names.instance_name(cluster, role)
    assert name.startswith(f"{cluster}-{role}-")
    assert RFC_1035.fullmatch(name)
    assert len(name) <= 63
    assert not name.isdecimal()


def test_no_instance_name_is_handed_out_twice_even_by_many_threads() -> None:
    # 20,000 draws of four hexadecimal digits clash about 2,700 times if nobody remembers them.
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: names.instance_name("twice", "worker"), range(20_000)))
    assert len(set(drawn)) == len(drawn)
    assert max(map(len, drawn)) <= 63


def test_cluster_names_begin_with_the_prefix_and_differ() -> None:
    drawn = {names.new_cluster_name("ada") for _ in range(100)}
    assert len(drawn) == 100
    assert all(re.fullmatch(r"ada-[0-9a-f]{8}", name) for name in drawn)
    assert all(names.check_cluster_name(name) == name for name in drawn)


def test_the_longest_prefix_still_makes_a_cluster_name() -> None:
    longest = "x" * (names.MAX_CLUSTER_NAME - 9)
    names.check_cluster_name(names.new_cluster_name(longest))
    with pytest.raises(SettingsError, match=f"at most {len(longest)} "):
        names.new_cluster_name(longest + "x")


def test_a_cluster_name_without_room_for_instances_is_refused_with_the_limit() -> None:
    too_long = "x" * (names.MAX_CLUSTER_NAME + 1)
    with pytest.raises(SettingsError, match=f"at most {names.MAX_CLUSTER_NAME} ") as caught:
        names.check_cluster_name(too_long)
    assert caught.value.key == "name"
    with pytest.raises(SettingsError):
        names.instance_name(too_long, "worker")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="nanny"):
        names.instance_name("dask", "nanny")  # type: ignore[arg-type] # the point of the test


@pytest.mark.parametrize("name", ["", "-a", "a-", "1a", "A", "a_b", "a.b", "é", "a\n", "x" * 64])
def test_names_against_rfc_1035_are_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        names.check_name(name, key="network")
    assert caught.value.key == "network"
    assert repr(name) in str(caught.value)


@given(st.text(max_size=100))
def test_any_text_becomes_a_label_value(text: str) -> None:
    value = names.label_value(text)
    names.check_label("owner", value)
    assert names.label_value(value.strip("-")) == value.strip("-")


@given(st.text(max_size=70))
def test_accepted_labels_hold_only_what_google_allows(value: str) -> None:
    allowed = len(value) <= 63 and all(
        character in "-_" or unicodedata.category(character) in {"Ll", "Lo", "Nd", "Nl", "No"}
        for character in value
    )
    if allowed:
        names.check_label("key", value)
    else:
        with pytest.raises(SettingsError):
            names.check_label("key", value)


@pytest.mark.parametrize("key", ["", "1st", "_a", "-a", "Team", "x" * 64, "a b"])
def test_wrong_label_keys_are_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="label key"):
        names.check_label(key, "value")


def test_labels_in_other_scripts_are_accepted() -> None:
    names.check_label("équipe", "分析")


def test_the_error_for_a_label_value_shows_one_that_works() -> None:
    with pytest.raises(SettingsError, match=r"'data-science'"):
        names.check_label("team", "Data Science")


def test_our_labels_are_reserved_and_valid() -> None:
    labels = names.cluster_labels("dask-1", "worker", "Ada")
    added = {names.ID_LABEL, names.CLIENT_LABEL, names.EXPIRES_LABEL, names.IMAGE_LABEL}
    assert {*labels, *added, names.DECLARED_LABEL} == names.RESERVED_LABELS
    for key, value in {**labels, names.DECLARED_LABEL: "terraform"}.items():
        names.check_label(key, value)


def test_labels_without_role_and_owner() -> None:
    assert names.cluster_labels("dask-1") == {"dask-gce-cluster": "dask-1"}


def unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)


@given(st.text(max_size=30))
def test_a_filter_value_reads_back_as_it_was(value: str) -> None:
    text = names.label_filter({"team": value})
    assert text.startswith("labels.team = ")
    quoted = text.removeprefix("labels.team = ")
    assert unquote(quoted) == value
    # A quotation mark inside would end the value and begin a filter of its own.
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', quoted, re.DOTALL) or RFC_1035.fullmatch(quoted)


def test_quotation_marks_and_backslashes_in_a_filter_are_escaped() -> None:
    assert names.label_filter({"k": 'a" OR "\\'}) == r'labels.k = "a\" OR \"\\"'


@pytest.mark.parametrize("value", ["true", "42", "", "a b", "x OR y"])
def test_filter_values_that_could_be_read_otherwise_are_quoted(value: str) -> None:
    assert names.label_filter({"k": value}) == f'labels.k = "{value}"'


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-central1-a", "us-central1"),
        ("us-south1-ai1b", "us-south1"),
        ("u-germany-northeast1-a", "u-germany-northeast1"),
    ],
)
def test_region_of(zone: str, region: str) -> None:
    assert names.region_of(zone) == region


def test_a_region_given_for_a_zone_is_told_apart() -> None:
    with pytest.raises(SettingsError, match=r"is a region.*'us-central1-a'"):
        names.check_zone("us-central1")


@pytest.mark.parametrize("zone", ["", "a", "us_central1_a", "US-CENTRAL1-A", "us-central1-a "])
def test_wrong_zones_are_refused(zone: str) -> None:
    with pytest.raises(SettingsError, match="not the name of a zone"):
        names.check_zone(zone)


@pytest.mark.parametrize("project", ["render-farm", "example.com:proj", "p2"])
def test_project_ids_are_accepted(project: str) -> None:
    assert names.check_project(project) == project


@pytest.mark.parametrize("project", ["", "My Project", "a/b", "a:b:c", "-a", "proj.x"])
def test_what_is_no_project_id_is_refused(project: str) -> None:
    with pytest.raises(SettingsError, match="not a project ID"):
        names.check_project(project)


def test_a_project_number_is_refused_because_dns_needs_the_id() -> None:
    with pytest.raises(SettingsError, match="give its ID"):
        names.check_project("123456789012")


def test_a_domain_scoped_project_turns_round_in_dns() -> None:
    name = names.zonal_dns_name("vm", "europe-west1-b", "example.com:proj")
    assert name == "vm.europe-west1-b.c.proj.example.com.internal"
