"""Rate quotas: how many requests a minute.

Owns: which group a method is charged to, the limits, the count of this minute. Source:
https://cloud.google.com/compute/api-quota, which names the groups: each counts for a project in a
region, and is refilled at the next minute's beginning.
"""

from __future__ import annotations

import threading
import time

from dask_gce.emulator.errors import APIError

#: The groups, and what each counts.
GROUPS = {
    "writes_per_region": "inserts, bulk inserts, deletions and other changes, one each",
    "reads_per_region": "gets and lists",
    "operation_read_requests_per_region": "gets of operations",
    "heavy_weight_read_requests_per_region": "waits for operations",
    "get_serial_port_output_requests_per_region": "reads of serial ports",
    "default_per_region": "reads of guest attributes",
    "heavy_weight_read_requests": "aggregated lists, in all regions together",
}


def group_of(method_id: str, verb: str, region: str | None) -> str | None:
    """Return the group that a method is charged to.

    Parameters
    ----------
    method_id : str
        Its ID.
    verb : str
        Its HTTP method.
    region : str or None
        The region where it acts; None when it acts in no region or in all.

    Returns
    -------
    str or None
        The group; None for requests about global resources, which are not counted here.

    Examples
    --------
    >>> group_of("compute.instances.bulkInsert", "POST", "us-central1")
    'writes_per_region'
    >>> group_of("compute.zoneOperations.wait", "POST", "us-central1")
    'heavy_weight_read_requests_per_region'
    """
    collection, _, name = method_id.removeprefix("compute.").partition(".")
    if name == "aggregatedList":
        return "heavy_weight_read_requests"
    if region is None:
        return None
    if name == "getSerialPortOutput":
        return "get_serial_port_output_requests_per_region"
    if name == "getGuestAttributes":
        return "default_per_region"
    if name == "wait":
        return "heavy_weight_read_requests_per_region"
    if name == "get" and collection.endswith("Operations"):
        return "operation_read_requests_per_region"
    return "reads_per_region" if verb == "GET" else "writes_per_region"


class RateLimits:
    """How many requests of a group are answered a minute; all of them where nothing is set.

    It may be changed at any time and from any thread.

    Parameters
    ----------
    minute : float
        Seconds that a minute lasts.

    Examples
    --------
    >>> limits = RateLimits()
    >>> limits.set("writes_per_region", 1200)
    """

    def __init__(self, minute: float = 60.0) -> None:
        self._minute = minute
        self._lock = threading.Lock()
        self._limits: dict[str, int] = {}
        # By project, region and group: the minute and the requests that were answered in it.
        self._counts: dict[tuple[str, str, str], tuple[int, int]] = {}

    def set(self, group: str, per_minute: int | None) -> None:
        """Say how many requests of a group are answered.

        Parameters
        ----------
        group : str
            One of those of https://cloud.google.com/compute/api-quota: a key of :data:`GROUPS`.
        per_minute : int or None
            How many a minute, for each project in each region; None sets no limit.

        Raises
        ------
        ValueError
            There is no such group, or the number is negative.
        """
        if group not in GROUPS:
            raise ValueError(f"there is no group {group!r}: the groups are {', '.join(GROUPS)}")
        if per_minute is not None and per_minute < 0:
            raise ValueError(f"a group cannot have {per_minute} requests a minute")
        with self._lock:
            self._limits.pop(group, None)
            if per_minute is not None:
                self._limits[group] = per_minute

    def clear(self) -> None:
        """Forget every limit."""
        with self._lock:
            self._limits.clear()

    def charge(self, project: str, region: str | None, method_id: str, verb: str) -> None:
        """Count a request, or refuse it.

        Parameters
        ----------
        project : str
            The project.
        region : str or None
            The region where it acts.
        method_id : str
            The ID of the method.
        verb : str
            Its HTTP method.

        Raises
        ------
        APIError
            There were too many in this minute.
        """
        if not self._limits:
            return
        group = group_of(method_id, verb, region)
        key = project, region or "global", group or ""
        with self._lock:
            limit = self._limits.get(group or "")
            if limit is None:
                return
            minute = int(time.time() // self._minute)
            before, count = self._counts.get(key, (minute, 0))
            if before != minute:
                count = 0
            if count >= limit:
                raise APIError(
                    403,
                    "rateLimitExceeded",
                    f"Quota exceeded for quota metric '{group}' and limit '{limit} per minute' of"
                    f" service 'compute.googleapis.com' in {key[1]} for consumer '{project}'.",
                )
            self._counts[key] = minute, count + 1
