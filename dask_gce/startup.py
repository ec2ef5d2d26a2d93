"""What an instance is told at boot: the startup script and the metadata items it reads.

Owns the names of the metadata items and the Dask specification of each role. The script and the
program it starts are in ``dask_gce/guest/``, the same text for every instance. Whatever differs,
and whatever a user typed, is a metadata item of its own and is only ever read as data.

The mechanism is the ``startup-script`` key, which Google's guest agent runs at each boot on
Container-Optimized OS and the other public images alike:
https://docs.cloud.google.com/compute/docs/instances/startup-scripts
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from dask_gce.boot.docker_options import render_docker_options
from dask_gce.errors import SettingsError

if TYPE_CHECKING:
    from dask_gce.boot.environment import Environment

Role = Literal["scheduler", "worker"]

#: https://docs.cloud.google.com/compute/docs/metadata/setting-custom-metadata#limitations
VALUE_LIMIT = 262_144
TOTAL_LIMIT = 524_288

#: Where Compute Engine's API is, unless a setting says otherwise.
PUBLIC_ENDPOINT = "https://compute.googleapis.com"

#: The guest attribute under which a machine says how far its boot has come.
PHASE_NAMESPACE = "dask-gce"
PHASE_KEY = "phase"

#: The metadata items that hold private keys, where machines get them that way. Once a machine has
#: read them it needs them no more: what it has read outlives its reboots.
SECRET_ITEMS = frozenset({"dask-gce-tls", "dask-gce-local-tls"})

#: Where Secret Manager's API is, unless a setting says otherwise.
PUBLIC_SECRETS_ENDPOINT = "https://secretmanager.googleapis.com"

#: Seconds a machine whose Dask failed stays, so that its console can still be read.
LINGER = 120

#: Seconds before the end by one of its limits at which a cluster's machines say that it is close.
WARNINGS = (600, 300, 60)


@dataclass(frozen=True)
class Tls:
    """The certificates of one role as PEM text.

    Parameters
    ----------
    ca : str
        The cluster's CA certificate.
    certificate : str
        The role's leaf certificate.
    key : str
        Its private key.
    """

    ca: str = field(repr=False)
    certificate: str = field(repr=False)
    key: str = field(repr=False)


@dataclass(frozen=True)
class LocalWorkers:
    """Dask workers on the scheduler's machine.

    Parameters
    ----------
    spec : mapping
        The Dask specification of each: ``cls`` and ``opts``. Where the scheduler is they learn on
        the machine.
    processes : int
        How many there are.
    tls : Tls or None
        The workers' certificates; None for plain TCP. The CA is the scheduler's.
    """

    spec: Mapping[str, Any] = field(repr=False)
    processes: int
    tls: Tls | None = None


@dataclass(frozen=True)
class Limits:
    """After which time a cluster's machines end by themselves, with nobody there to end them.

    Times are in seconds, and infinity is no limit.

    Parameters
    ----------
    idle_timeout : float
        How long the scheduler may have nothing to do.
    no_client_timeout : float
        How long no client may be connected.
    max_lifetime : float
        How long the cluster may exist.
    expires : int or None
        When that is over, in seconds since 1970 UTC by the client's clock; None for never.
    death_timeout : float
        How long a worker's machine may be without its scheduler.
    boot_timeout : float
        How long a machine may take until Dask runs on it.
    leavings : str
        What the scheduler's machine deletes beside itself, as `leavings` renders it.
    """

    idle_timeout: float = math.inf
    no_client_timeout: float = math.inf
    max_lifetime: float = math.inf
    expires: int | None = None
    death_timeout: float = math.inf
    boot_timeout: float = math.inf
    leavings: str = ""


@dataclass(frozen=True)
class Payload:
    """What one role runs.

    Parameters
    ----------
    role : {"scheduler", "worker"}
        The role.
    project : str
        The project ID, for the machine to delete itself.
    container_image : str or None
        The container image's reference; None to run Dask without a container.
    spec : mapping
        The Dask specification: ``cls``, ``opts`` and, for a worker, ``args``.
    ports : tuple of int
        Ports that must be reachable on the machine itself.
    env_vars : mapping
        Environment of the Dask process.
    tls : Tls or None
        Certificates; None for plain TCP.
    scheduler : mapping or None
        For workers: ``host``, ``port`` and ``timeout`` (seconds) of the scheduler to wait for.
    processes : int
        How many Dask processes of that specification the machine runs.
    endpoint : str
        Root URL of the Compute API.
    linger : float
        Seconds to stay after a failure.
    environment : Environment or None
        What is installed before Dask starts; None for what the container image has.
    configuration : mapping
        Dask's configuration there, as Dask reads it from a file.
    local : LocalWorkers or None
        Workers beside a scheduler.
    gpus : int
        How many GPUs the machine has.
    versions : str or None
        What the machine compares its versions with, as `boot.versions.expectation` writes it; None
        to compare nothing.
    docker_options : tuple of str
        Words added to ``docker run``.
    memory : int or None
        What the container may use of the machine's memory, in bytes; None for all of it.
    shm_size : int or None
        The container's shared memory in bytes; None for half of its memory.
    secrets : mapping of str to str
        By role, the name of the version of a secret that holds the certificates of that role,
        ``"projects/P/secrets/S/versions/1"``; empty to have them in the metadata.
    secrets_endpoint : str
        Root URL of Secret Manager's API.
    limits : Limits or None
        After which time the machine ends by itself; None for as long as Dask runs.
    jupyter : bool
        Whether a Jupyter server runs beside a scheduler.
    """

    role: Role
    project: str
    container_image: str | None
    spec: Mapping[str, Any] = field(repr=False)
    ports: tuple[int, ...] = ()
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls | None = None
    scheduler: Mapping[str, Any] | None = None
    processes: int = 1
    endpoint: str = PUBLIC_ENDPOINT
    linger: float = LINGER
    environment: Environment | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict, repr=False)
    local: LocalWorkers | None = None
    gpus: int = 0
    versions: str | None = None
    docker_options: tuple[str, ...] = field(default=(), repr=False)
    memory: int | None = None
    shm_size: int | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    secrets_endpoint: str = PUBLIC_SECRETS_ENDPOINT
    limits: Limits | None = None
    jupyter: bool = False


def scheduler_spec(
    *, protocol: str, port: int, dashboard_port: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the Dask specification of a scheduler.

    Parameters
    ----------
    protocol : str
        ``"tls"`` or ``"tcp"``.
    port : int
        The port clients and workers connect to.
    dashboard_port : int
        The dashboard's port.
    options : mapping
        Keyword arguments of ``distributed.Scheduler`` that the user chose.

    Returns
    -------
    dict
        ``cls`` and ``opts`` as ``dask spec`` reads them.

    Examples
    --------
    >>> scheduler_spec(protocol="tls", port=8786, dashboard_port=8787, options={})["opts"]["port"]
    8786
    """
    ours = {"protocol": protocol, "port": port, "dashboard_address": f":{dashboard_port}"}
    return {"cls": "distributed.Scheduler", "opts": {**options, **ours}}


