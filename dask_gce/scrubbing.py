"""Takes the private keys out of the metadata of machines that have read them.

Owns which machines are still to be scrubbed, and the requests that do it. When a machine has read
its keys is told by `fleet`: once it does what it was made for. What was in the metadata stays on
the machine's own disk, see ``guest/startup.sh``.

It costs one request a machine, for there is no request about the metadata of many. Beside that it
costs two for each different content: the fingerprints, which are hashes of the content, come with
the lists that watch the machines anyway, so that only one machine of those that have the same is
asked for the content itself, before and after:
https://docs.cloud.google.com/compute/docs/reference/rest/v1/instances/setMetadata

Whatever else is in the metadata stays. If somebody changes it meanwhile, the fingerprint no longer
fits, the request is refused, and the next list has the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from dask_gce.compute import Compute
from dask_gce.errors import APIError, GCEError, NotFound, PermissionDenied
from dask_gce.events import EventLog
from dask_gce.instance import Instance, parse_instance
from dask_gce.permissions import named_permissions
from dask_gce.startup import SECRET_ITEMS

__all__ = ["Scrubbing"]

logger = logging.getLogger(__name__)

#: How many requests are under way at a time. Each takes a place in the order of all changes, and
#: what a user is waiting for comes after it.
LANES = 4

#: Seconds after which a machine that still shows the old fingerprint is scrubbed again.
SCRUB_AGAIN = 10.0

#: Seconds that somebody who leaves a cluster to others takes for what is still to be scrubbed, and
#: between looks how far it is.
LEAVE_WITHIN, LEAVE_PAUSE = 20.0, 0.5

#: Who writes a machine's metadata could become its service account, so it takes this as well.
ACT_AS = "iam.serviceAccounts.actAs"

Key = tuple[str, str]

#: Nothing was asked for yet.
NEVER = -math.inf, ""


class Scrubbing:
    """Scrubs the metadata of one cluster's machines, in the background.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    cluster : str
        The cluster's name.
    events : EventLog
        Where it is noted if it cannot be done.
    """

    def __init__(self, compute: Compute, cluster: str, events: EventLog) -> None:
        self._compute = compute
        self._cluster = cluster
        self._events = events
        #: What is to be scrubbed, by zone and name; when that was asked for last, and with which
        #: fingerprint.
        self._due: dict[Key, tuple[float, str]] = {}
        #: By fingerprint, what is to be in the metadata instead; None if that is as it should be.
        self._wanted: dict[str, list[dict[str, Any]] | None] = {}
        self._working: asyncio.Task[None] | None = None
        self._refused = False

    @property
    def due(self) -> int:
        """How many machines are still to be scrubbed."""
        return len(self._due)

    def add(self, zone: str, name: str) -> None:
        """Have a machine scrubbed, which has read what is in its metadata.

        Parameters
        ----------
        zone : str
            Its zone.
        name : str
            Its name.
        """
        if not self._refused:
            self._due.setdefault((zone, name), NEVER)

    def discard(self, zone: str, name: str) -> None:
        """Have nothing more to do with a machine.

        Parameters
        ----------
        zone : str
            Its zone.
        name : str
            Its name.
        """
        self._due.pop((zone, name), None)

    def review(self, found: Iterable[Instance]) -> None:
        """Begin to scrub, in the background, those whose metadata need it.

        Parameters
        ----------
        found : iterable of Instance
            What a list has just shown of the cluster's machines.
        """
        if not self._due or (self._working is not None and not self._working.done()):
            return
        now = time.monotonic()
        todo: dict[str, list[Key]] = {}
        for each in found:
            key = each.zone, each.name
            if key not in self._due:
                continue
            if each.ended or self._is_clean(each.fingerprint):
                del self._due[key]
            elif self._due[key][1] != each.fingerprint or now - self._due[key][0] > SCRUB_AGAIN:
                todo.setdefault(each.fingerprint, []).append(key)
        if not self._due:
            self._wanted = {each: None for each, items in self._wanted.items() if items is None}
        if todo:
            self._working = asyncio.ensure_future(self._work(todo))

    def _is_clean(self, fingerprint: str) -> bool:
        return fingerprint in self._wanted and self._wanted[fingerprint] is None

    async def finish(self, look: Callable[[], Awaitable[Sequence[dict[str, Any]]]]) -> None:
        """Scrub what is due before the cluster is left to others, but not for ever.

        Parameters
        ----------
        look : callable
            Lists the cluster's machines, as API JSON.
        """
        deadline = time.monotonic() + LEAVE_WITHIN
        try:
            while self._due and (left := deadline - time.monotonic()) > 0:
                if self._working is not None:
                    await asyncio.wait({self._working}, timeout=left)
                with contextlib.suppress(GCEError):
                    self.review([parse_instance(each) for each in await look()])
                if self._due and (self._working is None or self._working.done()):
                    await asyncio.sleep(LEAVE_PAUSE)
        finally:
            await self.stop()
        if self._due:
            logger.warning(
                "%d machines of cluster %s have their keys in their metadata until it is joined "
                "again (from_name).",
                len(self._due),
                self._cluster,
            )

    async def stop(self) -> None:
        """Begin nothing more, and wait for the end of what was begun."""
        working, self._working = self._working, None
        self._refused = True
        if working is not None:
            working.cancel()
            await asyncio.wait({working})

    async def _work(self, todo: dict[str, list[Key]]) -> None:
        for fingerprint, keys in todo.items():
            if fingerprint not in self._wanted:
                # Many have the same, of which one is enough to know it.
                await self._learn(fingerprint, *keys[0])
        queue = [
            (key, fingerprint)
            for fingerprint, keys in todo.items()
            if self._wanted.get(fingerprint) is not None
            for key in keys
        ]
        waiting = iter(queue)

        async def lane() -> None:
            for key, fingerprint in waiting:
                if not self._refused and key in self._due:
                    await self._scrub(key, fingerprint)

        await asyncio.gather(*(lane() for _ in range(min(LANES, len(queue)))))

    async def _learn(self, fingerprint: str, zone: str, name: str) -> None:
        """Find out what is in the metadata that have a fingerprint."""
        try:
            metadata = (await self._compute.get_instance(zone, name, "metadata"))["metadata"]
        except NotFound:
            self.discard(zone, name)
            return
        except GCEError as error:
            logger.info("The metadata of %s could not be read yet: %s", name, error)
            return
        if metadata.get("fingerprint") != fingerprint:
            return  # it has changed since; the next list shows it
        items = [dict(each) for each in metadata.get("items", ())]
        left = [each for each in items if each.get("key") not in SECRET_ITEMS]
        self._wanted[fingerprint] = None if len(left) == len(items) else left

    async def _scrub(self, key: Key, fingerprint: str) -> None:
        zone, name = key
        self._due[key] = time.monotonic(), fingerprint
        metadata = {"fingerprint": fingerprint, "items": self._wanted[fingerprint]}
        try:
            await self._compute.set_instance_metadata(zone, name, metadata)
        except NotFound:
            self.discard(zone, name)
        except GCEError as error:
            # Without the right to act as the machines' account it is another kind of error.
            if isinstance(error, PermissionDenied) or ACT_AS in named_permissions(str(error)):
                self._give_up(error)
                return
            if isinstance(error, APIError) and error.status == 412:
                # Somebody has changed it: not a matter of time, but of the new fingerprint.
                self._due[key] = NEVER
            logger.info("The metadata of %s could not be scrubbed yet: %s", name, error)

    def _give_up(self, error: GCEError) -> None:
        if self._refused:
            return
        self._refused = True
        self._due.clear()
        text = (
            f"The private keys of cluster {self._cluster} stay in the metadata of its machines, "
            "where everybody can read them who may see instances of project "
            f"{self._compute.project}. To have them removed, the caller needs the permission "
            "compute.instances.setMetadata, and iam.serviceAccounts.actAs on their service account "
            'if they have one; or keep them elsewhere: secrets="secret-manager". '
            f"{error}"
        )
        self._events.note(self._cluster, "unscrubbed", text)
        logger.warning("%s", text)
