"""What follows from some settings of a cluster for others that were not given.

Owns what a value that was left out becomes, where it depends on other values or on the versions of
Python and Dask in use. What a single value may be is the matter of `schema`, and what contradicts
what of `contradictions`.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from dask_gce import images

__all__ = ["complete"]


def complete(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Fill in what follows from other settings or from the surroundings.

    Parameters
    ----------
    values : dict
        All settings, each checked by itself; None where one was left out.
    sources : dict of str to str
        Where each came from; what is filled in tells what it followed from.
    """
    for key in ("scheduler_machine_type", "worker_machine_type"):
        if values[key] is None:
            values[key] = values["machine_type"]
            sources[key] = f"machine_type ({sources['machine_type']})"
    _complete_counts(values, sources)
    if values["worker_accelerator_count"] is None:
        chosen = values["worker_accelerator_type"]
        values["worker_accelerator_count"] = 0 if chosen is None else 1
        sources["worker_accelerator_count"] = "worker_accelerator_type" if chosen else "default"
    if values["subnetwork"] is not None and sources["network"] == "default":
        # The subnetwork tells its network; "default" beside it would be a contradiction.
        values["network"], sources["network"] = None, "subnetwork"
    if values["runtime"] == "vm":
        if sources["source_image"] == "default":
            # Container-Optimized OS has no Python, and nothing to install one with.
            image = images.parse_source_image(images.VM_IMAGE)
            values["source_image"], sources["source_image"] = image, "runtime"
    elif values["container_image"] is None:
        major, minor, _ = platform.python_version_tuple()
        version = importlib.metadata.version("dask")
        image = images.official_image(version, (int(major), int(minor)))
        values["container_image"] = image
        sources["container_image"] = (
            f"no official image for dask {version}, which is no release"
            if image.endswith(":latest")
            else "official image for this Dask and Python"
        )


def _complete_counts(values: dict[str, Any], sources: dict[str, str]) -> None:
    if values["workers_on_scheduler"] is None:
        one = values["single_node"]
        values["workers_on_scheduler"] = values["processes"] if one else 0
        sources["workers_on_scheduler"] = (
            f"processes ({sources['processes']})" if one else "default"
        )
    if values["workers_on_scheduler"] and sources["n_workers"] == "default":
        values["n_workers"] = values["workers_on_scheduler"]
        sources["n_workers"] = f"workers_on_scheduler ({sources['workers_on_scheduler']})"