def worker_spec(
    *,
    worker_class: str,
    scheduler_address: str | None,
    nthreads: int,
    memory_limit: int | str | float | None,
    options: Mapping[str, Any],
    death_timeout: float = math.inf,
) -> dict[str, Any]:
    """Return the Dask specification of a worker.

    Parameters
    ----------
    worker_class : str
        Import path of the class, for example ``"distributed.Nanny"``.
    scheduler_address : str or None
        Address of the scheduler as the worker sees it; None beside the scheduler, where it is known
        on the machine only.
    nthreads : int
        Threads of the worker.
    memory_limit : int, str, float or None
        Memory of the worker as Dask takes it.
    options : mapping
        Keyword arguments of the class that the user chose; they win over all others.
    death_timeout : float
        Seconds in which it must have found its scheduler; infinity for as long as it takes.

    Returns
    -------
    dict
        ``cls``, ``args`` (unless beside the scheduler) and ``opts``.

    Examples
    --------
    >>> worker_spec(worker_class="distributed.Nanny", scheduler_address="tls://s:8786",
    ...             nthreads=4, memory_limit="14 GB", options={})["args"]
    ['tls://s:8786']
    """
    ours = {"nthreads": nthreads, "memory_limit": memory_limit, "dashboard_address": ":0"}
    if death_timeout < math.inf:
        ours["death_timeout"] = death_timeout
    args = {} if scheduler_address is None else {"args": [scheduler_address]}
    return {"cls": worker_class, **args, "opts": {**ours, **options}}


