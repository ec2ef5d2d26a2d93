"""What a single setting may be: checks that turn a value as typed into the value used.

`CHECKS` has one for each setting. A check takes the setting's key and the value and returns the
checked value or raises a `SettingsError`. Where values come from, and which of them contradict
one another, is the matter of `settings`; mappings are checked in `mappings`, addresses in
`addresses`. Nothing here reads the environment, a file or the Dask configuration.
"""

from __future__ import annotations

import inspect
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import PurePath
from typing import Any, Final

from dask.utils import parse_bytes, parse_timedelta

from dask_gce import addresses, images, machine_types, mappings, names
from dask_gce.boot.docker_options import check_docker_options
from dask_gce.boot.requirements import check_environment
from dask_gce.errors import SettingsError

__all__ = ["CHECKS", "REQUIRES_CLUSTER_CHECKS", "Check"]

Check = Callable[[str, Any], Any]

_MIN_DISK_GB: Final = 10
_MAX_DISK_GB: Final = 65_536
#: Of the 64 that an instance may have the cluster needs two.
_MAX_TAGS: Final = 62
# Seconds that a machine may be given: https://docs.cloud.google.com/compute/docs/instances/limit-vm-runtime
_SHORTEST_LIFE: Final = 30.0
_LONGEST_LIFE: Final = 120 * 24 * 3600.0
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[gt]?)(?:i?b)?", re.IGNORECASE)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_SCOPE_URL: Final = "https://www.googleapis.com/auth/"
# gcloud's aliases that differ from the last part of the scope (gcloud topic scopes).
_SCOPE_ALIASES: Final = {
    "compute-ro": "compute.readonly",
    "compute-rw": "compute",
    "logging-write": "logging.write",
    "monitoring-read": "monitoring.read",
    "monitoring-write": "monitoring.write",
    "storage-full": "devstorage.full_control",
    "storage-ro": "devstorage.read_only",
    "storage-rw": "devstorage.read_write",
}


def _refuse(key: str, value: object, advice: str) -> SettingsError:
    return SettingsError(f"{key} = {value!r} {advice}.", key=key)


def _text(key: str, value: Any) -> str:
    """Check for text that is not empty."""
    if not isinstance(value, str):
        raise _refuse(key, value, "must be text; put it in quotes")
    if not value.strip() or not value.isprintable():
        raise _refuse(key, value, "must be text on one line; leave the setting out to choose none")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """Check for one text or a list of texts without repetition."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple):
        raise _refuse(key, value, "must be text or a list of texts")
    checked = tuple(_text(key, item) for item in several)
    if len(set(checked)) < len(checked):
        raise _refuse(key, value, "names something twice")
    return checked


def _zones(key: str, value: Any) -> tuple[str, ...]:
    """Check for one zone or several."""
    checked = tuple(names.check_zone(zone, key=key) for zone in _texts(key, value))
    if not checked:
        raise _refuse(key, value, "must name at least one zone, such as 'us-central1-a'")
    return checked


def _machine_types(key: str, value: Any) -> tuple[str, ...]:
    """Check for one machine type or several."""
    checked = tuple(
        str(machine_types.parse_machine_type(name, key=key)) for name in _texts(key, value)
    )
    if not checked:
        raise _refuse(key, value, "must name at least one machine type, such as 'e2-standard-4'")
    return checked


def _network_tags(key: str, value: Any) -> tuple[str, ...]:
    """Check for network tags."""
    checked = tuple(names.check_name(tag, key=key) for tag in _texts(key, value))
    if len(checked) > _MAX_TAGS:
        raise _refuse(key, value, f"has {len(checked)} tags; Google leaves room for {_MAX_TAGS}")
    return checked


def _scopes(key: str, value: Any) -> tuple[str, ...]:
    """Check for access scopes and write short names out."""
    checked = []
    for scope in _texts(key, value):
        name = scope.removeprefix(_SCOPE_URL)
        if not re.fullmatch(r"[a-z][a-z._-]*", name):
            raise _refuse(key, scope, f"is no scope: write 'cloud-platform' or '{_SCOPE_URL}...'")
        checked.append(_SCOPE_URL + _SCOPE_ALIASES.get(name, name))
    return tuple(checked)


def _flag(key: str, value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise _refuse(key, value, "must be true or false")
    return value


def _switch(key: str, value: Any) -> bool:
    """Check for true or false, which a variable of the environment may write as 1 or 0."""
    return _flag(key, bool(value) if type(value) is int and value in (0, 1) else value)


def _whole_number(least: int, most: int | None = None) -> Check:
    limits = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def check(key: str, value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            number = least - 1
        if isinstance(value, bool) or number < least or (most is not None and number > most):
            raise _refuse(key, value, f"must be a whole number {limits}")
        return number

    return check


def _rate(key: str, value: Any) -> float:
    """Check for how often a second; infinity is no limit."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _refuse(key, value, "must be a number above zero")
    return float(value)


