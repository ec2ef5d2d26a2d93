"""Clusters for dask-ctl: those that run and that this computer can connect to.

Owns the entry point ``dask_cluster_discovery``, which dask-ctl calls beside those of every other
package: so it is quick, and silent where there is nothing to find. What runs is listed by
`inventory`, what can be connected to is known to `connections`.

Source: `dask-ctl <https://dask-ctl.readthedocs.io/en/latest/integrating.html>`_, which waits five
seconds for each cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from dask_gce.cluster import GCECluster
from dask_gce.compute import Compute
from dask_gce.connection_content import Connection
from dask_gce.connections import list_connections, load_connection
from dask_gce.credentials import load_credentials
from dask_gce.errors import GCEError
from dask_gce.inventory import list_clusters
from dask_gce.settings import Settings

__all__ = ["discover"]

logger = logging.getLogger(__name__)

#: Seconds until no more is looked for, and that one exchange may take: leaving waits for the one
#: that is under way. Together less than the five that dask-ctl waits.
_PATIENCE: Final = 3.0
_EXCHANGE: Final = 1.5


async def discover() -> AsyncIterator[tuple[str, type[GCECluster]]]:
    """Find the clusters that run and that this computer can connect to.

    Those are the clusters that Compute Engine lists and whose connection files are here. Finds
    none, and says so in the log only, where there are no credentials or no network.

    Yields
    ------
    name : str
        The cluster's name, for ``GCECluster.from_name``.
    cluster : type
        ``GCECluster``.
    """
    clouds: dict[tuple[str | None, ...], _Cloud] = {}
    for connection, settings in await asyncio.to_thread(_load):
        # Clusters of one project are listed together; a local Compute Engine is another cloud.
        key = (connection.project, settings.api_endpoint, settings.api_token_file)
        cloud = clouds.setdefault(key, _Cloud(connection.project, settings))
        cloud.wanted.add((connection.cluster, connection.identity))
    found = await asyncio.gather(*map(_find, clouds.values()))
    for name in sorted(name for names in found for name in names):
        yield name, GCECluster


@dataclass(frozen=True)
class _Cloud:
    """A project, how to ask about it, and which clusters of it can be connected to."""

    project: str
    settings: Settings
    wanted: set[tuple[str, str]] = field(default_factory=set)


def _load() -> list[tuple[Connection, Settings]]:
    """Return the connections of this computer that can be used by their name alone."""
    listed = list_connections()
    times = Counter(name for _, name in listed)
    loaded = []
    for project, name in listed:
        if times[name] > 1:
            logger.info("Several projects have a cluster %s, so its name does not tell it.", name)
            continue
        try:
            connection = load_connection(name, project)
            loaded.append((connection, connection.restore_settings()))
        except (GCEError, OSError) as error:
            logger.info("Cluster %s cannot be connected to: %s", name, error)
    return loaded


async def _find(cloud: _Cloud) -> list[str]:
    """Return the names of those that run."""
    try:
        running = await asyncio.wait_for(_list_running(cloud.project, cloud.settings), _PATIENCE)
    except (GCEError, OSError, asyncio.TimeoutError) as error:
        logger.info("What runs in project %s is not known: %r", cloud.project, error)
        return []
    return [name for name, identity in cloud.wanted if (name, identity) in running]


async def _list_running(project: str, settings: Settings) -> set[tuple[str, str]]:
    credentials = await asyncio.to_thread(load_credentials, settings)
    async with Compute(
        project,
        credentials=credentials,
        endpoint=settings.api_endpoint,
        threads=1,
        rate=settings.api_rate,
        exchange_timeout=_EXCHANGE,
        call_timeout=_PATIENCE,
    ) as compute:
        listed = await list_clusters(compute)
    return {(each.name, each.identity) for each in listed.clusters if each.state == "running"}