def build_metadata(payload: Payload) -> dict[str, str]:
    """Return the metadata items of an instance.

    Parameters
    ----------
    payload : Payload
        What it runs.

    Returns
    -------
    dict
        Items for the instance's ``metadata``, the startup script among them.

    Raises
    ------
    SettingsError
        If the items exceed Compute Engine's limits.

    Examples
    --------
    >>> payload = Payload("scheduler", "p", "ghcr.io/dask/dask", {"cls": "distributed.Scheduler",
    ...                   "opts": {}}, env_vars={"GREETING": "it's $HOME"})
    >>> build_metadata(payload)["dask-gce-env"]
    '{"GREETING": "it\\'s $HOME"}'
    """
    runtime = "vm" if payload.container_image is None else "container"
    items = {
        "startup-script": startup_script(runtime),
        "enable-guest-attributes": "TRUE",
        # Workers know the scheduler by its zonal name, which old projects do not give by default:
        # https://docs.cloud.google.com/compute/docs/networking/zonal-dns
        "VmDnsSetting": "ZonalPreferred",
        "dask-gce-role": payload.role,
        "dask-gce-project": payload.project,
        "dask-gce-api": payload.endpoint,
        "dask-gce-ports": _ports(payload),
        "dask-gce-spec": json.dumps(payload.spec),
        "dask-gce-processes": str(payload.processes),
        "dask-gce-env": json.dumps(dict(payload.env_vars)),
        "dask-gce-linger": f"{payload.linger:g}",
    }
    if payload.container_image is not None:
        items.update(_container(payload, payload.container_image))
    if payload.configuration:
        items["dask-gce-config"] = json.dumps(dict(payload.configuration))
    if payload.environment is not None:
        items.update(payload.environment.items())
    if payload.scheduler is not None:
        items["dask-gce-scheduler"] = json.dumps(dict(payload.scheduler))
    if payload.local is not None:
        items["dask-gce-local-spec"] = json.dumps(payload.local.spec)
        items["dask-gce-local-processes"] = str(payload.local.processes)
    items.update(_secrets(payload))
    if payload.gpus:
        items["dask-gce-gpus"] = str(payload.gpus)
        # Deep Learning images then install NVIDIA's driver at their first boot:
        # https://docs.cloud.google.com/deep-learning-vm/docs/create-vm-instance-gpu
        items["install-nvidia-driver"] = "True"
    if payload.versions is not None:
        items["dask-gce-versions"] = payload.versions
    if payload.limits is not None:
        items.update(_limits(payload.role, payload.limits))
    items.update(_programs(payload))
    _check_size(items)
    return items


def bundle(tls: Tls) -> str:
    """Return the certificates of a role as a machine reads them.

    Parameters
    ----------
    tls : Tls
        The certificates.

    Returns
    -------
    str
        JSON in one line, which is a secret.

    Examples
    --------
    >>> bundle(Tls("authority", "certificate", "key"))
    '{"ca": "authority", "cert": "certificate", "key": "key"}'
    """
    return json.dumps({"ca": tls.ca, "cert": tls.certificate, "key": tls.key})


def _secrets(payload: Payload) -> dict[str, str]:
    """Return the certificates, or where they are; and in an item that stays, that there are some.

    A certificate is as secret as its key here: a user's own file may hold both.
    """
    certificates: dict[str, tuple[str, Tls]] = {}
    if payload.tls is not None:
        certificates["tls"] = payload.role, payload.tls
    if payload.local is not None and payload.local.tls is not None:
        certificates["local-tls"] = "worker", payload.local.tls
    if not certificates:
        return {}
    if not payload.secrets:
        items = {f"dask-gce-{name}": bundle(tls) for name, (_, tls) in certificates.items()}
        return {**items, "dask-gce-secrets": " ".join(certificates)}
    places = [f"{name}={payload.secrets[role]}" for name, (role, _) in certificates.items()]
    return {
        "dask-gce-secrets": " ".join(places),
        "dask-gce-secrets-api": payload.secrets_endpoint,
    }


def _limits(role: Role, limits: Limits) -> dict[str, str]:
    """Return what the machine of a role reads of the limits."""
    times = {
        "scheduler": ("idle_timeout", "no_client_timeout", "max_lifetime"),
        "worker": ("death_timeout",),
    }[role]
    said: dict[str, Any] = {name: _or_null(getattr(limits, name)) for name in times}
    if role == "scheduler":
        said |= {"expires": limits.expires, "warnings": WARNINGS}
    items = {"dask-gce-limits": json.dumps(said)}
    if role == "scheduler" and limits.leavings:
        items["dask-gce-leavings"] = limits.leavings
    if limits.boot_timeout < math.inf:
        # Also for bash, which counts in whole numbers.
        items["dask-gce-boot-timeout"] = str(math.ceil(limits.boot_timeout))
    return items