def _share(key: str, value: Any) -> float:
    """Check for a share of a whole."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _refuse(key, value, "must be a number from 0 to 1")
    return float(value)


def _dollars(key: str, value: Any) -> float:
    """Check for an amount of money."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise _refuse(
            key, value, "must be a number of US dollars above zero; leave it out for no limit"
        )
    return float(value)


def _spot(key: str, value: Any) -> bool | str:
    """Check for true, false or the word for what is in between."""
    if not isinstance(value, bool) and value != "fallback":
        raise _refuse(key, value, "must be true, false or 'fallback'")
    spot: bool | str = value
    return spot


def _gigabytes(key: str, value: Any) -> int:
    """Check for a disk size in GB, which are 1024 cubed bytes as Google counts them."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        size = float(found["number"]) * (1024 if found["unit"].lower() == "t" else 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        size = value
    else:
        raise _refuse(key, value, "must be a size in GB, such as 50 or '50GB'")
    if not _MIN_DISK_GB <= size <= _MAX_DISK_GB or size != int(size):
        raise _refuse(
            key, value, f"must be a whole number of GB from {_MIN_DISK_GB} to {_MAX_DISK_GB}"
        )
    return int(size)


def _seconds(key: str, value: Any) -> float:
    """Check for a time, in seconds or as text such as ``"10 minutes"``."""
    advice = "must be a time above zero, such as 600 or '10 minutes'"
    if isinstance(value, bool) or not isinstance(value, str | int | float | timedelta):
        raise _refuse(key, value, advice)
    try:
        # An empty text would end in an IndexError.
        typed = _text(key, value) if isinstance(value, str) else value
        duration = float(parse_timedelta(typed))
    except (ValueError, KeyError, OverflowError) as error:
        raise _refuse(key, value, advice) from error
    if not 0 < duration < math.inf:
        raise _refuse(key, value, advice)
    return duration


def _seconds_or_ever(key: str, value: Any) -> float:
    """Check for a time that may be without an end."""
    # Variables and command lines have no infinity of YAML's spelling.
    if value in (math.inf, "inf", ".inf"):
        return math.inf
    try:
        return _seconds(key, value)
    except SettingsError as error:
        advice = "must be a time above zero, such as 600 or '10 minutes', or .inf for no limit"
        raise _refuse(key, value, advice) from error.__cause__


def _lifetime(key: str, value: Any) -> float:
    """Check for a time after which Compute Engine can be told to end a machine."""
    lifetime = _seconds_or_ever(key, value)
    if lifetime == math.inf:
        return lifetime
    if not _SHORTEST_LIFE <= lifetime <= _LONGEST_LIFE:
        raise _refuse(
            key,
            value,
            "must be from 30 seconds to 120 days, within which Compute Engine ends machines, or "
            ".inf for no such end",
        )
    return lifetime


def _pause(key: str, value: Any) -> float:
    """Check for a time that may be none at all."""
    none = value is False or (isinstance(value, int | float) and value == 0)
    return 0.0 if none else _seconds(key, value)


def _memory_limit(key: str, value: Any) -> Any:
    """Check for a worker's memory limit in Dask's spelling."""
    advice = "must be such as '12GiB', 0.8 (a share of the machine), 'auto' or 0 (no limit)"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refuse(key, value, advice)
    if value != "auto":
        try:
            # Dask reads an empty text as one byte.
            amount = parse_bytes(_text(key, value)) if isinstance(value, str) else value
        except ValueError as error:
            raise _refuse(key, value, advice) from error
        if not 0 <= amount < math.inf:
            raise _refuse(key, value, advice)
    return value


def _bytes(key: str, value: Any) -> int:
    """Check for an amount of memory."""
    advice = "must be an amount of memory, such as '4GiB'"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refuse(key, value, advice)
    try:
        amount = parse_bytes(_text(key, value)) if isinstance(value, str) else value
    except ValueError as error:
        raise _refuse(key, value, advice) from error
    if not 1 <= amount < math.inf:
        raise _refuse(key, value, advice)
    return int(amount)


def _import_path(key: str, value: Any) -> str:
    """Check for a class that workers can import, given as its path or itself."""
    found = f"{value.__module__}.{value.__qualname__}" if inspect.isclass(value) else value
    parts = found.split(".") if isinstance(found, str) else []
    if parts[:1] == ["__main__"] or "<locals>" in parts:
        raise _refuse(
            key, found, "is defined where workers cannot import it; put it into a module they have"
        )
    if len(parts) < 2 or not all(p.isidentifier() and not keyword.iskeyword(p) for p in parts):
        raise _refuse(key, value, "must be a class or its import path, such as 'distributed.Nanny'")
    return ".".join(parts)


def _security(key: str, value: Any) -> Any:
    """Check for true, false or a `distributed.Security`."""
    if isinstance(value, bool):
        return value
    from distributed import Security

    if not isinstance(value, Security):
        # Not by its repr: it could be a key.
        raise SettingsError(
            f"{key} is a {type(value).__name__}; it must be true, false or a distributed.Security.",
            key=key,
        )
    return value


def _service_account(key: str, value: Any) -> str:
    """Check for a service account."""
    account = _text(key, value)
    if account != "default" and not _EMAIL.fullmatch(account):
        raise _refuse(
            key,
            value,
            "must be 'default' or an address such as NAME@PROJECT.iam.gserviceaccount.com "
            "(gcloud iam service-accounts list shows yours)",
        )
    return account


def _path(key: str, value: Any) -> str:
    """Check for a file's path."""
    return _text(key, str(value) if isinstance(value, PurePath) else value)


