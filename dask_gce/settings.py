"""The settings of one cluster: read once, checked at once, then frozen.

The only reader of the Dask configuration and of the environment. A value comes from a keyword
argument, else from the ``gce`` part of the Dask configuration (YAML files, ``DASK_GCE__...``
variables, `dask.config.set`), else from ``gce.yaml`` in this package. What a single value may be is
the matter of `schema`; what contradicts what is decided here.

Importing this module registers the defaults with Dask, as `distributed` does with its own; nothing
else here ever writes to the Dask configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dask.config
import yaml

from dask_gce import images, schema
from dask_gce.errors import SettingsError

if TYPE_CHECKING:
    from distributed import Security

__all__ = ["DEFAULTS", "LOCAL_PROJECT", "Settings", "environment"]

LOCAL_PROJECT: Final = "local-project"

_yaml: Final[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("gce.yaml").read_text(encoding="utf-8")
)
#: Every key in the spelling of the keyword argument, with its default.
DEFAULTS: Final[Mapping[str, Any]] = {
    key.replace("-", "_"): value for key, value in _yaml["gce"].items()
}
dask.config.update_defaults(_yaml)


# What may hold a password shows its keys only.
_KEYS_ONLY: Final = frozenset(
    {"env_vars", "instance_overrides", "scheduler_options", "worker_options"}
)
# What people type who come from dask-cloudprovider, gcloud or the Compute API.
_OTHER_WORDS: Final = {
    "projectid": "project",
    "project_id": "project",
    "zones": "zone",
    "region": "zone",
    "docker_image": "container_image",
    "image": "container_image",
    "boot_image": "source_image",
    "filesystem_size": "boot_disk_size",
    "disk_size": "boot_disk_size",
    "disk_type": "boot_disk_type",
    "public_ingress": "external_ip",
    "instance_labels": "labels",
    "instance_scopes": "scopes",
    "tags": "network_tags",
    "environment": "env_vars",
    "env": "env_vars",
    "worker_module": "worker_class",
    "worker_cores": "nthreads",
    "worker_memory": "memory_limit",
    "vm_type": "machine_type",
    "instance_type": "machine_type",
    "timeout": "start_timeout",
    "num_workers": "n_workers",
}


def environment(*variables: str) -> dict[str, str]:
    """Return those of the named environment variables that are set and not empty.

    Parameters
    ----------
    *variables : str
        Names of environment variables.

    Returns
    -------
    dict of str to str
        Names and values.
    """
    return {name: os.environ[name] for name in variables if os.environ.get(name)}


@dataclass(frozen=True, repr=False)
class Settings:
    """All settings of one cluster, checked.

    Made by `Settings.load`. The fields are the keyword arguments of `GCECluster` and, with hyphens,
    the keys under ``gce`` in the Dask configuration; ``gce.yaml`` has a comment for each.

    Parameters
    ----------
    project : str or None
        The project ID; None if neither settings nor ``GOOGLE_CLOUD_PROJECT`` tell it.
    zone : tuple of str
        Zones to try, in this order.
    allow_cross_zone : bool
        Whether workers may be in another zone than the scheduler.
    name : str or None
        The cluster's name; None to draw one.
    api_endpoint : str or None
        Address of another Compute API without a path; None for Google's.
    api_token_file : str or None
        File with the bearer token of a local Compute Engine.
    api_rate : float
        Requests a second to Compute Engine, in each region and quota group.
    api_connections : int
        How many requests at a time.
    n_workers : int
        Workers to start with.
    max_workers : int or None
        The most workers there may be; None for no such limit.
    machine_type : tuple of str
        Machine types of scheduler and workers to try, in this order.
    scheduler_machine_type : tuple of str
        Machine types of the scheduler to try.
    worker_machine_type : tuple of str
        Machine types of the workers to try.
    processes : int
        Dask workers on each machine.
    nthreads : int or None
        Threads of a worker; None for its share of the vCPUs.
    memory_limit : str or int or float or None
        Memory limit of a worker in Dask's spelling; None for its share of what the system leaves.
    source_image : str
        The boot image as a partial URL.
    boot_disk_size : int
        Size of the boot disk in GB of 1024 cubed bytes.
    boot_disk_type : str or None
        Type of the boot disk; None to let Google choose.
    container_image : str
        The container image.
    env_vars : mapping of str to str
        Environment variables of scheduler and workers.
    worker_class : str
        Import path of the workers' class.
    worker_options : mapping
        Keyword arguments of the worker class, JSON data.
    scheduler_options : mapping
        Keyword arguments of the scheduler, JSON data.
    scheduler_port : int
        Port of the scheduler.
    dashboard_port : int
        Port of the dashboard.
    network : str or None
        The network; None when the subnetwork tells it.
    subnetwork : str or None
        The subnetwork.
    external_ip : bool
        Whether instances get an external address.
    network_tags : tuple of str
        Network tags of the instances.
    labels : mapping of str to str
        The user's labels.
    service_account : str or None
        Account the instances act as; None for none.
    scopes : tuple of str
        Access scopes of that account as URLs.
    security : bool or distributed.Security
        Whether to make certificates, or the user's own.
    start_timeout : float
        Seconds the scheduler may take to answer.
    worker_start_timeout : float
        Seconds a worker may take to register.
    worker_start_failure_limit : int
        Failed starts of workers in a row after which no more are tried.
    instance_overrides : mapping
        Merged into the request that makes an instance, JSON data.
    sources : mapping of str to str
        Where each value came from, such as ``"keyword argument"`` or ``"default"``.
    """

    project: str | None
    zone: tuple[str, ...]
    allow_cross_zone: bool
    name: str | None
    api_endpoint: str | None
    api_token_file: str | None
    api_rate: float
    api_connections: int
    n_workers: int
    max_workers: int | None
    machine_type: tuple[str, ...]
    scheduler_machine_type: tuple[str, ...]
    worker_machine_type: tuple[str, ...]
    processes: int
    nthreads: int | None
    memory_limit: str | int | float | None
    source_image: str
    boot_disk_size: int
    boot_disk_type: str | None
    container_image: str
    env_vars: Mapping[str, str]
    worker_class: str
    worker_options: Mapping[str, Any]
    scheduler_options: Mapping[str, Any]
    scheduler_port: int
    dashboard_port: int
    network: str | None
    subnetwork: str | None
    external_ip: bool
    network_tags: tuple[str, ...]
    labels: Mapping[str, str]
    service_account: str | None
    scopes: tuple[str, ...]
    security: bool | Security
    start_timeout: float
    worker_start_timeout: float
    worker_start_failure_limit: int
    instance_overrides: Mapping[str, Any]
    sources: Mapping[str, str]

    @classmethod
    def load(cls, **keywords: Any) -> Settings:
        """Collect all settings and check them.

        Parameters
        ----------
        **keywords
            Settings given in Python; None means not given.

        Returns
        -------
        Settings
            The settings.

        Raises
        ------
        SettingsError
            If a setting is unknown, impossible or contradicts another.

        Examples
        --------
        >>> settings = Settings.load(zone="us-central1-a", boot_disk_size="50GB")
        >>> settings.boot_disk_size, settings.sources["boot_disk_size"]
        (50, 'keyword argument')
        """
        for key in keywords:
            if key not in DEFAULTS:
                raise _unknown(key, "keyword argument")
        configured = _configured()
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for key, default in DEFAULTS.items():
            value, source = _choose(key, keywords.get(key), configured.get(key), default)
            values[key] = None if value is None else _check(key, value, source)
            sources[key] = source
        _complete(values, sources)
        _check_together(values, sources)
        return cls(**values, sources=sources)

    @property
    def is_local(self) -> bool:
        """Whether the Compute API asked is on this machine."""
        return self.api_endpoint is not None and schema.is_loopback(self.api_endpoint)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self._shown())
        return f"Settings({shown})"

    def _shown(self) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "sources":
                continue
            if field.name in _KEYS_ONLY:
                yield field.name, "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
            elif field.name == "security" and not isinstance(value, bool):
                yield field.name, "<Security>"
            else:
                yield field.name, repr(value)


def _configured() -> dict[str, Any]:
    """Return the ``gce`` part of the Dask configuration in the spelling of keyword arguments."""
    section = dask.config.get("gce", default=None)
    if not isinstance(section, Mapping):
        raise SettingsError(
            f"'gce' in the Dask configuration is {section!r}; it must be a mapping of settings.",
            key="gce",
        )
    configured = {}
    for name, value in section.items():
        key = str(name).replace("-", "_")
        if key not in DEFAULTS:
            raise _unknown(key, _config_source(key, value))
        configured[key] = value
    return configured


def _choose(key: str, given: Any, configured: Any, default: Any) -> tuple[Any, str]:
    if given is not None:
        return given, "keyword argument"
    if configured is not None and configured != default:
        return configured, _config_source(key, configured)
    return default, "default"


def _config_source(key: str, value: Any) -> str:
    """Tell which variable or file a value of the Dask configuration came from."""
    for variable, typed in os.environ.items():
        # As dask.config.collect_env reads them: DASK_ in capitals, the rest in any case.
        section, *path = variable.removeprefix("DASK_").lower().split("__")
        if (
            variable.startswith("DASK_")
            and section == "gce"
            and path
            and path[0].replace("-", "_") == key
            and (path[1:] or dask.config.interpret_value(typed) == value)
        ):
            return f"environment variable {variable}"
    return "dask config"


def _check(key: str, value: Any, source: str) -> Any:
    try:
        return schema.CHECKS[key](key, value)
    except SettingsError as error:
        # The same error told better, so only its cause is worth showing.
        raise SettingsError(
            f"{error.message} It came from: {_place(key, source)}.", key=key
        ) from error.__cause__


def _place(key: str, source: str) -> str:
    """Add the files in which a setting stands; read only when there is an error to explain."""
    if source != "dask config":
        return source
    spellings = (f"gce.{key.replace('_', '-')}", f"gce.{key}")
    files = {str(path) for name in spellings for path in dask.config.paths_containing_key(name)}
    return f"dask config ({', '.join(sorted(files))})" if files else source


def _unknown(key: str, source: str) -> SettingsError:
    meant = _OTHER_WORDS.get(key) or next(
        iter(difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0.6)), None
    )
    remedy = f"did you mean {meant!r}?" if meant else f"there are: {', '.join(sorted(DEFAULTS))}."
    return SettingsError(f"There is no setting {key!r} ({_place(key, source)}); {remedy}", key=key)


def _complete(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Fill in what follows from other settings or from the surroundings."""
    for key in ("scheduler_machine_type", "worker_machine_type"):
        if values[key] is None:
            values[key] = values["machine_type"]
            sources[key] = f"machine_type ({sources['machine_type']})"
    if values["subnetwork"] is not None and sources["network"] == "default":
        # The subnetwork tells its network; "default" beside it would be a contradiction.
        values["network"], sources["network"] = None, "subnetwork"
    if values["container_image"] is None:
        major, minor, _ = platform.python_version_tuple()
        version = importlib.metadata.version("dask")
        image = images.official_image(version, (int(major), int(minor)))
        values["container_image"] = image
        sources["container_image"] = (
            f"no official image for dask {version}, which is no release"
            if image.endswith(":latest")
            else "official image for this Dask and Python"
        )
    if values["project"] is None:
        _find_project(values, sources)


