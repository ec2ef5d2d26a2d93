"""What contradicts what among the settings of one cluster.

Owns the rules for two settings or more. What a single value may be is the matter of `schema`;
whether workers fit their machines is found out later, by `fit`, once the machines are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dask_gce.addresses import is_loopback
from dask_gce.errors import SettingsError
from dask_gce.images import OFFICIAL_IMAGE
from dask_gce.sources import refusal

__all__ = ["check_far_end", "check_together"]

#: The one access scope that reaches Secret Manager.
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


def check_together(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Check settings against each other.

    Parameters
    ----------
    values : mapping
        All settings, each checked by itself and completed.
    sources : mapping of str to str
        Where each came from.

    Raises
    ------
    SettingsError
        If two of them contradict each other; the message says where the one came from.
    """

    def refuse(key: str, reason: str) -> SettingsError:
        return refusal(key, sources[key], reason)

    for key in ("nthreads", "memory_limit"):
        if values[key] is not None and key in values["worker_options"]:
            raise refuse(key, f"worker_options has {key!r} too; give it once")
    _check_counts(values, refuse)
    _check_ports(values, refuse)
    _check_runtime(values, sources, refuse)
    _check_jupyter(values, refuse)
    if values["worker_accelerator_count"] and values["worker_accelerator_type"] is None:
        raise refuse(
            "worker_accelerator_count",
            "of which GPUs? Set worker_accelerator_type too, for example to 'nvidia-tesla-t4'",
        )
    if values["service_account"] is None and sources["scopes"] != "default" and values["scopes"]:
        raise refuse(
            "scopes",
            "without a service account scopes mean nothing; "
            "set service_account too, for example to 'default'",
        )
    _check_spot(values, sources, refuse)
    _check_secrets(values, sources, refuse)
    local = values["api_endpoint"] is not None and is_loopback(values["api_endpoint"])
    _check_way(values, sources, refuse, local=local)
    if values["api_token_file"] is not None and not local:
        raise refuse(
            "api_token_file",
            "a token file is for a local Compute Engine; set api_endpoint to its address, "
            "or leave this out to use Google's credentials",
        )


def _check_spot(
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    refuse: Callable[[str, str], SettingsError],
) -> None:
    """Check what is said about Spot machines."""
    if not values["spot"]:
        for key in ("spot_fraction", "min_on_demand"):
            # A configuration holds for clusters of all kinds, so a keyword may pass over it.
            if sources[key] == "keyword argument":
                raise refuse(
                    key,
                    "without spot every machine is on demand; set spot to true or 'fallback', "
                    "or leave this out",
                )
        return
    if values["reservation"] is not None:
        raise refuse(
            "spot", "Spot machines are never taken from a reservation; leave one of the two out"
        )
    if values["single_node"]:
        raise refuse(
            "spot",
            "with single_node the workers are on the scheduler's machine, which is never Spot; "
            "leave one of the two out",
        )


def _check_secrets(
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    refuse: Callable[[str, str], SettingsError],
) -> None:
    """Check that machines can read what is in Secret Manager for them."""
    if values["secrets"] != "secret-manager" or values["security"] is False:
        return
    if values["service_account"] is None:
        raise refuse(
            "service_account",
            "with secrets='secret-manager' the machines read their keys as a service account; "
            "set it, for example to 'default', or leave secrets out",
        )
    if CLOUD_PLATFORM not in values["scopes"]:
        raise refuse(
            "scopes",
            "with secrets='secret-manager' the machines need the scope cloud-platform, "
            "the only one that reaches Secret Manager; add it, or leave scopes out",
        )


def _check_way(
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    refuse: Callable[[str, str], SettingsError],
    *,
    local: bool,
) -> None:
    """Check the way to the scheduler, and who else may take it."""
    connect, ranges = values["connect"], values["allow_ingress_from"]
    if connect == "external" and not values["external_ip"]:
        raise refuse(
            "connect",
            "'external' is the way to external addresses, and with external_ip=False there are "
            "none; use 'iap', or 'internal' from inside the network",
        )

    def unused_beside(key: str) -> bool:
        # A configuration holds for clusters of all kinds, so a keyword may pass over its ranges.
        sure = "keyword argument"
        return sources["allow_ingress_from"] == sure or sources[key] != sure

    if ranges is not None and connect in {"internal", "iap"} and unused_beside("connect"):
        raise refuse(
            "allow_ingress_from",
            f"with connect={connect!r} nobody comes from there; leave it out, "
            "or set connect='external'",
        )
    if ranges is not None and not values["firewall"] and unused_beside("firewall"):
        raise refuse(
            "allow_ingress_from",
            "with firewall=False no rule is made that could let anybody in; leave one of them out",
        )
    check_far_end(values["iap_endpoint"], refuse, local=local)


def check_far_end(
    far_end: str | None, refuse: Callable[[str, str], SettingsError], *, local: bool
) -> None:
    """Check that tunnels end where the Compute API is.

    Parameters
    ----------
    far_end : str or None
        The ``iap_endpoint``.
    refuse : callable
        Makes the error of a setting and a reason.
    local : bool
        Whether the Compute API is a local one.

    Raises
    ------
    SettingsError
        If one is on this computer, and the other is not.
    """
    if far_end is not None and is_loopback(far_end) is not local:
        # Each would get the bearer token of the other, and on loopback anybody may listen.
        raise refuse(
            "iap_endpoint",
            "tunnels of a local Compute Engine end on this computer; leave it out, "
            "which takes those of api_endpoint"
            if local
            else "on this computer there are the tunnels of a local Compute Engine only; set "
            "api_endpoint to its address, or leave this out to use Google's",
        )


