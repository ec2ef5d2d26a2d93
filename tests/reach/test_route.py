"""Which way leads to the scheduler: the decision, and what is asked for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dask_gce.reach.surroundings
from dask_gce.reach.firewall_rules import Network
from dask_gce.reach.route import choose_route, named_network
from dask_gce.reach.surroundings import (
    Surroundings,
    look_around,
    parse_answer,
    parse_surroundings,
)
from dask_gce.settings import Settings

LOCAL = "http://127.0.0.1:8080"
HERE = Surroundings("farm", "7", (("7", "default"), ("9", "shared")))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GCE_METADATA_HOST", "GCE_METADATA_IP", "NO_GCE_CHECK"):
        monkeypatch.delenv(variable, raising=False)


def route(here: Surroundings | None = None, project: str = "farm", **keywords: Any) -> Any:
    settings = Settings.load(**keywords)
    return choose_route(
        settings, project=project, network=named_network(settings, project), here=here
    )


# -- the decision -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["internal", "external", "iap"])
def test_a_way_that_was_named_is_taken_wherever_this_process_is(kind: str) -> None:
    for here in (None, HERE):
        chosen = route(here, connect=kind)
        assert (chosen.kind, chosen.reason) == (kind, f"connect = '{kind}' (keyword argument)")


def test_from_outside_the_external_address_is_taken_else_a_tunnel() -> None:
    assert str(route()) == (
        "external, since this computer is not on Compute Engine, and the machines have external "
        "addresses"
    )
    assert route(external_ip=False).kind == "iap"
    assert route(external_ip=False).reason.endswith("have no external address")


def test_from_the_same_network_the_internal_address_is_taken() -> None:
    chosen = route(HERE, external_ip=False)
    assert chosen.kind == "internal"
    assert chosen.reason == "this computer is in network default of project farm too"


@pytest.mark.parametrize(
    ("network", "project", "same"),
    [
        ("default", "farm", True),
        ("other", "farm", False),
        # Of the same name, but in somebody else's project.
        ("default", "barn", False),
        ("projects/farm/global/networks/default", "barn", True),
        ("projects/barn/global/networks/default", "farm", False),
        # Shared: the metadata server tells the host project by its number only.
        ("projects/host/global/networks/shared", "farm", True),
        ("projects/host/global/networks/shared", "barn", False),
        ("projects/9/global/networks/shared", "barn", True),
        ("projects/8/global/networks/default", "farm", False),
        ("shared", "farm", False),
    ],
)
def test_networks_are_the_same_if_name_and_project_are(
    network: str, project: str, same: bool
) -> None:
    assert (route(HERE, project, network=network).kind == "internal") is same


def test_on_another_network_of_google_the_reason_names_ours() -> None:
    assert route(HERE, network="other").reason == (
        "this computer is on Compute Engine, but not in network other of project farm, and the "
        "machines have external addresses"
    )


def test_of_a_subnetwork_alone_the_network_is_not_known() -> None:
    assert named_network(Settings.load(subnetwork="mine"), "farm") is None
    assert route(HERE, subnetwork="mine").kind == "external"
    settings = Settings.load(subnetwork="mine")
    found = Network("farm", "default")
    assert choose_route(settings, project="farm", network=found, here=HERE).kind == "internal"


# -- what is asked ----------------------------------------------------------------------------


GOOD = {
    "/computeMetadata/v1/project/project-id": "farm",
    "/computeMetadata/v1/project/numeric-project-id": "7",
    "/computeMetadata/v1/instance/network-interfaces/?recursive=true": json.dumps(
        [{"network": "projects/7/networks/default"}, {"network": "projects/9/networks/shared"}]
    ),
}


@contextlib.asynccontextmanager
async def server(
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, str] = GOOD,
    *,
    head: str = "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n",
    silent: bool = False,
) -> AsyncIterator[list[str]]:
    """Serve as a metadata server does; yield what it is asked."""
    asked: list[str] = []
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(request.split(" ")[1])
        assert "Metadata-Flavor: Google" in request
        if silent:
            await over.wait()
        body = answers[asked[-1]]
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    serving = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = serving.sockets[0].getsockname()[1]
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
    try:
        yield asked
    finally:
        over.set()
        serving.close()
        await serving.wait_closed()


@pytest.mark.parametrize("keywords", [{}, {"api_endpoint": LOCAL}])
async def test_the_metadata_server_tells_where_this_process_is(
    keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy this machine is.
    monkeypatch.setattr(dask_gce.reach.surroundings, "PATIENCE", 60.0)
    async with server(monkeypatch) as asked:
        assert await look_around(Settings.load(**keywords)) == HERE
    assert sorted(asked) == sorted(GOOD)


async def test_who_is_not_googles_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for head in ("HTTP/1.1 200 OK\r\n", "HTTP/1.1 404 Not Found\r\nMetadata-Flavor: Google\r\n"):
        async with server(monkeypatch, head=head):
            assert await look_around(Settings.load()) is None


async def test_a_server_that_says_nothing_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = 0.05
    async with server(monkeypatch, silent=True) as asked:
        while not asked:  # on a machine too busy for that to have come to it
            monkeypatch.setattr(dask_gce.reach.surroundings, "PATIENCE", patience)
            assert await look_around(Settings.load()) is None
            patience *= 2


async def test_for_a_local_engine_nobody_outside_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"asked: {arguments}")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    assert await look_around(Settings.load(api_endpoint=LOCAL)) is None
    monkeypatch.setenv("NO_GCE_CHECK", "True")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    assert await look_around(Settings.load()) is None


@pytest.mark.parametrize("host", ["127.0.0.1:9", "127.0.0.1:0", "127.0.0.1:99999", "::1", "a b"])
async def test_a_server_that_is_not_there_is_none(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    assert await look_around(Settings.load()) is None


# -- whatever is answered ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "interfaces",
    ["", "null", "{}", "[null]", '[{"network": 5}]', '[{"network": "default"}]', "[" * 100_000],
)
def test_interfaces_that_are_none_are_no_network(interfaces: str) -> None:
    found = parse_surroundings("farm", "7", interfaces)
    assert found is None or found.networks == ()


@given(st.text(), st.text(), st.text())
def test_any_text_is_surroundings_or_none(project: str, number: str, interfaces: str) -> None:
    parse_surroundings(project, number, interfaces)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["network", "ip"]), inner),
    max_leaves=6,
)


@given(_json)
def test_any_json_is_surroundings_or_none(interfaces: Any) -> None:
    found = parse_surroundings("farm", "7", json.dumps(interfaces))
    assert found is None or all(len(each) == 2 for each in found.networks)


WHOLE = b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n%b\r\nfarm"


@given(st.binary())
def test_any_bytes_are_an_answer_or_none(answer: bytes) -> None:
    assert parse_answer(answer) is None
    parse_answer(WHOLE % answer)


@given(
    st.sampled_from([b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b""]),
    st.binary(),
)
def test_any_body_is_text_or_none(header: bytes, body: bytes) -> None:
    found = parse_answer(WHOLE.replace(b"farm", b"%b") % (header, body))
    assert found is None or isinstance(found, str)


def test_half_an_answer_is_none() -> None:
    whole = WHOLE % b"Content-Length: 4\r\n"
    assert parse_answer(whole) == "farm"
    for length in range(len(whole)):
        assert parse_answer(whole[:length]) is None
    chunked = WHOLE.replace(b"farm", b"4\r\nfarm\r\n0\r\n\r\n") % b"Transfer-Encoding: chunked\r\n"
    assert parse_answer(chunked) == "farm"
