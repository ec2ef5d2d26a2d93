"""The settings of one cluster: read once, checked at once, then frozen.

Owns the list of settings. Which of several sources counts is decided in `sources`; what a single
value may be is the matter of `schema`, what follows from one for another that of `consequences`,
and what contradicts what that of `contradictions`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dask_gce import schema
from dask_gce.addresses import is_loopback
from dask_gce.boot.docker_options import option_names
from dask_gce.consequences import complete
from dask_gce.contradictions import check_far_end, check_together
from dask_gce.errors import SettingsError
from dask_gce.sources import DEFAULTS, collect, environment, place, refusal

if TYPE_CHECKING:
    from distributed import Security

__all__ = ["KEYS_ONLY", "LOCAL_PROJECT", "OF_THE_WAY", "OF_WHO_JOINS", "Settings"]

LOCAL_PROJECT: Final = "local-project"

#: What may hold a password shows its keys only.
KEYS_ONLY: Final = frozenset(
    {"env_vars", "instance_overrides", "scheduler_options", "worker_options"}
)
#: What is of whoever reaches a cluster, and not of the cluster.
OF_THE_WAY: Final = (
    "connect",
    "firewall",
    "allow_ingress_from",
    "client_address_services",
    "iap_endpoint",
)
#: Settings that whoever joins a cluster chooses, and not the cluster that is there.
OF_WHO_JOINS: Final = frozenset({"api_endpoint", "api_token_file", "progress", *OF_THE_WAY})
# Where null in a connection file means no limit. JSON has no word for infinity.
_ENDLESS: Final = frozenset({"api_rate", "max_lifetime"})


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
        Workers to start with, those on the scheduler's machine among them.
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
    single_node : bool
        Whether scheduler and workers share one machine.
    workers_on_scheduler : int
        Dask workers on the scheduler's machine.
    nthreads : int or None
        Threads of a worker; None for its share of the vCPUs.
    memory_limit : str or int or float or None
        Memory limit of a worker in Dask's spelling; None for its share of what the system leaves.
    spot : bool or {"fallback"}
        Whether the workers' machines are Spot.
    spot_fraction : float
        Share of the workers' machines that are Spot, from 0 to 1.
    min_on_demand : int
        Workers' machines that are on demand at least.
    preemption_notice : bool
        Whether Compute Engine is asked to say two minutes ahead that it takes a machine away.
    worker_accelerator_type : str or None
        Type of the GPUs added to each worker's machine; None for none.
    worker_accelerator_count : int
        How many are added; zero without a type.
    local_ssds : int
        Local SSDs of each worker's machine.
    min_cpu_platform : str or None
        The oldest CPU platform of the machines; None for whatever there is.
    reservation : str or None
        Reservation that the workers' machines are taken from, a name or a path.
    confidential : bool
        Whether the machines are Confidential VMs.
    secure_boot : bool
        Whether the machines boot signed software only.
    source_image : str
        The boot image as a partial URL.
    boot_disk_size : int
        Size of the boot disk in GB of 1024 cubed bytes.
    boot_disk_type : str or None
        Type of the boot disk; None to let Google choose.
    runtime : {"container", "vm"}
        Where Dask runs on a machine.
    environment : str or tuple of str or None
        ``"sync"``, the path of a requirements file or ``pylock.toml``, or requirements; None for
        what the container image has, or with the runtime ``"vm"`` the client's versions of Dask.
    container_image : str or None
        The container image; None with the runtime ``"vm"``.
    docker_options : tuple of str
        Words added to ``docker run``.
    shm_size : int or None
        Shared memory of the container in bytes; None for half of its memory.
    version_check : bool
        Whether machines compare their versions with the client's before Dask starts.
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
    jupyter : bool
        Whether a Jupyter server runs beside the scheduler.
    network : str or None
        The network; None when the subnetwork tells it.
    subnetwork : str or None
        The subnetwork.
    external_ip : bool
        Whether instances get an external address.
    network_tags : tuple of str
        Network tags of the instances.
    connect : {"auto", "internal", "external", "iap"}
        Which way the client reaches the scheduler.
    firewall : bool
        Whether the cluster makes the firewall rules that it needs.
    allow_ingress_from : tuple of str or None
        Ranges of addresses let in to the scheduler; None for this computer's own address.
    client_address_services : tuple of str
        Services that tell this computer's own address, in the order in which they are asked.
    iap_endpoint : str or None
        Address of the far end of tunnels; None for Google's or the local Compute Engine's own.
    labels : mapping of str to str
        The user's labels.
    service_account : str or None
        Account the instances act as; None for none.
    scopes : tuple of str
        Access scopes of that account as URLs.
    security : bool or distributed.Security
        Whether to make certificates, or the user's own.
    secrets : {"metadata", "secret-manager"}
        How machines get their private keys.
    idle_timeout : float
        Seconds that the scheduler may have nothing to do; infinity for no such limit.
    no_client_timeout : float or None
        Seconds that the cluster may be without a client; None for 600 or, if it is to outlive its
        client, for no such limit, as infinity is.
    max_lifetime : float
        Seconds until Compute Engine deletes the machines; infinity for no such limit.
    death_timeout : float
        Seconds that a worker may be without its scheduler; infinity for no such limit.
    sweep_on_start : bool
        Whether a new cluster sweeps, beside its start, what nobody needs any more.
    max_hourly_cost : float or None
        US dollars that all machines together may cost an hour; None for no such limit.
    live_prices : bool
        Whether prices are read from Google's price list where that is permitted.
    start_timeout : float
        Seconds the scheduler may take to answer.
    worker_start_timeout : float
        Seconds a worker may take to register.
    worker_start_failure_limit : int
        Failed starts of workers in a row after which no more are tried.
    progress : {"auto", "terminal", "notebook", "lines", "none"}
        How the user is told what the machines do.
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
    single_node: bool
    workers_on_scheduler: int
    nthreads: int | None
    memory_limit: str | int | float | None
    spot: bool | str
    spot_fraction: float
    min_on_demand: int
    preemption_notice: bool
    worker_accelerator_type: str | None
    worker_accelerator_count: int
    local_ssds: int
    min_cpu_platform: str | None
    reservation: str | None
    confidential: bool
    secure_boot: bool
    source_image: str
    boot_disk_size: int
    boot_disk_type: str | None
    runtime: str
    environment: str | tuple[str, ...] | None
    container_image: str | None
    docker_options: tuple[str, ...]
    shm_size: int | None
    version_check: bool
    env_vars: Mapping[str, str]
    worker_class: str
    worker_options: Mapping[str, Any]
    scheduler_options: Mapping[str, Any]
    scheduler_port: int
    dashboard_port: int
    jupyter: bool
    network: str | None
    subnetwork: str | None
    external_ip: bool
    network_tags: tuple[str, ...]
    connect: str
    firewall: bool
    allow_ingress_from: tuple[str, ...] | None
    client_address_services: tuple[str, ...]
    iap_endpoint: str | None
    labels: Mapping[str, str]
    service_account: str | None
    scopes: tuple[str, ...]
    security: bool | Security
    secrets: str
    idle_timeout: float
    no_client_timeout: float | None
    max_lifetime: float
    death_timeout: float
    sweep_on_start: bool
    max_hourly_cost: float | None
    live_prices: bool
    start_timeout: float
    worker_start_timeout: float
    worker_start_failure_limit: int
    progress: str
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
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for key, (value, source) in collect(keywords).items():
            values[key] = None if value is None else _check(key, value, source)
            sources[key] = source
        complete(values, sources)
        if values["project"] is None:
            _find_project(values, sources)
        check_together(values, sources)
        return cls(**values, sources=sources)

    @classmethod
    def restore(cls, values: Mapping[str, Any], source: str = "connection file") -> Settings:
        """Make the settings again that `dump` wrote, whatever the reader's own configuration says.

        Each value is checked by itself. What contradicts what is not: the cluster runs as it is,
        and a rule that a later version adds is no reason to lock anybody out of it.

        Parameters
        ----------
        values : mapping
            What `dump` returned, here or in another version: settings that are not known are
            ignored, those that are missing have their default in this version.
        source : str
            Where the values come from, for messages and for `sources`.

        Returns
        -------
        Settings
            The settings.

        Raises
        ------
        SettingsError
            If a value is none that the setting can have.

        Examples
        --------
        >>> settings = Settings.restore({"zone": ["us-central1-a"], "max_workers": None})
        >>> settings.max_workers, settings.sources["max_workers"], settings.sources["processes"]
        (None, 'connection file', 'default')
        """
        optional = {field.name for field in dataclasses.fields(cls) if "None" in str(field.type)}
        restored: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for key, default in DEFAULTS.items():
            sources[key] = source if key in values else "default"
            value = values.get(key, default)
            if value is None and key in _ENDLESS:
                value = math.inf
            elif value is None and default is not None and key not in optional:
                raise SettingsError(f"{key} ({source}) must not be null.", key=key)
            restored[key] = None if value is None else _check(key, value, sources[key])
        complete(restored, sources)
        return cls(**restored, sources=sources)

    def dump(self) -> dict[str, Any]:
        """Write all settings as JSON data, none of them left to the reader's configuration.

        Returns
        -------
        dict of str to object
            Every setting by keyword argument, for `restore`. A user's own certificates are left
            out: ``security`` only tells whether there are any.

        Examples
        --------
        >>> Settings.load(zone="us-central1-a").dump()["zone"]
        ['us-central1-a']
        """
        dumped = {key: _as_json(getattr(self, key)) for key in DEFAULTS}
        for key in ("death_timeout", "idle_timeout", "no_client_timeout"):
            if getattr(self, key) == math.inf:
                dumped[key] = "inf"
        if not isinstance(self.security, bool):
            # It brings all of distributed with it, which whoever has such an object has anyway.
            from dask_gce.trust import uses_tls

            dumped["security"] = uses_tls(self.security)
        if self.api_token_file is not None:
            # Read again from another working directory.
            dumped["api_token_file"] = str(Path(self.api_token_file).expanduser().absolute())
        return dumped

    def with_way_of(self, reader: Settings) -> Settings:
        """Let whoever joins a cluster reach it in a way of their own.

        Parameters
        ----------
        reader : Settings
            What the one who joins has chosen.

        Returns
        -------
        Settings
            These, with what the reader has chosen of `OF_THE_WAY`, and always the reader's
            ``progress``: how one is told has nothing to do with who made the cluster.

        Raises
        ------
        SettingsError
            If the reader's tunnels would end on this computer and the cluster is not there, or the
            other way round.

        Examples
        --------
        >>> settings = Settings.load(connect="internal", n_workers=2)
        >>> joined = settings.with_way_of(Settings.load(connect="iap"))
        >>> joined.connect, joined.n_workers
        ('iap', 2)
        """
        chosen = [key for key in OF_THE_WAY if reader.sources[key] != "default"]
        changes = {key: getattr(reader, key) for key in (*chosen, "progress")}
        sources = {**self.sources, **{key: reader.sources[key] for key in changes}}
        if "iap_endpoint" in chosen:

            def refuse(key: str, reason: str) -> SettingsError:
                return refusal(key, sources[key], reason)

            check_far_end(reader.iap_endpoint, refuse, local=self.is_local)
        return dataclasses.replace(self, **changes, sources=sources)

    @property
    def is_local(self) -> bool:
        """Whether the Compute API asked is on this machine."""
        return self.api_endpoint is not None and is_loopback(self.api_endpoint)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self._shown())
        return f"Settings({shown})"

    def _shown(self) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "sources":
                continue
            if field.name in KEYS_ONLY:
                yield field.name, "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
            elif field.name == "docker_options":
                yield field.name, repr(list(option_names(value)))
            elif field.name == "security" and not isinstance(value, bool):
                yield field.name, "<Security>"
            else:
                yield field.name, repr(value)


def _check(key: str, value: Any, source: str) -> Any:
    try:
        return schema.CHECKS[key](key, value)
    except SettingsError as error:
        # The same error told better, so only its cause is worth showing.
        raise SettingsError(
            f"{error.message} It came from: {place(key, source)}.", key=key
        ) from error.__cause__


def _as_json(value: Any) -> Any:
    """Copy a checked value as JSON data."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return None if value == math.inf else value


def _find_project(values: dict[str, Any], sources: dict[str, str]) -> None:
    variable = "GOOGLE_CLOUD_PROJECT"
    found = environment(variable)
    if found:
        sources["project"] = f"environment variable {variable}"
        values["project"] = _check("project", found[variable], sources["project"])
    elif values["api_endpoint"] is not None and is_loopback(values["api_endpoint"]):
        values["project"], sources["project"] = LOCAL_PROJECT, "local Compute Engine"