def _resource(collection: str) -> Check:
    """Make a check for a resource given by its name or by a partial URL."""

    def check(key: str, value: Any) -> str:
        resource = _text(key, value)
        *parents, name = resource.split("/")
        if parents and parents[-1] != collection:
            raise _refuse(key, value, f"must be a name or a path that ends in '{collection}/NAME'")
        names.check_name(name, key=key)
        return resource

    return check


def _project(key: str, value: Any) -> str:
    """Check for a project; YAML reads a project's number as a number."""
    return names.check_project(str(value) if isinstance(value, int) else _text(key, value), key=key)


def _each(check: Callable[..., object]) -> Check:
    """Make a check from one that wants text and has the key as a keyword."""
    return lambda key, value: str(check(_text(key, value), key=key))


def _every(check: Callable[..., object]) -> Check:
    """Make a check for one text or several from one that wants text."""

    def check_every(key: str, value: Any) -> tuple[str, ...]:
        checked = tuple(str(check(text, key=key)) for text in _texts(key, value))
        if len(set(checked)) < len(checked):
            raise _refuse(key, value, "names something twice")
        return checked

    return check_every


def _ranges(key: str, value: Any) -> tuple[str, ...]:
    """Check for ranges of addresses."""
    checked: tuple[str, ...] = _every(addresses.check_range)(key, value)
    if not checked:
        # To Compute Engine a rule without sources is one for everybody.
        raise _refuse(key, value, "lets nobody in; leave it out to let this computer in")
    if len({":" in each for each in checked}) > 1:
        # https://docs.cloud.google.com/firewall/docs/firewalls
        raise _refuse(key, value, "has both IPv4 and IPv6; a firewall rule has one of them")
    return checked