def _find_project(values: dict[str, Any], sources: dict[str, str]) -> None:
    variable = "GOOGLE_CLOUD_PROJECT"
    found = environment(variable)
    if found:
        sources["project"] = f"environment variable {variable}"
        values["project"] = _check("project", found[variable], sources["project"])
    elif values["api_endpoint"] is not None and schema.is_loopback(values["api_endpoint"]):
        values["project"], sources["project"] = LOCAL_PROJECT, "local Compute Engine"


def _check_together(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    def refuse(key: str, reason: str) -> SettingsError:
        return SettingsError(f"{key} ({_place(key, sources[key])}): {reason}.", key=key)

    for key in ("nthreads", "memory_limit"):
        if values[key] is not None and key in values["worker_options"]:
            raise refuse(key, f"worker_options has {key!r} too; give it once")
    most = values["max_workers"]
    if most is not None and values["n_workers"] > most:
        raise refuse(
            "n_workers", f"{values['n_workers']} is more than max_workers, which is {most}"
        )
    for key in ("port", "worker_port"):
        if values["processes"] > 1 and _is_one_port(values["worker_options"].get(key)):
            raise refuse(
                "worker_options",
                f"{key!r} is one port, but each machine has {values['processes']} workers "
                "(see processes); give a range such as '9000:9100', or leave it out",
            )
    if values["scheduler_port"] == values["dashboard_port"]:
        raise refuse(
            "dashboard_port", f"{values['dashboard_port']} is the scheduler's port; choose another"
        )
    if values["service_account"] is None and sources["scopes"] != "default" and values["scopes"]:
        raise refuse(
            "scopes",
            "without a service account scopes mean nothing; "
            "set service_account too, for example to 'default'",
        )
    if values["api_token_file"] is not None and not (
        values["api_endpoint"] and schema.is_loopback(values["api_endpoint"])
    ):
        raise refuse(
            "api_token_file",
            "a token file is for a local Compute Engine; set api_endpoint to its address, "
            "or leave this out to use Google's credentials",
        )


def _is_one_port(value: Any) -> bool:
    # Zero lets the system choose, and "9000:9100" each worker.
    return str(value).isdecimal() and int(value) > 0
