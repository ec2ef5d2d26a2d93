"""Fixed clusters for tests, written as ``dask gce export terraform`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dask_gce.emulator import ComputeEmulator
from dask_gce.preparation import open_compute
from dask_gce.settings import Settings
from dask_gce.terraform.document import build_document
from dask_gce.terraform.files import write_files
from dask_gce.terraform.fixed import describe_fixed
from dask_gce.terraform.fixed_cluster import FixedCluster

DRIVER_IMAGE = "deeplearning-platform-release/common-cu128-ubuntu-2204-nvidia-570"

#: Five clusters that have little in common.
CLUSTERS: dict[str, dict[str, Any]] = {
    "spot": {
        "n_workers": 8,
        "spot": True,
        "spot_fraction": 0.7,
        "min_on_demand": 2,
        "labels": {"team": "search"},
        "idle_timeout": "inf",
        "max_lifetime": "inf",
    },
    "gpu": {
        "n_workers": 2,
        "worker_machine_type": "n1-standard-8",
        "worker_accelerator_type": "nvidia-tesla-t4",
        "local_ssds": 2,
        "runtime": "vm",
        "environment": ["dask-cuda", "numpy"],
        "source_image": DRIVER_IMAGE,
        "boot_disk_size": 50,
        "boot_disk_type": "pd-ssd",
    },
    "private": {
        "n_workers": 4,
        "processes": 2,
        "external_ip": False,
        "connect": "iap",
        "subnetwork": "default",
        "secrets": "secret-manager",
        "service_account": "default",
        "secure_boot": True,
        "env_vars": {"PASSWORD": 'it\'s "${HOME}" %{if}'},
        "worker_options": {"resources": {"${x}": 1}},
    },
    "zones": {
        "n_workers": 5,
        "zone": ["us-central1-b", "us-central1-a"],
        "allow_cross_zone": True,
        "machine_type": "n2-standard-2",
        "min_cpu_platform": "Intel Ice Lake",
        "reservation": "ours",
    },
    "single": {"single_node": True, "processes": 2, "security": False, "firewall": False},
}


async def describe(emulator: ComputeEmulator, **settings: Any) -> FixedCluster:
    """Return what Terraform is to make of some settings."""
    loaded = Settings.load(api_endpoint=emulator.endpoint, **{"name": "grid", **settings})
    compute = await open_compute(loaded)
    try:
        return await describe_fixed(compute, loaded)
    finally:
        await compute.close()


async def document_of(emulator: ComputeEmulator, **settings: Any) -> dict[str, Any]:
    """Return a whole document."""
    return build_document(await describe(emulator, **settings))


async def export(emulator: ComputeEmulator, folder: Path, **settings: Any) -> FixedCluster:
    """Write the files of a cluster."""
    fixed = await describe(emulator, **settings)
    write_files(
        folder,
        build_document(fixed),
        cluster=str(fixed.settings.name),
        days=1 if fixed.settings.security else None,
        env_vars=fixed.settings.env_vars,
    )
    return fixed


def resources(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each resource with its kind and its name."""
    for kind, named in document["resource"].items():
        for name, attributes in named.items():
            yield kind, name, attributes


def machines(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the machines by the names of their resources."""
    found: dict[str, dict[str, Any]] = document["resource"]["google_compute_instance"]
    return found


def text_of(document: Mapping[str, Any]) -> str:
    """Return a document as it is written."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False)
