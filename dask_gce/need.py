"""What a decorated function needs: a cluster with certain settings, and workers in it.

Owns: reading the decorator's keywords together with the Dask configuration, telling two needs
apart, and making the cluster that answers one, on Compute Engine or on this machine. How long that
cluster lives and who gets it is left to `keeping` and `decorator`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from distributed import Client, LocalCluster
from distributed.deploy.spec import SpecCluster

from dask_gce import schema
from dask_gce.cluster import GCECluster
from dask_gce.errors import SettingsError
from dask_gce.settings import Settings
from dask_gce.sources import DEFAULTS, check_name, collect_section, place

__all__ = ["Need", "begin", "check_keywords", "make_cluster", "start"]

#: Keywords of `GCECluster` that follow from the decorated function.
_FROM_FUNCTION: Final = ("asynchronous", "loop")

#: Keywords of `GCECluster` that are no settings, such as ``quiet``.
_OPTIONS: Final = frozenset(
    name
    for name, parameter in inspect.signature(GCECluster).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
) - {*DEFAULTS, *_FROM_FUNCTION}

#: Seconds in which what is on this machine has started.
_STARTS_WITHIN: Final = 10.0

#: Seconds for the first messages of local workers, which go every 2 ms. A worker that is closed
#: while it sends one may leave its socket open (`BatchedSend` of distributed 2026.8).
_FIRST_WORDS: Final = 0.1


@dataclass(frozen=True)
class Need:
    """What one call needs; equal needs can be answered by one cluster.

    Parameters
    ----------
    settings : Settings
        The cluster's settings, without their sources.
    keywords : mapping
        The settings that were given to the decorator.
    options : mapping
        Keyword arguments of `GCECluster` that are no settings.
    adapt : mapping or None
        Keyword arguments of `GCECluster.adapt`; None for a number of workers that stays.
    local : bool
        Whether the cluster is to be on this machine.
    keep_alive : float
        Seconds to keep the cluster after the call.
    reuse : bool
        Whether the default client will do.
    """

    settings: Settings
    keywords: Mapping[str, Any] = field(compare=False)
    options: Mapping[str, Any]
    adapt: Mapping[str, Any] | None
    local: bool
    keep_alive: float = field(compare=False)
    reuse: bool = field(compare=False)

    @classmethod
    def load(
        cls,
        function: str,
        keywords: Mapping[str, Any],
        *,
        adapt: Mapping[str, Any] | None,
        **defaults: Any,
    ) -> Need:
        """Read what a function needs, now: the Dask configuration may change between calls.

        Parameters
        ----------
        function : str
            Name of the function, for errors.
        keywords : mapping
            Keyword arguments of `GCECluster`.
        adapt : mapping or None
            Keyword arguments of `GCECluster.adapt`.
        **defaults
            ``local``, ``keep_alive`` and ``reuse``; None for what the configuration says.

        Returns
        -------
        Need
            The need.

        Raises
        ------
        SettingsError
            If a setting is impossible, or if there would be no workers.
        """
        chosen = {}
        for key, (value, source) in collect_section("requires_cluster", defaults).items():
            try:
                check = schema.REQUIRES_CLUSTER_CHECKS[key]
                chosen[key] = check(key, False if value is None else value)
            except SettingsError as error:
                where = place(f"requires_cluster.{key}", source)
                raise SettingsError(f"{error.message} It came from: {where}.", key=key) from None
        options = {key: value for key, value in keywords.items() if key in _OPTIONS}
        settings = {key: value for key, value in keywords.items() if key not in _OPTIONS}
        need = cls(
            settings=dataclasses.replace(Settings.load(**settings), sources={}),
            keywords=settings,
            options=options,
            adapt=adapt,
            **chosen,
        )
        if need.makes_workers and not need.settings.n_workers and not adapt:
            raise SettingsError(
                f"{function}() would get a cluster without workers and wait for them for ever: "
                "give n_workers, as in @requires_cluster(n_workers=4) or as gce.n-workers in the "
                "Dask configuration, or let their number follow the work, as in "
                "@requires_cluster(adapt={'maximum': 10}).",
                key="n_workers",
            )
        return need

    @property
    def makes_workers(self) -> bool:
        """Whether the cluster is new; one that is connected to has the workers that it has."""
        return self.local or self.options.get("create_mode", "create") == "create"


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """Check that there are keywords of these names; their values may still depend on more.

    Parameters
    ----------
    keywords : mapping
        Keyword arguments of `GCECluster`.

    Raises
    ------
    SettingsError
        If there is no such keyword, or none that a decorated function could use.
    """
    for key in keywords:
        if key in _FROM_FUNCTION:
            raise SettingsError(
                f"requires_cluster() takes no {key!r}: it follows from the function, "
                "which is a coroutine function or is not.",
                key=key,
            )
        if key not in _OPTIONS:
            check_name(key, "keyword argument of requires_cluster")


def make_cluster(need: Need, *, asynchronous: bool) -> SpecCluster:
    """Make the cluster that answers a need.

    Parameters
    ----------
    need : Need
        What is needed.
    asynchronous : bool
        Whether the cluster is to live in the running event loop; it is to be awaited then.

    Returns
    -------
    distributed.SpecCluster
        A `GCECluster`, or a `distributed.LocalCluster` whose workers are threads of this process.

    Raises
    ------
    GCEError
        If the cluster cannot be started; nothing is left behind then.
    """
    if not need.local:
        return GCECluster(**need.options, **need.keywords, asynchronous=asynchronous)
    settings = need.settings
    return LocalCluster(
        name=settings.name,
        n_workers=settings.n_workers,
        threads_per_worker=settings.nthreads or 1,
        # Processes would import the main module again, which a test or a script may not bear.
        processes=False,
        # Within one process all workers see the memory of all, and a limit would stop every one.
        memory_limit=0,
        # Not "inproc": what is sent must be serialized, as it will be on the way to machines.
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        asynchronous=asynchronous,
        resources=settings.worker_options.get("resources"),
    )


async def start(startable: SpecCluster | Client) -> None:
    """Start an asynchronous cluster or client, so that it can be closed however this ends.

    What is cancelled in the midst of its start forgets what it has begun: closing it leaves the
    scheduler of a `distributed.LocalCluster`, or the socket of a `distributed.Client`. So their
    starts, which take a moment, come to their ends first. A `GCECluster` closes what it has begun.

    Parameters
    ----------
    startable : distributed.SpecCluster or distributed.Client
        What to start.

    Raises
    ------
    GCEError
        If a cluster cannot be started.
    OSError
        If a client cannot connect.
    """
    if isinstance(startable, GCECluster):
        await startable
        return
    starting = asyncio.ensure_future(_wait_for(startable))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting], timeout=_STARTS_WITHIN)
        if not starting.cancel() and not starting.cancelled():
            starting.exception()  # the cancellation counts for more
        await asyncio.sleep(_FIRST_WORDS)
        raise


async def _wait_for(startable: Any) -> None:
    await startable


def begin(need: Need, cluster: SpecCluster) -> bool:
    """Let a cluster adapt if that is needed, and tell whether to wait for its first worker.

    Parameters
    ----------
    need : Need
        What is needed.
    cluster : distributed.SpecCluster
        The cluster, which has started.

    Returns
    -------
    bool
        Whether workers were asked for. That one of them arrives shows that they can: without it a
        function could wait for its first result for ever.
    """
    if need.adapt:
        cluster.adapt(**need.adapt)
        return False
    return bool(need.settings.n_workers if need.makes_workers else cluster.plan)
