"""The rules for `scheduling`: Spot, host maintenance, limits of the run time.

Sources: the ``Scheduling`` schema of the discovery document,
https://cloud.google.com/compute/docs/instances/create-use-spot and
https://cloud.google.com/compute/docs/instances/limit-vm-runtime.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dask_gce.emulator.errors import APIError, invalid
from dask_gce.emulator.links import moment_of

#: Seconds within which ``maxRunDuration`` must lie: 30 seconds to 120 days.
RUN_DURATION = (30, 120 * 24 * 3600)


def check_scheduling(asked: dict[str, Any], field: str, *, accelerated: bool) -> dict[str, Any]:
    """Return scheduling options as an instance shows them.

    Parameters
    ----------
    asked : dict
        The ``Scheduling`` from the request.
    field : str
        The field it came from, for the refusal.
    accelerated : bool
        Whether the instance has GPUs, which forbid live migration.

    Returns
    -------
    dict
        The options, with Google's defaults.

    Raises
    ------
    APIError
        The options contradict each other, or a time is malformed or out of its range.

    Examples
    --------
    >>> shown = check_scheduling({"provisioningModel": "SPOT"}, "scheduling", accelerated=False)
    >>> shown["preemptible"]
    True
    """
    spot = asked.get("provisioningModel") == "SPOT" or asked.get("preemptible", False)
    limited = "maxRunDuration" in asked or "terminationTime" in asked
    shown = dict(asked)
    if spot and asked.get("provisioningModel") == "STANDARD":
        raise _contradiction(
            "Preemptible instances cannot have the STANDARD provisioning model", field
        )
    if spot and asked.get("automaticRestart"):
        raise _contradiction("Scheduling must have automaticRestart set to false for Spot", field)
    if spot and asked.get("onHostMaintenance") == "MIGRATE":
        raise _contradiction("Scheduling must have onHostMaintenance set to TERMINATE", field)
    if accelerated and asked.get("onHostMaintenance", "MIGRATE") == "MIGRATE" and not spot:
        raise _contradiction(
            "Instances with guest accelerators do not support live migration", field
        )
    if "instanceTerminationAction" in asked and not (spot or limited):
        raise _contradiction(
            "You cannot specify a termination action for a VM instance that has the standard"
            " provisioning model and no limit of its run time",
            field,
        )
    if "maxRunDuration" in asked and "terminationTime" in asked:
        raise _contradiction("maxRunDuration and terminationTime exclude each other", field)
    if "maxRunDuration" in asked:
        if asked.get("preemptible") and asked.get("provisioningModel") != "SPOT":
            raise _contradiction("Legacy preemptible instances cannot have maxRunDuration", field)
        seconds = int(asked["maxRunDuration"].get("seconds", "0"))
        least, most = RUN_DURATION
        if not least <= seconds <= most:
            raise invalid(
                f"{field}.maxRunDuration",
                f"{seconds}s",
                f"Must be between {least} and {most} seconds.",
            )
        shown["maxRunDuration"] = {"seconds": str(seconds)}
    if "terminationTime" in asked:
        _check_end(asked["terminationTime"], f"{field}.terminationTime")
    notice = asked.get("preemptionNoticeDuration")
    if notice is not None and (not spot or int(notice.get("seconds", "0")) not in (0, 120)):
        raise invalid(f"{field}.preemptionNoticeDuration", notice, "Must be 0 or 120 s, for Spot.")
    shown["provisioningModel"] = asked.get("provisioningModel", "SPOT" if spot else "STANDARD")
    shown["preemptible"] = bool(spot)
    shown["automaticRestart"] = asked.get("automaticRestart", not (spot or limited))
    shown.setdefault("onHostMaintenance", "TERMINATE" if spot else "MIGRATE")
    if spot or limited:
        shown.setdefault("instanceTerminationAction", "STOP")
    return shown


def _check_end(end: str, field: str) -> None:
    try:
        moment = moment_of(end)
    except ValueError:
        raise invalid(field, end, "Must be a time in RFC 3339 text format.") from None
    if moment <= datetime.now(timezone.utc):
        raise invalid(field, end, "Must be in the future.")


def _contradiction(message: str, field: str) -> APIError:
    return invalid(field, "", f"{message}.")
