"""A cluster that Terraform has made, used by Dask: joined, scaled, ended."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import terraform_command
from clusters import until, until_at_work
from command_line import environment, names, read, run, run_process, succeed
from distributed import Client
from terraform_command import Terraform, terraform_at

from dask_gce import GCECluster
from dask_gce.connections import list_connections
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import ClusterNotFound, CredentialsError

OBSTACLE = terraform_command.find_obstacle()
pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    # Terraform, machines and commands, one after the other, of which each takes its seconds.
    pytest.mark.timeout(600),
]

QUICK = ("--name", "grid", "--machine-type", "e2-small", "--worker-class", "distributed.Worker")
KEY = "dask-gce-tls"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep connection files here, those of the commands as well."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where Terraform's files are."""
    return tmp_path / "cluster"


def machines(emulator: ComputeEmulator) -> dict[str, dict[str, Any]]:
    """Return the machines that are not on their way out."""
    return {each["name"]: each for each in emulator.instances() if each["status"] != "STOPPING"}


def with_keys(emulator: ComputeEmulator) -> set[str]:
    """Return the machines that have private keys in their metadata."""
    return {
        name
        for name, machine in machines(emulator).items()
        if any("PRIVATE KEY" in each["value"] for each in machine["metadata"]["items"])
    }


def join(emulator: ComputeEmulator, terraform: Terraform, workspace: str = "default") -> None:
    """Join a cluster."""
    connection = terraform.run("output", "-json", "connection", workspace=workspace)
    joined = run(emulator, "join", "-", input=connection)
    assert joined.exit_code == 0, joined.output


