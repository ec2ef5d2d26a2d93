"""The package as it is installed: what importing it costs, and that nothing is missing in it."""

from __future__ import annotations

import configparser
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import dask_gce

ROOT = Path(__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter holds after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_importing_the_package_imports_next_to_nothing():
    more = modules_after("import distributed, dask_gce") - modules_after("import distributed")
    assert more == {"dask_gce", "dask_gce._version"}


def test_importing_the_cluster_leaves_googles_client_for_later():
    modules = modules_after("from dask_gce import GCECluster")
    assert "dask_gce.cluster" in modules
    assert "google.cloud.compute_v1" not in modules


def test_loading_the_command_imports_nothing_but_click():
    modules = modules_after("import dask_gce.cli")
    assert "click" in modules
    ours = {name for name in modules if name.startswith("dask_gce")}
    assert ours == {"dask_gce", "dask_gce._version", "dask_gce.cli"}
    assert "distributed" not in modules


@pytest.mark.parametrize("name", dask_gce.__all__)
def test_every_public_name_exists_and_is_listed(name):
    assert getattr(dask_gce, name) is not None
    assert name in dir(dask_gce)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="GCPCluster"):
        _ = dask_gce.GCPCluster


def test_version_is_the_installed_one():
    assert version("dask-gce") == dask_gce.__version__


def test_dask_finds_the_command():
    (entry,) = [each for each in entry_points(group="dask_cli") if each.name == "gce"]
    command = entry.load()
    assert isinstance(command, click.Group)
    answer = CliRunner().invoke(command, ["--help"])
    assert answer.exit_code == 0
    assert "demo" in answer.output


def test_every_data_file_is_packaged():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packaged = {
        path
        for package, lines in config["options.package_data"].items()
        for pattern in lines.split()
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    missing = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "dask_gce").rglob("*"))
        if path.is_file()
        and not {".mypy_cache", ".ruff_cache", "__pycache__"} & set(path.parts)
        # A folder without __init__ is data as far as setuptools is concerned.
        and not (path.suffix == ".py" and (path.parent / "__init__.py").exists())
        and path not in packaged
    ]
    assert missing == []
