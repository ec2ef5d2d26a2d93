"""What a fixed cluster tells of itself once it is there: Terraform's outputs.

Pure. What is made is in `document`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dask_gce.terraform.fixed_cluster import FixedCluster

__all__ = ["build_outputs"]


def build_outputs(fixed: FixedCluster, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what Terraform tells of a cluster that it has made.

    Parameters
    ----------
    fixed : FixedCluster
        The cluster.
    workers : mapping of str to mapping
        The resources that are the workers' machines, by their names.

    Returns
    -------
    dict
        The outputs.
    """
    settings = fixed.settings
    scheme = "tls" if settings.security else "tcp"
    machine = "google_compute_instance.scheduler"
    internal = "google_compute_address.scheduler.address"
    interface = fixed.scheduler["network_interface"][0]
    external = "null"
    if interface.get("access_config"):
        external = f"{machine}.network_interface[0].access_config[0].nat_ip"
    reached = internal if external == "null" else external
    port = settings.scheduler_port

    def at(host: str) -> str:
        return f'"{scheme}://${{{host}}}:{port}"'

    return {
        "scheduler": {
            "description": "The scheduler: its machine, and its addresses inside and outside the "
            "network.",
            "value": {
                "name": f"${{{machine}.name}}",
                "zone": f"${{{machine}.zone}}",
                "internal_ip": f"${{{internal}}}",
                "external_ip": f"${{{external}}}",
                "address": f"${{{at(reached)}}}",
                "internal_address": f"${{{at(internal)}}}",
            },
        },
        "dashboard": {
            "description": "The dashboard, for who is let in.",
            "value": f"http://${{{reached}}}:{settings.dashboard_port}/status",
        },
        "workers": {
            "description": "The workers' machines by name.",
            "value": f"${{merge({', '.join(_told_workers(workers))})}}",
        },
        "connection": {
            "description": "What dask gce join takes: terraform output -json connection | "
            "dask gce join -",
            "sensitive": True,
            "value": dict(fixed.connection),
        },
    }


def _told_workers(workers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{{for each in google_compute_instance.{name} : each.name => {{zone = each.zone, "
        f"internal_ip = each.network_interface[0].network_ip, "
        f"spot = {json.dumps(_is_spot(resource))}}}}}"
        for name, resource in workers.items()
    ]


def _is_spot(resource: Mapping[str, Any]) -> bool:
    scheduling: Mapping[str, Any] = resource.get("scheduling", {})
    return scheduling.get("provisioning_model") == "SPOT" or bool(scheduling.get("preemptible"))