def _or_null(seconds: float) -> float | None:
    """JSON has no word for infinity."""
    return None if seconds == math.inf else seconds


def _container(payload: Payload, image: str) -> dict[str, str]:
    """Return what the runtime container reads."""
    items = {
        "dask-gce-image": image,
        "dask-gce-docker-options": render_docker_options(payload.docker_options),
    }
    if payload.memory is not None:
        items["dask-gce-memory"] = str(payload.memory)
    if payload.shm_size is not None:
        items["dask-gce-shm-size"] = str(payload.shm_size)
    return items


def _programs(payload: Payload) -> dict[str, str]:
    """Return the programs that the startup script writes beside each other, and their list."""
    programs = ["start.py", "supervision.py"]
    environment = payload.environment
    wheels = environment is not None and bool(environment.wheels)
    if environment is not None:
        programs.append("install.py")
    if wheels:
        programs.append("wheelhouse.py")
    if payload.local is not None:
        programs.append("keep_local.py")
    if payload.role == "worker":
        programs.append("preemption.py")
        if payload.limits is not None and payload.limits.death_timeout < math.inf:
            programs.append("lifeline.py")
    elif payload.limits is not None:
        programs += ["guard.py", "departures.py"]
    if payload.jupyter:
        programs.append("notebook_server.py")
    if payload.role == "scheduler" and (
        wheels or payload.local is not None or payload.limits is not None or payload.jupyter
    ):
        programs.append("config_preloads.py")
    if payload.versions is not None:
        programs.append("versions.py")
    # A key of the metadata holds letters, digits, hyphens and underscores only.
    keys = {program.removesuffix(".py").replace("_", "-"): program for program in programs}
    texts = {f"dask-gce-program-{key}": guest_file(name) for key, name in keys.items()}
    return {"dask-gce-programs": " ".join(keys), **texts}


def _ports(payload: Payload) -> str:
    """Return the ports to open on the machine itself, in iptables' spelling."""
    if payload.local is None:
        return ",".join(str(port) for port in payload.ports)
    # The system chooses the workers' ports.
    low = [str(port) for port in payload.ports if port < _FIRST_FREE_PORT]
    return ",".join([*low, f"{_FIRST_FREE_PORT}:65535"])


_FIRST_FREE_PORT = 1024
_SETTING_BEHIND = {
    "dask-gce-env": "env_vars",
    "dask-gce-docker-options": "docker_options",
    "dask-gce-local-spec": "worker_options",
    "dask-gce-requirements": "environment",
    "dask-gce-wheels": "environment",
}


def _check_size(items: Mapping[str, str]) -> None:
    sizes = {key: len(value.encode()) for key, value in items.items()}
    largest = max(sizes, key=lambda key: sizes[key])
    if sizes[largest] > VALUE_LIMIT or sum(sizes.values()) > TOTAL_LIMIT:
        options = f"{items['dask-gce-role']}_options"
        setting = _SETTING_BEHIND.get(largest, options)
        raise SettingsError(
            f"{setting} is too large: as metadata item {largest!r} it takes {sizes[largest]} bytes "
            f"of {sum(sizes.values())} in all, and Compute Engine allows {VALUE_LIMIT} bytes a "
            f"value and {TOTAL_LIMIT} bytes an instance. Put large data into a file in a bucket or "
            "into the container image and pass its name.",
            key=setting,
        )


def startup_script(runtime: str, *, seals: bool = False) -> str:
    """Return the text that Google's guest agent runs at each boot.

    Parameters
    ----------
    runtime : {"container", "vm"}
        What Dask runs in.
    seals : bool
        Whether it stops before Dask, for the machine to become a disk image.

    Returns
    -------
    str
        The text, the same for every instance.
    """
    parts = ("startup", "ending", "begin", *(["seal"] if seals else ()), runtime)
    return "".join(guest_file(f"{part}.sh") for part in parts)


@lru_cache
def guest_file(name: str) -> str:
    """Return the text of a program that runs on the instance.

    Parameters
    ----------
    name : str
        Name of a file in ``dask_gce/guest/``, for example ``"start.py"``.

    Returns
    -------
    str
        Its text.
    """
    return files("dask_gce").joinpath("guest", name).read_text(encoding="utf-8")
