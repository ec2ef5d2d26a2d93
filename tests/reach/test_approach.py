"""Where the scheduler's ports are, as seen from here, and what keeps them from being reached."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from clusters import cluster_on
from distributed.security import Security
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.auth.exceptions import TransportError as NoTokenServer
from google.oauth2.credentials import Credentials

from dask_gce.credentials import access_token
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import CredentialsError, TransportError, TunnelError
from dask_gce.instance import Instance
from dask_gce.reach.approach import Approach
from dask_gce.reach.route import Kind, Route
from dask_gce.settings import Settings

LOCAL = "http://127.0.0.1:8080"
INSTANCE = Instance(
    "s", "us-central1-a", "RUNNING", internal_ip="10.128.0.2", external_ip="203.0.113.7"
)


def approach(kind: Kind, **keywords: Any) -> Approach:
    return Approach(
        Route(kind, "it is a test"),
        Settings.load(**keywords),
        "farm",
        security=Security(require_encryption=False),
    )


@pytest.mark.parametrize(
    ("kind", "host"), [("internal", "10.128.0.2"), ("external", "203.0.113.7")]
)
async def test_an_address_is_that_of_the_way(kind: Kind, host: str) -> None:
    way = approach(kind)
    assert way.address(8786) is None
    await way.open(INSTANCE)
    assert way.address(8786) == (host, 8786)
    assert way.describe(8786) == f"port 8786 at {host}, its {kind} address"
    await way.close()
    assert way.address(8786) is None


async def test_nothing_is_sent_to_a_strangers_address_for_a_local_engine() -> None:
    way = approach("external", api_endpoint=LOCAL)
    await way.open(INSTANCE)
    assert way.address(8786) is None
    assert await way.find_obstacle() == (
        "this process is not in the local Compute Engine's network"
    )


async def test_a_machine_without_the_address_is_told() -> None:
    way = approach("external")
    await way.open(Instance("s", "us-central1-a", "RUNNING", internal_ip="10.128.0.2"))
    assert await way.find_obstacle() == "the machine has no external address"
    assert way.describe(8786) == "port 8786 at its external address, of which it has none"


async def test_tunnels_lead_to_one_machine_at_a_time() -> None:
    way = approach("iap", api_endpoint=LOCAL)
    assert way.address(8786) is None
    await way.open(INSTANCE)
    ports = {port: way.address(port) for port in (8786, 8787)}
    assert len(set(ports.values())) == 2
    assert all(place and place[0] == "127.0.0.1" for place in ports.values())
    await way.open(INSTANCE)
    assert {port: way.address(port) for port in (8786, 8787)} == ports
    # It has moved to another zone.
    await way.open(Instance("t", "us-central1-b", "RUNNING", internal_ip="10.128.0.3"))
    assert way.address(8786) is not None
    first = ports[8786]
    assert first is not None
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(*first)
    await way.close()
    await way.close()
    assert way.address(8786) is None


async def test_nothing_listens_where_one_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        way = Approach(
            Route("iap", "it is a test"),
            Settings.load(api_endpoint=LOCAL),
            "farm",
            security=Security(require_encryption=False),
            local_ports={8786: taken.getsockname()[1]},
        )
        with pytest.raises(OSError, match="in use"):
            await way.open(INSTANCE)
        assert way.address(8787) is None
        await way.close()


async def test_a_tunnel_that_will_never_be_is_not_waited_for(emulator: ComputeEmulator) -> None:
    # A policy of the organisation: however long anybody waits, it stays.
    emulator.tunnels.close_next(4054)
    with pytest.raises(TunnelError, match="policy of the organisation") as caught:
        await cluster_on(emulator, connect="iap")
    assert caught.value.code == 4054


# -- tokens -----------------------------------------------------------------------------------


class Refreshing(Credentials):
    """Credentials whose token is given out, or refused, here."""

    def __init__(self, outcome: str | Exception) -> None:
        super().__init__(token=None)
        self.outcome = outcome

    def refresh(self, request: Any) -> None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.token = self.outcome


def test_a_token_is_refreshed_when_there_is_none() -> None:
    assert access_token(Refreshing("ya29.fresh")) == "ya29.fresh"
    assert access_token(Credentials(token="ya29.there")) == "ya29.there"
    assert access_token(AnonymousCredentials()) is None


def test_without_a_token_it_is_told_why() -> None:
    with pytest.raises(CredentialsError, match="gcloud auth application-default login"):
        access_token(Refreshing(RefreshError("invalid_grant: Bad Request")))
    with pytest.raises(TransportError, match="does not answer"):
        access_token(Refreshing(NoTokenServer("no route")))
