"""The kinds of machine behind the local Compute Engine's instances.

This package owns whatever stands in for hardware and guest: addresses, processes, the metadata
server and the sandbox. The life cycle of instances, and everything the Compute API answers, belongs
to :mod:`dask_gce.emulator`; the two meet in :mod:`dask_gce.emulator.machine`.

=================== ====================================================================
``process``         a supervised tree of real processes on its own loopback address (default)
``paper``           states only, for tests of scale: no process, no file, no socket
``light``           process machines, but Dask workers share two processes
``paper-workers``   process machines, but Dask workers are paper
``namespace``       real operating systems with a network of their own: Debian with systemd,
                    Google's guest agent, cloud-init and containers; needs root on Linux
``namespace-quick`` as ``namespace``, but of this host's own files, and without systemd
=================== ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from dask_gce.emulator.machine import MachineKind

__all__ = ["KINDS", "make_kind"]

#: The kinds of machine there are, the default first.
KINDS = ("process", "paper", "light", "paper-workers", "namespace", "namespace-quick")


def make_kind(
    name: str,
    *,
    container_images: Sequence[str] = ("*",),
    client_inside: bool = False,
) -> MachineKind:
    """Make the kind of machine of that name.

    Parameters
    ----------
    name : str
        One of :data:`KINDS`.
    container_images : sequence of str
        Shell patterns (as of :mod:`fnmatch`) of the container images that exist.
    client_inside : bool
        Whether clients run in the machines' network, where a kind has one of its own.

    Returns
    -------
    MachineKind
        The kind, not yet started.

    Raises
    ------
    ValueError
        There is no such kind.

    Examples
    --------
    >>> make_kind("paper").name
    'paper'
    """
    if name not in KINDS:
        raise ValueError(f"no machines of kind {name!r}: the kinds are {', '.join(KINDS)}")
    from dask_gce.emulator.machines.by_role import ByRole
    from dask_gce.emulator.machines.light import LightKind
    from dask_gce.emulator.machines.paper import PaperKind
    from dask_gce.emulator.machines.process import ProcessKind

    if name == "paper":
        return PaperKind()
    if name in ("namespace", "namespace-quick"):
        from dask_gce.emulator.machines.namespace.kind import NamespaceKind

        return NamespaceKind(
            quick=name == "namespace-quick",
            client_inside=client_inside,
        )
    processes = ProcessKind(container_images=container_images)
    if name == "light":
        return ByRole(name, others=processes, workers=LightKind(processes))
    if name == "paper-workers":
        return ByRole(name, others=processes, workers=PaperKind())
    return processes
