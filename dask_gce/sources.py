"""Where settings come from: keyword arguments, the Dask configuration, the environment, defaults.

The only reader of the Dask configuration and of the environment. A value comes from a keyword
argument, else from the ``gce`` part of the Dask configuration (YAML files, ``DASK_GCE__...``
variables, `dask.config.set`), else from ``gce.yaml`` in this package. What a value may be is left
to `schema` and `settings`.

Importing this module registers the defaults with Dask, as `distributed` does with its own; nothing
else here ever writes to the Dask configuration.

Beside the settings of a cluster, ``gce.yaml`` has sections: settings of something else, under a key
of their own. `collect_section` reads those.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import dask.config
import yaml

from dask_gce.errors import SettingsError

__all__ = [
    "DEFAULTS",
    "SECTIONS",
    "check_name",
    "collect",
    "collect_section",
    "environment",
    "place",
    "refusal",
]

_yaml: Final[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("gce.yaml").read_text(encoding="utf-8")
)
_spelled: Final = {key.replace("-", "_"): value for key, value in _yaml["gce"].items()}
#: Sections, each with its keys and their defaults, in the spelling of keyword arguments.
SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: {key.replace("-", "_"): value for key, value in _spelled.pop(name).items()}
    for name in ("requires_cluster",)
}
#: Every setting of a cluster in the spelling of the keyword argument, with its default.
DEFAULTS: Final[Mapping[str, Any]] = _spelled
dask.config.update_defaults(_yaml)

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
    "env": "env_vars",
    "worker_module": "worker_class",
    "worker_cores": "nthreads",
    "worker_memory": "memory_limit",
    "vm_type": "machine_type",
    "instance_type": "machine_type",
    "timeout": "start_timeout",
    "num_workers": "n_workers",
    "auto_shutdown": "death_timeout",
    "docker_args": "docker_options",
    "extra_bootstrap": "environment",
    "gpu_type": "worker_accelerator_type",
    "network_projectid": "subnetwork",
    "ngpus": "worker_accelerator_count",
    "on_host_maintenance": "instance_overrides",
    "preemptible": "spot",
    "protocol": "security",
    "scheduler_gpu_type": "scheduler_machine_type",
    "scheduler_ngpus": "scheduler_machine_type",
    "worker_gpu_type": "worker_accelerator_type",
    "worker_ngpus": "worker_accelerator_count",
    "workers": "n_workers",
}
# What they type for which there is nothing to set.
_NOTHING_TO_SET: Final = {
    "bootstrap": "machines install what they need by themselves",
    "debug": "cluster.events and 'dask gce logs --boot' tell what happened on each machine",
    "scheduler": "the cluster makes it by itself, and scheduler_options are its keyword arguments",
    "service_account_credentials": "GOOGLE_APPLICATION_CREDENTIALS names the file with the key",
    "worker": "the cluster makes them by itself, and worker_options are their keyword arguments",
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


def collect(keywords: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return every setting as it was given, with where it came from.

    Parameters
    ----------
    keywords : mapping
        Keyword arguments; None means not given.

    Returns
    -------
    dict of str to tuple
        Values, not checked, and their sources, such as ``"keyword argument"`` or ``"default"``.

    Raises
    ------
    SettingsError
        If there is no setting of a name that was given.
    """
    for key in keywords:
        check_name(key, "keyword argument")
    configured = _configured()
    return {
        key: _choose(key, keywords.get(key), configured.get(key), default)
        for key, default in DEFAULTS.items()
    }


