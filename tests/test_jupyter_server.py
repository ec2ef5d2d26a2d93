"""Jupyter beside the scheduler: for who has its token, and for nobody else."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import re
import signal
import site
import sysconfig
import uuid
import venv
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import aiohttp
import pytest
from clusters import PATIENCE, settings, until
from command_line import run_process
from distributed import Client, rpc
from guests import DASK, Guest
from ports import quiet_port
from test_guard import client_of, limit, until_listening

from dask_gce import GCECluster
from dask_gce.errors import SettingsError
from dask_gce.settings import Settings
from dask_gce.startup import Limits, Payload, scheduler_spec

JUPYTERLAB = importlib.util.find_spec("jupyterlab") is not None
needs_jupyterlab = pytest.mark.skipif(not JUPYTERLAB, reason="there is no jupyterlab")

#: An image that has it, as far as its name tells; the emulator's machines have what is here.
IMAGE = "example.com/notebooks:1"

ZONE = "us-central1-a"


# -- what is refused before anything is created ----------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "has no JupyterLab"),
        ({"container_image": "ghcr.io/dask/dask:2026.8.0-py3.11"}, "environment=['jupyterlab']"),
        ({"runtime": "vm"}, "there is only Dask"),
    ],
)
def test_a_server_that_cannot_be_there_is_refused(more, words):
    with pytest.raises(SettingsError, match="jupyter") as raised:
        Settings.load(jupyter=True, **more)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "more",
    [
        {"environment": ["jupyterlab"]},
        {"runtime": "vm", "environment": ["jupyterlab"]},
        {"container_image": IMAGE},
        {"container_image": "ghcr.io/dask/dask-notebook:2026.8.0"},
        {"env_vars": {"EXTRA_PIP_PACKAGES": "jupyterlab"}},
    ],
)
def test_a_server_that_may_be_there_is_taken(more):
    assert Settings.load(jupyter=True, **more).jupyter


def test_dasks_own_server_which_asks_for_no_token_is_refused():
    with pytest.raises(SettingsError, match="asks for a token"):
        Settings.load(scheduler_options={"jupyter": True})


# -- the server itself -----------------------------------------------------------------------------


def payload(port: int, dashboard: int, limits: Limits | None = None) -> Payload:
    """Return what a scheduler's machine with a server is told."""
    spec = scheduler_spec(protocol="tcp", port=port, dashboard_port=dashboard, options={})
    return Payload("scheduler", "p", None, spec, limits=limits, jupyter=True)


