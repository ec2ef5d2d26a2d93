"""The logs of a cluster: what Dask logged and what the machines wrote, each machine's as one text.

Owns which logs there are, those too of machines that have failed, and what is said where one could
not be had. How logs are asked for is in `log_reading`, how two become one in `merged_logs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed.core import Status
from distributed.utils import Log, Logs

from dask_gce.errors import GCEError
from dask_gce.limits import LimitedCluster
from dask_gce.log_reading import Console, DaskLogs, read_consoles, read_dask_logs
from dask_gce.member import Member
from dask_gce.merged_logs import LogEntry, merge
from dask_gce.terminal import harmless

__all__ = ["LoggedCluster"]

#: Of how many machines the consoles are read. With more, only of those whose Dask does not run.
CONSOLES = 32

#: Of how many machines that are gone there are logs, the last to fail.
GONE = 100

#: How many names an error tells.
TOLD_NAMES = 20


@dataclass(frozen=True)
class _Source:
    """One of the logs: what it is called, and what is in it."""

    key: str
    #: The addresses of the workers that it has the logs of.
    workers: tuple[str, ...] = ()
    #: The machine whose console is in it; empty for none.
    machine: str = ""
    #: Whether it is the scheduler's.
    scheduler: bool = False


class LoggedCluster(LimitedCluster):
    """A cluster that tells what its machines say, and what those said that are gone."""

    def get_logs(
        self,
        cluster: bool = True,
        scheduler: bool = True,
        workers: bool | Iterable[str] = True,
        machines: bool | Iterable[str] = False,
    ) -> Any:
        """Return logs of the cluster, the scheduler and the workers, with those of their machines.

        What Dask logged and what the machine wrote to its serial console, which is its boot and all
        that is printed there, are one text, the oldest first. Machines whose worker has not come
        have one too, and those that have failed; those that were deleted have one where they are
        asked for by name. Of clusters of more than 32 machines, only the
        consoles of those are read whose Dask does not run, unless they are asked for by name.

        Parameters
        ----------
        cluster : bool
            Whether to have what the cluster itself said.
        scheduler : bool
            Whether to have the scheduler's.
        workers : bool or iterable of str
            Whether to have the workers', or the names or addresses of some workers or machines.
        machines : bool or iterable of str
            Whether to have whole serial consoles as well, as they are, under the names of the
            machines; or the names of some. Each is a request to Compute Engine.

        Returns
        -------
        distributed.utils.Logs or awaitable
            Texts by ``"Cluster"``, ``"Scheduler"``, worker's address and, where a machine has no
            worker or several, its name; or by what was asked for. Something to await when the
            cluster is asynchronous.

        Raises
        ------
        GCEError
            If there is no such worker or machine, or if Compute Engine does not tell what
            `machines` asks for. What else cannot be had is told in its place.

        Examples
        --------
        >>> logs = cluster.get_logs()  # doctest: +SKIP
        >>> print(logs["Scheduler"])  # doctest: +SKIP
        >>> cluster.get_logs(workers=["dask-3f9a61c2-worker-7c2e"])  # doctest: +SKIP
        """
        return self.sync(
            self._get_logs, cluster=cluster, scheduler=scheduler, workers=workers, machines=machines
        )

    async def _get_logs(
        self,
        cluster: bool = True,
        scheduler: bool = True,
        workers: bool | Iterable[str] = True,
        machines: bool | Iterable[str] = False,
    ) -> Any:
        logs = Logs()
        if cluster:
            said = "\n".join(line for _, line in self._cluster_manager_logs)
            logs["Cluster"] = Log(harmless(said))
        members: Mapping[str, Member] = {} if self._fleet is None else dict(self._fleet.members)
        whole = self._choose_machines(machines, members)
        sources = self._choose_sources(scheduler, workers, members)
        addresses = dict.fromkeys(each for source in sources for each in source.workers)
        own = any(source.scheduler for source in sources)
        dask = await self._read_dask(list(addresses), own=own)
        consoles = await self._read_consoles(sources, members, named=not isinstance(workers, bool))
        events = self._events_by_machine()
        for source in sources:
            logs[source.key] = Log(_compose(source, dask, consoles, events))
        for name in whole:
            compute = self._ready.compute
            text, _ = await compute.get_serial_port_output(members[name].zone, name)
            logs[name] = Log(harmless(text))
        return logs

    # -- which ------------------------------------------------------------------------------------

    def _choose_machines(
        self, machines: bool | Iterable[str], members: Mapping[str, Member]
    ) -> list[str]:
        if isinstance(machines, bool):
            return list(members) if machines else []
        chosen = [machines] if isinstance(machines, str) else list(machines)
        for name in chosen:
            if name not in members:
                raise GCEError(
                    f"Cluster {self.name} has no machine {name}; it has: {_list(members)}"
                )
        return chosen

    def _choose_sources(
        self, scheduler: bool, workers: bool | Iterable[str], members: Mapping[str, Member]
    ) -> list[_Source]:
        own = "" if self.scheduler is None else self._scheduler.name
        chosen = [_Source("Scheduler", (), own, scheduler=True)] if scheduler else []
        # A copy: workers come and go in the loop's thread.
        known = {
            address: str(worker["name"])
            for address, worker in list(self.scheduler_info["workers"].items())
        }
        by_machine: dict[str, list[str]] = {}
        for address, name in known.items():
            by_machine.setdefault(self._machine_of(name), []).append(address)
        gone = self._gone_machines(members)
        if not isinstance(workers, bool):
            named = [workers] if isinstance(workers, str) else workers
            return chosen + [
                self._find_source(each, known, by_machine, members, gone) for each in named
            ]
        if not workers:
            return chosen
        for machine, addresses in by_machine.items():
            alone = len(addresses) == 1 and self._workers_of([machine]) == {known[addresses[0]]}
            if alone and machine != own:
                chosen.append(_Source(addresses[0], (addresses[0],), machine))
                continue
            chosen += [_Source(address, (address,)) for address in addresses]
            if machine in members and machine != own:
                chosen.append(_Source(machine, (), machine))
        chosen += [
            _Source(name, (), name) for name in members if name not in by_machine and name != own
        ]
        return chosen + [_Source(name, (), name) for name in gone if name not in by_machine]

    def _find_source(
        self,
        key: str,
        known: Mapping[str, str],
        by_machine: Mapping[str, list[str]],
        members: Mapping[str, Member],
        gone: Collection[str],
    ) -> _Source:
        """Return what is meant by the name of a machine or worker, or by a worker's address."""
        if key in members or key in gone or self._board.knows(key):
            return _Source(key, tuple(by_machine.get(key, ())), key)
        for address, name in known.items():
            if key in (address, name):
                machine = self._machine_of(name)
                return _Source(key, (address,), machine if len(by_machine[machine]) == 1 else "")
        there = list(dict.fromkeys([*known.values(), *members, *gone]))
        raise GCEError(
            f"Cluster {self.name} has no worker and no machine {key}; it has: {_list(there)}"
        )

    def _gone_machines(self, members: Mapping[str, Member]) -> list[str]:
        """Return the names of machines that have failed and are no more, the last to fail first."""
        failed = [str(getattr(each, "name", "") or "") for each in reversed(self.failures)]
        names = dict.fromkeys(name for name in failed if name and name not in members)
        return list(names)[:GONE]

    # -- reading ----------------------------------------------------------------------------------

    async def _read_dask(self, addresses: Collection[str], *, own: bool) -> DaskLogs:
        if not own and not addresses:
            return DaskLogs()
        connections = self.scheduler_comm
        if self._lost is not None:
            return DaskLogs(obstacle=str(self._lost).partition("\n")[0])
        if connections is None or self.status != Status.running:
            return DaskLogs(obstacle="it is not connected")
        return await read_dask_logs(connections, addresses, own=own)

    async def _read_consoles(
        self, sources: Iterable[_Source], members: Mapping[str, Member], *, named: bool
    ) -> dict[str, Console]:
        """Read the consoles of machines that are there; of the others there is what was kept."""
        wanted = [each for each in sources if each.machine]
        zones = {
            each.machine: members[each.machine].zone for each in wanted if each.machine in members
        }
        found: dict[str, Console] = {}
        if len(zones) > CONSOLES and not named:
            of_interest = [each.machine for each in wanted if each.scheduler]
            of_interest += [
                each.machine for each in wanted if not each.workers and not each.scheduler
            ]
            chosen = {name: zones[name] for name in of_interest if name in zones}
            chosen = dict(list(chosen.items())[:CONSOLES])
            why = (
                f"there are {len(zones)} machines, and consoles are read of {CONSOLES} at most; "
                "for this one: get_logs(workers=[NAME])"
            )
            found = {name: Console(obstacle=why) for name in zones.keys() - chosen.keys()}
            zones = chosen
        if zones and self.status not in (Status.closed, Status.failed):
            found.update(await read_consoles(self._ready.compute, zones))
        kept = {} if self._fleet is None else self._fleet.last_consoles
        tails = {
            getattr(each, "name", ""): getattr(each, "serial_tail", "") for each in self.failures
        }
        for name in {each.machine for each in wanted}:
            if name not in found or (found[name].obstacle and name not in members):
                text = kept.get(name) or tails.get(name) or ""
                if text:
                    found[name] = Console(text, cut=True)
        return found

    def _events_by_machine(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for event in self.events:
            found.setdefault(event.instance, []).append(str(event))
        return found


def _compose(
    source: _Source,
    dask: DaskLogs,
    consoles: Mapping[str, Console],
    events: Mapping[str, list[str]],
) -> str:
    """Return one log, with notes in brackets of what it lacks."""
    notes: list[str] = []
    entries: list[LogEntry] = list(dask.scheduler) if source.scheduler else []
    for address in source.workers:
        told = dask.workers.get(address)
        entries += told or ()
        if told is None and not dask.obstacle:
            notes.append(f"the worker at {address} did not tell its log")
        elif told is not None and len(told) >= dask.lines:
            notes.append(f"of what the worker logged, the last {dask.lines} entries")
    if dask.obstacle and (source.scheduler or source.workers):
        notes.append(f"the scheduler does not tell what Dask logged: {dask.obstacle.rstrip('.')}")
    console = consoles.get(source.machine, Console())
    if console.obstacle:
        notes.append(f"the serial console was not read: {console.obstacle.rstrip('.')}")
    elif console.cut:
        notes.append("of the serial console, the end")
    lines = [f"[{harmless(note)}]" for note in notes]
    if not source.workers and not source.scheduler:
        # All that is known of a machine without Dask.
        lines += map(harmless, events.get(source.machine, ()))
    if text := merge(console.text, entries):
        lines.append(text)
    return "\n".join(lines)


def _list(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - TOLD_NAMES} more" if len(found) > TOLD_NAMES else ""
    return ", ".join(found[:TOLD_NAMES]) + more