def _check_counts(values: Mapping[str, Any], refuse: Callable[[str, str], SettingsError]) -> None:
    """Check how many workers there are, and where."""
    wanted, here = values["n_workers"], values["workers_on_scheduler"]
    if values["single_node"] and here == 0:
        raise refuse(
            "workers_on_scheduler",
            "with single_node there would be no worker; leave it out to have as many as processes",
        )
    if wanted < here:
        fewer = f", or set workers_on_scheduler={wanted}" if wanted else ""
        raise refuse(
            "n_workers",
            f"{wanted} is less than the {here} workers on the scheduler's machine, which are there "
            f"for as long as it is; leave n_workers out{fewer}",
        )
    if values["single_node"] and wanted > here:
        raise refuse(
            "n_workers",
            f"{wanted} is more than the {here} workers that single_node has; leave n_workers out, "
            f"set workers_on_scheduler={wanted} for all of them on that machine, or set "
            f"single_node=False and workers_on_scheduler={here} for the rest on other machines",
        )
    most = values["max_workers"]
    if most is not None and here > most:
        raise refuse("max_workers", f"{most} is less than the {here} workers on the scheduler")
    if most is not None and wanted > most:
        raise refuse("n_workers", f"{wanted} is more than max_workers, which is {most}")
    if most is not None and most < values["processes"] and not here:
        raise refuse(
            "max_workers", f"{most} is less than the {values['processes']} processes of one machine"
        )


def _check_ports(values: Mapping[str, Any], refuse: Callable[[str, str], SettingsError]) -> None:
    """Check that nothing wants the port of something else on its machine."""
    several = max(values["processes"], values["workers_on_scheduler"])
    setting = "processes" if several == values["processes"] else "workers_on_scheduler"
    taken = {values[key]: key for key in ("dashboard_port", "scheduler_port")}
    for key in ("port", "worker_port"):
        chosen = values["worker_options"].get(key)
        if not _is_one_port(chosen):
            continue
        if several > 1:
            raise refuse(
                "worker_options",
                f"{key!r} is one port, but a machine has {several} workers (see {setting}); "
                "give a range such as '9000:9100', or leave it out",
            )
        if values["workers_on_scheduler"] and int(chosen) in taken:
            raise refuse(
                "worker_options",
                f"{key!r} is {chosen}, which is the {taken[int(chosen)]} of the same machine (see "
                "workers_on_scheduler); choose another, or leave it out",
            )
    if values["scheduler_port"] == values["dashboard_port"]:
        raise refuse(
            "dashboard_port", f"{values['dashboard_port']} is the scheduler's port; choose another"
        )


#: Settings that mean something to a container only.
_OF_CONTAINERS = ("container_image", "docker_options", "shm_size")


def _check_runtime(
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    refuse: Callable[[str, str], SettingsError],
) -> None:
    """Check that without containers nothing is said about them."""
    if values["runtime"] != "vm":
        return
    for key in _OF_CONTAINERS:
        if sources.get(key, "default") != "default":
            raise refuse(
                key,
                "with runtime 'vm' there is no container; leave this out, and name packages in "
                "environment, or set runtime='container'",
            )
    if values["source_image"].startswith("projects/cos-cloud/"):
        raise refuse(
            "source_image",
            "Container-Optimized OS runs nothing but containers; with runtime 'vm' choose an image "
            "such as 'debian-cloud/debian-12', or leave this out",
        )


#: Words by which the official image installs more packages when it starts.
_EXTRA = ("EXTRA_PIP_PACKAGES", "EXTRA_CONDA_PACKAGES", "EXTRA_APT_PACKAGES")


def _check_jupyter(values: Mapping[str, Any], refuse: Callable[[str, str], SettingsError]) -> None:
    """Check that a Jupyter server can be there, and is ours."""
    if "jupyter" in values["scheduler_options"]:
        raise refuse(
            "scheduler_options",
            "Dask's own 'jupyter' runs code for everybody who reaches the dashboard's port; leave "
            "it out and set jupyter to true, for a server that asks for a token",
        )
    if not values["jupyter"]:
        return
    if values["environment"] is None and not any(each in values["env_vars"] for each in _EXTRA):
        image = values["container_image"]
        if values["runtime"] == "vm":
            raise refuse("jupyter", f"with runtime 'vm' there is only Dask; {_JUPYTERLAB}")
        if re.match(rf"{re.escape(OFFICIAL_IMAGE)}(?=$|[:@])", image):
            raise refuse("jupyter", f"the image {image} has no JupyterLab; {_JUPYTERLAB}")


_JUPYTERLAB = (
    "add it with environment=['jupyterlab'], or with an image of your own (container_image)"
)


def _is_one_port(value: Any) -> bool:
    # Zero lets the system choose, and "9000:9100" each worker.
    return str(value).isdecimal() and int(value) > 0