async def test_a_machine_without_jupyterlab_says_so(tmp_path):
    # A Python that finds everything but that.
    hidden = DASK.replace(
        "import sys\n",
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'jupyterlab' else find(name, *more)\n",
        1,
    )
    guest = Guest(tmp_path, dask=hidden)
    status, _, console = await guest.run(payload(quiet_port(), quiet_port()))
    assert status != 0
    phase = guest.record.guest_attributes["dask-gce"]["phase"]
    assert phase.startswith("failed: jupyter: jupyterlab is not installed"), console
    assert "environment" in phase


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return the Python of an environment on top of this one, as ``environment`` makes it.

    What Jupyter has beside its packages is not below its prefix.
    """
    folder = tmp_path / "environment"
    venv.create(folder)
    inner = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    lines = [f"import site; site.addsitedir({each!r})\n" for each in site.getsitepackages()]
    Path(inner, "image.pth").write_text("".join(lines))
    return folder / "bin" / "python"


@needs_jupyterlab
async def test_an_environment_on_top_of_an_image_does_not_hide_its_jupyterlab(
    environment, tmp_path
):
    guest = Guest(tmp_path, dask=DASK.replace("{python}", str(environment)))
    port, dashboard = quiet_port(), quiet_port()
    root = f"http://127.0.0.1:{dashboard}/jupyter"

    async def look(process: Any) -> None:
        await until_listening(port)
        async with rpc(f"tcp://127.0.0.1:{port}") as scheduler:
            told = await scheduler.dask_gce_jupyter()
        headers = {"Authorization": f"token {told['token']}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(f"{root}/lab") as answer:
                seen.append(answer.status)
                page = await answer.text()
            # What the page is made of is there too.
            for script in re.findall(r'<script[^>]* src="([^"]+)"', page):
                async with session.get(urljoin(f"{root}/lab", script)) as answer:
                    seen.append(answer.status)
        process.send_signal(signal.SIGTERM)

    seen: list[int] = []
    _, _, console = await guest.run(payload(port, dashboard), look)
    assert len(seen) > 1, console
    assert set(seen) == {200}, console


@needs_jupyterlab
async def test_work_in_a_notebook_keeps_a_cluster_and_its_end_ends_it(tmp_path):
    guest = Guest(tmp_path, dask=DASK)
    port, dashboard = quiet_port(), quiet_port()
    address = f"tcp://127.0.0.1:{port}"

    async def work(process: Any) -> None:
        await until_listening(port)
        async with client_of(address) as client:

            def look(dask_scheduler: Any = None) -> list[float | None]:
                guard = dask_scheduler.extensions["dask-gce-guard"]
                return [guard._passed("idle_timeout"), guard._passed("no_client_timeout")]

            async with rpc(address) as scheduler:
                told = await scheduler.dask_gce_jupyter()
            headers = {"Authorization": f"token {told['token']}"}
            root = f"http://127.0.0.1:{dashboard}/jupyter"
            async with aiohttp.ClientSession(headers=headers) as session:
                # Nothing is done, so its time passes.
                seen = (await client.run_on_scheduler(look))[0] or 0.0
                await until_passed(client, look, seen)
                # Somebody does something, and it begins anew.
                deadline = asyncio.get_running_loop().time() + PATIENCE
                while True:
                    before = (await client.run_on_scheduler(look))[0]
                    async with session.get(f"{root}/api/contents") as answer:
                        assert answer.status == 200
                    await asyncio.sleep(0.6)
                    after = (await client.run_on_scheduler(look))[0]
                    if before is not None and (after is None or after < before):
                        break
                    assert asyncio.get_running_loop().time() < deadline, "work is not noticed"
            # Nobody does anything any more.
            await limit(client, idle_timeout=2)
            await until(lambda: client.status != "running")

    status, _, console = await guest.run(payload(port, dashboard, Limits(idle_timeout=3600)), work)
    assert status == 0, console
    assert "idle_timeout" in guest.record.guest_attributes["dask-gce"]["phase"]
    assert "token=" not in console


async def until_passed(client: Any, look: Any, seen: float) -> None:
    """Wait until more of the time for which nothing is done has passed than was seen."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while ((await client.run_on_scheduler(look))[0] or 0.0) <= seen + 1:
        assert asyncio.get_running_loop().time() < deadline, "no time passes"
        await asyncio.sleep(0.1)


# -- a cluster's -----------------------------------------------------------------------------------


