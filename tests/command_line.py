"""``dask gce`` as tests run it: in this process where that will do, in one of its own elsewhere.

Owns: the configuration and environment that lead a command to a local Compute Engine, and machines
with labels for it to find.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from click.testing import CliRunner, Result
from records import compute_of, insert, labels_of

from dask_gce.cli import gce
from dask_gce.emulator import ComputeEmulator

#: What of a machine is no label.
HOW = ("zone", "overrides")


def run(emulator: ComputeEmulator | None, *arguments: str, **options: Any) -> Result:
    """Run a command in this process."""
    endpoint = emulator.endpoint if emulator else None
    with dask.config.set({"gce.api-endpoint": endpoint}):
        return CliRunner().invoke(gce, list(arguments), **options)


def succeed(emulator: ComputeEmulator, *arguments: str, **options: Any) -> str:
    """Run a command that ends well; return what it printed."""
    result = run(emulator, *arguments, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def read(emulator: ComputeEmulator, *arguments: str, **options: Any) -> Any:
    """Run a command that ends well; return the JSON that it printed."""
    return json.loads(succeed(emulator, *arguments, "--json", **options))


def make(emulator: ComputeEmulator, **machines: Any) -> None:
    """Make machines whose labels are those of a cluster; an underscore stands for a hyphen."""

    async def ask() -> None:
        async with compute_of(emulator) as compute:
            for name, labels in machines.items():
                await insert(
                    emulator,
                    compute,
                    name.replace("_", "-"),
                    labels_of(**{key: value for key, value in labels.items() if key not in HOW}),
                    **{key: value for key, value in labels.items() if key in HOW},
                )

    asyncio.run(ask())


def names(emulator: ComputeEmulator) -> set[str]:
    """Return the names of the machines that are not on their way out."""
    return {each["name"] for each in emulator.instances() if each["status"] != "STOPPING"}


def environment(endpoint: str, **more: str) -> dict[str, str]:
    """Return the environment of a command that is to find a local Compute Engine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DASK_GCE")}
    return {
        **kept,
        "DASK_GCE__API_ENDPOINT": endpoint,
        # google.api_core says so of a Python near its end of life, on standard error.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        **more,
    }


@contextmanager
def process(endpoint: str, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "dask", "gce", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(endpoint, **more),
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def run_process(endpoint: str, *arguments: str, status: int = 0, **more: str) -> tuple[str, str]:
    """Run a command in a process of its own to its end; return its output and its errors."""
    with process(endpoint, *arguments, **more) as running:
        output, errors = running.communicate(timeout=300)
    assert running.returncode == status, f"{running.returncode}\n{output}\n{errors}"
    return output, errors


def program(folder: Path, name: str, text: str) -> str:
    """Write a program; return a PATH on which it comes first."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