def run_page(emulator: ComputeEmulator, terraform: Terraform) -> str:
    """Join a cluster and use it, word for word as the page on Terraform has it."""
    here = str(Path(__file__).relative_to(pages.ROOT))
    page = pages.read_page(pages.ROOT / "docs/terraform.md")
    joining, using = (each for each in page.blocks if each.markers.get("run by") == here)
    commands = f"set -o pipefail\n{joining.text}\npython -c {shlex.quote(using.text)}\n"
    where = environment(emulator.endpoint)
    programs = os.pathsep.join((str(Path(sys.executable).parent), where["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", commands],
        check=False,
        cwd=terraform.folder.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**terraform.environment(), **where, "NO_PROXY": "127.0.0.1", "PATH": programs},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


async def test_a_cluster_is_applied_joined_used_scaled_and_destroyed(process_emulator, folder):
    emulator = process_emulator
    limits = ("--idle-timeout", ".inf", "--max-lifetime", ".inf")
    where = ("export", "terraform", str(folder), "--n-workers", "2")
    await asyncio.to_thread(run_process, emulator.endpoint, *where, *QUICK, *limits)
    with terraform_at(folder, emulator.endpoint) as terraform:
        assert (await asyncio.to_thread(terraform.read, "validate"))["valid"]
        await asyncio.to_thread(terraform.run, "apply", "-auto-approve")
        declared = {"grid-scheduler", "grid-worker-0", "grid-worker-1"}
        assert machines(emulator).keys() == declared == with_keys(emulator)

        output = await asyncio.to_thread(run_page, emulator, terraform)
        assert "GCECluster.from_name('grid', project='local-project')" in output
        assert "terraform destroy" in output
        assert "45\n" in output
        keys = json.loads((folder / "certificates.auto.tfvars.json").read_text("utf-8"))
        for role in ("client", "scheduler", "worker"):
            assert keys["certificates"][role]["key"].splitlines()[1] not in output

        cluster = GCECluster.from_name("grid", asynchronous=True, quiet=True)
        async with cluster, Client(cluster, asynchronous=True) as client:
            await until_at_work(client, 2)
            internal = machines(emulator)["grid-scheduler"]["networkInterfaces"][0]["networkIP"]
            assert cluster.scheduler_address == f"tls://{internal}:8786"
            # Nobody reads the keys any more, and nobody makes up for what is gone.
            await until(lambda: not with_keys(emulator))
            await asyncio.to_thread(terraform.run, "plan", "-detailed-exitcode")

            await cluster.scale(3)
            await until_at_work(client, 3)
            squares = await client.gather(client.map(pow, range(30), [2] * 30))
            assert squares == [number**2 for number in range(30)]
            (added,) = machines(emulator).keys() - declared
            await until(lambda: not with_keys(emulator))

        # Terraform knows nothing of what others have added, and misses nothing.
        await asyncio.to_thread(terraform.run, "plan", "-detailed-exitcode")
        await asyncio.to_thread(terraform.run, "destroy", "-auto-approve")
        assert machines(emulator).keys() <= {added}
        # It ends by itself without its scheduler, in its time.
        await asyncio.to_thread(run_process, emulator.endpoint, "delete", "grid", "--yes")
        assert not machines(emulator)
        with pytest.raises((ClusterNotFound, CredentialsError)):
            await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    await until(lambda: not emulator.leftovers())


def test_workspaces_are_clusters_side_by_side(emulator, folder):
    succeed(emulator, "export", "terraform", str(folder), "--n-workers", "1", *QUICK)
    other = folder / "night.tfvars.json"
    succeed(emulator, "export", "certificates", str(other))
    with terraform_at(folder, emulator.endpoint) as terraform:
        terraform.run("apply", "-auto-approve")
        keys = f"-var-file={other}"
        terraform.run("apply", "-auto-approve", keys, workspace="night")
        both = {
            *("grid-scheduler", "grid-worker-0"),
            *("grid-night-scheduler", "grid-night-worker-0"),
        }
        assert machines(emulator).keys() == both
        for workspace in ("default", "night"):
            join(emulator, terraform, workspace)
        assert list_connections() == [("local-project", "grid"), ("local-project", "grid-night")]
        listed = read(emulator, "list")["clusters"]
        assert {each["name"]: len(each["machines"]) for each in listed} == {
            "grid": 2,
            "grid-night": 2,
        }
        assert len({each["id"] for each in listed}) == 2

        terraform.run("destroy", "-auto-approve")
        assert machines(emulator).keys() == {"grid-night-scheduler", "grid-night-worker-0"}
        terraform.run("destroy", "-auto-approve", keys, workspace="night")
        assert not machines(emulator)


def test_what_we_delete_is_made_again_and_no_sweep_takes_it(emulator, folder):
    succeed(emulator, "export", "terraform", str(folder), "--n-workers", "2", *QUICK)
    with terraform_at(folder, emulator.endpoint) as terraform:
        terraform.run("apply", "-auto-approve")
        join(emulator, terraform)
        assert read(emulator, "show", "grid")["declared"] == "terraform"
        swept = read(emulator, "sweep", "--delete")
        assert (swept["orphans"], swept["firewall_rules"], swept["secrets"]) == ([], [], [])

        deleted = run(emulator, "delete", "grid", "--yes")
        assert deleted.exit_code == 0, deleted.output
        assert "declared with Terraform" in deleted.stderr
        assert not names(emulator)
        # Its file has gone with it.
        assert not list_connections()

        terraform.run("plan", "-detailed-exitcode", status=2)
        terraform.run("apply", "-auto-approve")
        assert names(emulator) == {"grid-scheduler", "grid-worker-0", "grid-worker-1"}
        assert with_keys(emulator) == names(emulator)
        join(emulator, terraform)
        terraform.run("plan", "-detailed-exitcode")
        terraform.run("destroy", "-auto-approve")
        assert not names(emulator)


async def test_a_lifetime_holds_for_what_is_added_and_is_told(light, folder):
    limits = ("--idle-timeout", ".inf", "--max-lifetime", "2 hours")
    where = ("export", "terraform", str(folder), "--n-workers", "1")
    await asyncio.to_thread(run_process, light.endpoint, *where, *QUICK, *limits)
    with terraform_at(folder, light.endpoint) as terraform:
        await asyncio.to_thread(terraform.run, "apply", "-auto-approve")
        await asyncio.to_thread(join, light, terraform)
        cluster = GCECluster.from_name(
            "grid", asynchronous=True, quiet=True, api_endpoint=light.endpoint
        )
        async with cluster:
            await until(lambda: cluster.limits.max_lifetime is not None)
            assert 7000 < cluster.limits.max_lifetime <= 7200
            await cluster.scale(2)
            await cluster.wait_for_workers(2)
            made = machines(light).values()
            assert len(made) == 3
            for each in made:
                seconds = int(each["scheduling"]["maxRunDuration"]["seconds"])
                # Each has its own, from when it was made.
                assert 7190 < seconds <= 7200
                assert each["scheduling"]["instanceTerminationAction"] == "DELETE"

        async def ends() -> dict[str, Any]:
            shown = await asyncio.to_thread(run, light, "show", "grid", "--json")
            return dict(json.loads(shown.output)["ends"])

        told = await ends()
        assert told["max_lifetime"] and told.get("idle_timeout") is None
        await asyncio.to_thread(terraform.run, "destroy", "-auto-approve")
        assert (await asyncio.to_thread(run, light, "delete", "grid", "--yes")).exit_code == 0
    await until(lambda: not light.leftovers())