async def run_in_kernel(session: aiohttp.ClientSession, root: str, code: str) -> str:
    """Run code in a new kernel, as JupyterLab does; return what it has printed."""
    async with session.post(f"{root}/api/kernels") as answer:
        assert answer.status == 201, await answer.text()
        kernel = (await answer.json())["id"]
    printed, message = "", uuid.uuid4().hex
    async with session.ws_connect(f"{root}/api/kernels/{kernel}/channels") as channels:
        header = {"msg_id": message, "msg_type": "execute_request", "version": "5.3"}
        header |= {"session": uuid.uuid4().hex, "username": "", "date": "2026-01-01T00:00:00Z"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await channels.send_str(json.dumps({**request, "channel": "shell", "buffers": []}))
        while True:
            heard = json.loads((await channels.receive(PATIENCE)).data)
            if heard["parent_header"].get("msg_id") != message:
                continue
            if heard["msg_type"] == "stream":
                printed += heard["content"]["text"]
            elif heard["msg_type"] == "error":
                printed += "\n".join(heard["content"]["traceback"])
            elif heard["msg_type"] == "execute_reply":
                break
    return printed


@needs_jupyterlab
async def test_who_has_the_link_works_beside_the_scheduler_and_nobody_else(
    process_emulator, caplog, capsys
):
    with caplog.at_level(logging.DEBUG):
        made = settings(process_emulator, security=True, jupyter=True, container_image=IMAGE)
        async with GCECluster(**{**made, "quiet": False, "joinable": True}, name="lab") as cluster:
            link = urlsplit(cluster.jupyter_link)
            token = parse_qs(link.query)["token"][0]
            assert len(token) >= 32
            assert link.path == "/jupyter/lab"
            root = f"http://{link.netloc}/jupyter"
            async with aiohttp.ClientSession() as stranger:
                for path in ("api/contents", "api/kernels", "api/terminals"):
                    async with stranger.get(f"{root}/{path}") as answer:
                        assert answer.status == 403, path
                async with stranger.post(f"{root}/api/kernels") as answer:
                    assert answer.status == 403
                async with stranger.get(f"{root}/api/contents?token=wrong") as answer:
                    assert answer.status == 403
                async with stranger.get(f"{root}/lab") as answer:  # is asked for it
                    assert "login" in str(answer.url)
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await stranger.ws_connect(f"{root}/api/kernels/{uuid.uuid4()}/channels")
                assert refused.value.status == 403
                # The dashboard itself is shown as ever.
                async with stranger.get(f"http://{link.netloc}/health") as answer:
                    assert answer.status == 200
            headers = {"Authorization": f"token {token}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                async with session.get(cluster.jupyter_link) as answer:
                    assert answer.status == 200
                    assert "JupyterLab" in await answer.text()
                # With the scheduler's own keys, which the kernel's user can read.
                printed = await run_in_kernel(
                    session,
                    root,
                    "from distributed import Client\n"
                    "with Client() as client:\n"
                    "    print(client.scheduler.address, client.run_on_scheduler(lambda: 6 * 7))",
                )
                assert printed.strip() == f"{cluster.scheduler_info['address']} 42"
                # Jupyter's way to end it would stop the scheduler.
                async with session.post(f"{root}/api/shutdown") as answer:
                    assert answer.status == 403
            # No port without TLS is open for notebooks, as Dask's own would be.

            # The machine has no module of this test's.
            def addresses(dask_scheduler: Any = None) -> list[str]:
                return [listener.contact_address for listener in dask_scheduler.listeners]

            def handler(number: int) -> str:
                import signal

                return str(getattr(signal.getsignal(number), "__module__", "none"))

            async with Client(cluster, asynchronous=True, set_as_default=False) as client:
                assert await client.run_on_scheduler(addresses) == [
                    cluster.scheduler_info["address"]
                ]
                # A machine that goes down ends Dask in Dask's way, and no signal logs the token.
                ended_by = await client.run_on_scheduler(handler, signal.SIGTERM)
                assert ended_by.startswith("distributed")
                logged_by = await client.run_on_scheduler(handler, signal.SIGUSR1)
                assert not logged_by.startswith("jupyter")
            opened, _ = await asyncio.to_thread(
                run_process, process_emulator.endpoint, "dashboard", "lab", "--jupyter", "--json"
            )
            assert json.loads(opened)["address"] == cluster.jupyter_link
            joined = await GCECluster.from_name(
                "lab", asynchronous=True, quiet=True, api_endpoint=process_emulator.endpoint
            )
            try:
                assert joined.jupyter_link == cluster.jupyter_link
            finally:
                await joined.close()
            shown = [repr(cluster), cluster._repr_html_(), repr(cluster.events), str(cluster)]
            name = cluster.scheduler.name
            console, _ = await cluster._ready.compute.get_serial_port_output(ZONE, name)
            assert "dask-gce phase: running" in console
            instances = json.dumps(process_emulator.instances())
    said = capsys.readouterr()
    for text in (*shown, console, instances, caplog.text, said.out, said.err):
        assert token not in text


async def test_without_the_setting_there_is_no_link_and_no_server(light):
    async with GCECluster(**settings(light), name="plain", joinable=True) as cluster:
        assert cluster.jupyter_link == ""
        _, said = await asyncio.to_thread(
            run_process, light.endpoint, "dashboard", "plain", "--jupyter", "--no-open", status=1
        )
        assert "made without jupyter=True" in said
        host = urlsplit(cluster.dashboard_link).netloc
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{host}/jupyter/lab") as answer,
        ):
            assert answer.status == 404