def _listed(choices: Sequence[str]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}"


def _choice(*choices: str) -> Check:
    """Make a check for one of a few words."""

    def check(key: str, value: Any) -> str:
        if value not in choices:
            raise _refuse(key, value, f"must be {_listed(choices)}")
        return str(value)

    return check


_port: Final = _whole_number(1, 65_535)

#: The check of each setting, by keyword argument.
CHECKS: Final[Mapping[str, Check]] = {
    "project": _project,
    "zone": _zones,
    "allow_cross_zone": _flag,
    "name": _each(names.check_cluster_name),
    "api_endpoint": _each(addresses.check_api_endpoint),
    "api_token_file": _path,
    "api_rate": _rate,
    "api_connections": _whole_number(1, 256),
    "n_workers": _whole_number(0),
    "max_workers": _whole_number(1),
    "machine_type": _machine_types,
    "scheduler_machine_type": _machine_types,
    "worker_machine_type": _machine_types,
    "processes": _whole_number(1),
    "single_node": _flag,
    "workers_on_scheduler": _whole_number(0),
    "nthreads": _whole_number(1),
    "memory_limit": _memory_limit,
    "spot": _spot,
    "spot_fraction": _share,
    "min_on_demand": _whole_number(0),
    "preemption_notice": _flag,
    "worker_accelerator_type": _each(names.check_name),
    "worker_accelerator_count": _whole_number(0),
    "local_ssds": _whole_number(0),
    "min_cpu_platform": _text,
    "reservation": _resource("reservations"),
    "confidential": _flag,
    "secure_boot": _flag,
    "source_image": _each(images.parse_source_image),
    "boot_disk_size": _gigabytes,
    "boot_disk_type": _each(names.check_name),
    "runtime": _choice("container", "vm"),
    "environment": check_environment,
    "container_image": _each(images.check_container_image),
    "docker_options": check_docker_options,
    "shm_size": _bytes,
    "version_check": _flag,
    "env_vars": mappings.check_env_vars,
    "worker_class": _import_path,
    "worker_options": partial(
        mappings.check_json,
        reserved=("name", "host", "scheduler_ip", "scheduler_port", "security", "protocol"),
        remedy="take it out of worker_options (see name, network and security)",
    ),
    "scheduler_options": partial(
        mappings.check_json,
        reserved=("host", "port", "dashboard_address", "security", "protocol"),
        remedy="take it out of scheduler_options (see scheduler_port, dashboard_port and security)",
    ),
    "scheduler_port": _port,
    "dashboard_port": _port,
    "jupyter": _flag,
    "network": _resource("networks"),
    "subnetwork": _resource("subnetworks"),
    "external_ip": _flag,
    "network_tags": _network_tags,
    "connect": _choice("auto", "internal", "external", "iap"),
    "firewall": _flag,
    "allow_ingress_from": _ranges,
    "client_address_services": _every(addresses.check_service),
    "iap_endpoint": _each(addresses.check_iap_endpoint),
    "labels": mappings.check_labels,
    "service_account": _service_account,
    "scopes": _scopes,
    "security": _security,
    "secrets": _choice("metadata", "secret-manager"),
    "idle_timeout": _seconds_or_ever,
    "no_client_timeout": _seconds_or_ever,
    "max_lifetime": _lifetime,
    "death_timeout": _seconds_or_ever,
    "sweep_on_start": _flag,
    "max_hourly_cost": _dollars,
    "live_prices": _flag,
    "start_timeout": _seconds,
    "worker_start_timeout": _seconds,
    "worker_start_failure_limit": _whole_number(1),
    "progress": _choice("auto", "terminal", "notebook", "lines", "none"),
    "instance_overrides": mappings.check_json,
}

#: The check of each default of `requires_cluster`, by keyword argument.
REQUIRES_CLUSTER_CHECKS: Final[Mapping[str, Check]] = {
    "local": _switch,
    "keep_alive": _pause,
    "reuse": _switch,
}
