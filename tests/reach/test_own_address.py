"""This computer's own address: who is asked, in which order, and what counts as an answer."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import dask_gce.reach.own_address
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import GCEError
from dask_gce.reach.own_address import OwnAddress, find_own_address, parse_address
from dask_gce.settings import Settings

FIRST, SECOND, THIRD = "https://first.example", "https://second.example", "https://third.example"


class Services:
    """Services of the Internet, which no test asks: each answers what it is given."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()
        self.over = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        found = self.answers[name]
        if found is None:
            await self.over.wait()
        if isinstance(found, int):
            raise web.HTTPFound("/third") if found == 302 else web.HTTPServiceUnavailable
        return web.Response(body=found)


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has HTTPS addresses answered here, over HTTP."""
    # However busy this machine is.
    monkeypatch.setattr(dask_gce.reach.own_address, "PATIENCE", 60.0)
    runners: list[Any] = []
    started: list[Services] = []

    async def start(**answers: Any) -> Services:
        services = Services(**answers)
        application = web.Application()
        application.router.add_get("/{name}", services.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        started.append(services)
        place = f"http://127.0.0.1:{runner.addresses[0][1]}"
        get = aiohttp.ClientSession.get

        def redirected(self: Any, url: str, **options: Any) -> Any:
            name = url.removeprefix("https://").removesuffix(".example")
            return get(self, f"{place}/{name}", **options)

        monkeypatch.setattr(aiohttp.ClientSession, "get", redirected)
        return services

    yield start
    for services in started:
        services.over.set()
    for runner in runners:
        await runner.cleanup()


def asking(*services: str) -> Settings:
    return Settings.load(client_address_services=list(services))


async def test_the_first_service_that_tells_it_counts(serve: Any) -> None:
    services = await serve(first=b"8.8.4.4\n", second=b"9.9.9.9")
    assert await find_own_address(asking(FIRST, SECOND)) == OwnAddress("8.8.4.4", FIRST)
    assert services.asked == {"first": 1}


@pytest.mark.parametrize(
    "answer",
    [503, 302, b"", b"10.0.0.1", b"2001:db8::1", b"<html>8.8.8.8</html>", b"8.8.8.8 " * 1000],
)
async def test_a_service_that_tells_no_address_is_passed_over(answer: Any, serve: Any) -> None:
    services = await serve(first=answer, second=b"9.9.9.9")
    assert (await find_own_address(asking(FIRST, SECOND))).source == SECOND
    assert services.asked == {"first": 1, "second": 1}


async def test_a_service_that_is_silent_is_passed_over(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(first=None)
    monkeypatch.setattr(dask_gce.reach.own_address, "PATIENCE", 0.05)
    with pytest.raises(GCEError, match=FIRST):
        await find_own_address(asking(FIRST))


async def test_when_nobody_tells_it_the_error_names_all_and_the_remedy(serve: Any) -> None:
    await serve(first=503, second=b"none", third=b"")
    with pytest.raises(GCEError) as caught:
        await find_own_address(asking(FIRST, SECOND, THIRD))
    for part in (FIRST, SECOND, THIRD, "allow_ingress_from", "connect='iap'"):
        assert part in str(caught.value)


async def test_nobody_is_asked_where_nobody_is_named(serve: Any) -> None:
    services = await serve()
    with pytest.raises(GCEError, match=r"names nobody.*allow_ingress_from"):
        await find_own_address(asking())
    assert not services.asked


async def test_a_local_engine_says_it_itself(
    emulator: ComputeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy would be asked for an address outside.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    settings = Settings.load(api_endpoint=emulator.endpoint, client_address_services=[FIRST])
    found = await find_own_address(settings)
    assert found == OwnAddress("127.0.0.1", "the local Compute Engine")


async def test_a_local_engine_that_does_not_say_it_is_named(serve: Any) -> None:
    settings = Settings.load(api_endpoint="http://127.0.0.1:9")
    with pytest.raises(GCEError, match=r"http://127\.0\.0\.1:9/client-address"):
        await find_own_address(settings)


@given(st.binary() | st.text().map(str.encode) | st.ip_addresses().map(lambda ip: f"{ip}".encode()))
def test_any_answer_is_one_public_address_or_none(answer: bytes) -> None:
    found = parse_address(answer)
    if found is not None:
        address = ipaddress.IPv4Address(found)
        assert address.is_global
        assert not address.is_multicast
        assert answer.strip() == found.encode()


@pytest.mark.parametrize(
    "address",
    [b"0.0.0.0", b"127.0.0.1", b"10.1.2.3", b"169.254.169.254", b"224.0.0.1", b"240.0.0.1"],
)
def test_addresses_that_the_internet_does_not_know_are_none(address: bytes) -> None:
    assert parse_address(address) is None


def test_a_local_engine_may_see_addresses_of_its_own() -> None:
    for address in ("127.0.0.1", "198.51.100.2"):
        assert parse_address(address.encode(), public=False) == address
    assert parse_address(b"0.0.0.0", public=False) is None