def collect_section(section: str, keywords: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return every setting of a section as it was given, with where it came from.

    Parameters
    ----------
    section : str
        Name of the section, one of `SECTIONS`.
    keywords : mapping
        Keyword arguments; None means not given.

    Returns
    -------
    dict of str to tuple
        Values, not checked, and their sources, such as ``"keyword argument"`` or ``"default"``.

    Raises
    ------
    SettingsError
        If the section in the Dask configuration is no mapping, or has a key that there is not.

    Examples
    --------
    >>> collect_section("requires_cluster", {"reuse": True})["reuse"]
    (True, 'keyword argument')
    """
    defaults = SECTIONS[section]
    configured: dict[str, Any] = {}
    for name, values in _gce().items():
        if str(name).replace("-", "_") != section:
            continue
        if not isinstance(values, Mapping):
            raise SettingsError(
                f"{section} = {values!r} must be a mapping of {', '.join(defaults)}. "
                f"It came from: {place(section, _config_source(section, values))}.",
                key=section,
            )
        configured.update((str(key).replace("-", "_"), value) for key, value in values.items())
    for key, value in configured.items():
        if key not in defaults:
            where = place(f"{section}.{key}", _config_source(f"{section}.{key}", value))
            raise SettingsError(
                f"There is no setting {key!r} in {section} ({where}); "
                f"there are: {', '.join(defaults)}.",
                key=f"{section}.{key}",
            )
    return {
        key: _choose(f"{section}.{key}", keywords.get(key), configured.get(key), default)
        for key, default in defaults.items()
    }


def check_name(key: str, source: str) -> None:
    """Check that there is a setting of a name.

    Parameters
    ----------
    key : str
        The name.
    source : str
        Where it came from, for the error.

    Raises
    ------
    SettingsError
        If there is none; it tells what may have been meant.
    """
    if key not in DEFAULTS:
        raise _unknown(key, source)


def place(key: str, source: str) -> str:
    """Add the files in which a setting stands; for errors only, since it reads all files.

    Parameters
    ----------
    key : str
        The setting.
    source : str
        Where it came from, as `collect` told.

    Returns
    -------
    str
        The same, with paths if it was the Dask configuration.
    """
    if source != "dask config":
        return source
    spellings = (f"gce.{key.replace('_', '-')}", f"gce.{key}")
    files = {str(path) for name in spellings for path in dask.config.paths_containing_key(name)}
    return f"dask config ({', '.join(sorted(files))})" if files else source


def refusal(key: str, source: str, reason: str) -> SettingsError:
    """Return the error for a setting that cannot be, and say where it stands.

    Parameters
    ----------
    key : str
        The setting.
    source : str
        Where it came from, as `collect` told.
    reason : str
        What is wrong with it and what would do, without a full stop.

    Returns
    -------
    SettingsError
        The error.
    """
    return SettingsError(f"{key} ({place(key, source)}): {reason}.", key=key)


def _gce() -> Mapping[Any, Any]:
    """Return the ``gce`` part of the Dask configuration as it is."""
    section = dask.config.get("gce", default=None)
    if not isinstance(section, Mapping):
        raise SettingsError(
            f"'gce' in the Dask configuration is {section!r}; it must be a mapping of settings.",
            key="gce",
        )
    return section


def _configured() -> dict[str, Any]:
    """Return the settings of a cluster in the Dask configuration, spelled as keyword arguments."""
    configured = {}
    for name, value in _gce().items():
        key = str(name).replace("-", "_")
        if key in SECTIONS:
            continue
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
    wanted = key.split(".")
    for variable, typed in os.environ.items():
        # As dask.config.collect_env reads them: DASK_ in capitals, the rest in any case.
        section, *path = variable.removeprefix("DASK_").lower().split("__")
        if (
            variable.startswith("DASK_")
            and section == "gce"
            and [name.replace("-", "_") for name in path[: len(wanted)]] == wanted
            and (path[len(wanted) :] or dask.config.interpret_value(typed) == value)
        ):
            return f"environment variable {variable}"
    return "dask config"


def _unknown(key: str, source: str) -> SettingsError:
    meant = _OTHER_WORDS.get(key) or next(
        iter(difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0.6)), None
    )
    if key in _NOTHING_TO_SET:
        remedy = f"none is needed: {_NOTHING_TO_SET[key]}."
    elif meant:
        remedy = f"did you mean {meant!r}?"
    else:
        remedy = f"there are: {', '.join(sorted(DEFAULTS))}."
    return SettingsError(f"There is no setting {key!r} ({place(key, source)}); {remedy}", key=key)
