"""How a cluster shows itself in a notebook: its machines, its limits, its cost and the way to it.

Owns what is shown, and that it costs the same however many workers there are: it is made anew twice
a second, on the event loop that also keeps the connection to the scheduler. The controls beside it,
which scale the cluster, are Dask's own.
"""

from __future__ import annotations

import html
import itertools
from typing import Any, SupportsIndex, overload
from urllib.parse import urlsplit, urlunsplit

from dask.widgets.widgets import get_template
from distributed.objects import SchedulerInfo

from dask_gce.html_tables import render_link, render_row, render_table
from dask_gce.machine_logs import LoggedCluster
from dask_gce.machine_states import MachineState, StateBoard, render_time

__all__ = ["MachineList", "WidgetCluster", "render_machines"]

#: Machines and workers that are listed one by one.
SHOWN = 20

_HEADINGS = ("machine", "state", "since (UTC)", "after", "zone", "type", "")


class WidgetCluster(LoggedCluster):
    """A cluster that shows itself in a notebook."""

    @property
    def machines(self) -> MachineList:
        """The cluster's machines with their states, in the order in which they were asked for.

        Of those that failed, were lost or deleted, the last ones are among them.
        """
        return MachineList(self._board.machines())

    def _repr_html_(self, cluster_status: Any = None) -> Any:
        info, workers = self.scheduler_info, dict(self.scheduler_info["workers"])
        shown = dict(itertools.islice(workers.items(), SHOWN))
        return get_template("cluster.html.j2").render(
            type=type(self).__name__,
            name=html.escape(self.name),
            workers=workers,
            dashboard_link=html.escape(self.dashboard_link),
            # Dask would list all workers.
            scheduler_info_repr=SchedulerInfo({**info, "workers": shown})._repr_html_(),
            cluster_status=f"{cluster_status or ''}{self._render_rows()}" or None,
        )

    def _render_rows(self) -> str:
        """Return what is known of the cluster beyond its workers, as rows of a table."""
        rows = []
        if self._lost is not None:
            rows.append(render_row("Ended", html.escape(str(self._lost).partition("\n")[0])))
        scheduler = self.scheduler
        if scheduler is not None and self._lost is None:
            rows.append(render_row("Way to it", html.escape(str(scheduler.approach.route))))
        if link := self._jupyter_address():
            rows.append(render_row("Jupyter", render_link(link)))
        if self._lost is None:
            rows += [self.limits.render_row(), self._render_cost()]
        if table := render_machines(self._board):
            rows.append(f'<tr><td style="text-align: left;" colspan="2">{table}</td></tr>')
        return "".join(rows)

    def _jupyter_address(self) -> str:
        """Return where Jupyter is, without the token: what is shown is saved with the notebook."""
        link = getattr(self, "jupyter_link", "") if self.settings.jupyter else ""
        if not isinstance(link, str) or not link:
            return ""
        return urlunsplit(urlsplit(link)._replace(query="", fragment=""))


class MachineList(list[MachineState]):
    """Machines with their states: a list, which a notebook shows as a table."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no machines"

    @overload
    def __getitem__(self, index: SupportsIndex) -> MachineState: ...

    @overload
    def __getitem__(self, index: slice) -> MachineList: ...

    def __getitem__(self, index: SupportsIndex | slice) -> MachineState | MachineList:
        if isinstance(index, slice):
            return MachineList(super().__getitem__(index))
        return super().__getitem__(index)

    def _repr_html_(self) -> str:
        rows = [_render_cells(each) for each in itertools.islice(self, 10 * SHOWN)]
        more = len(self) - len(rows)
        return render_table(_HEADINGS, rows, f"and {more} more" if more else "")


def render_machines(board: StateBoard) -> str:
    """Return how many machines are in which state, and those of most interest, as HTML.

    Parameters
    ----------
    board : StateBoard
        The machines' states.

    Returns
    -------
    str
        HTML of about the same size for any number of machines; empty if there is none.
    """
    counts = board.counts()
    if not counts:
        return ""
    heading = ", ".join(f"{count} {state}" for state, count in counts.items())
    shown = board.pick(SHOWN)
    more = sum(counts.values()) - len(shown)
    table = render_table(
        _HEADINGS, map(_render_cells, shown), f"and {more} more" if more > 0 else ""
    )
    return (
        f"<details><summary><strong>Machines:</strong> {html.escape(heading)}</summary>"
        f"{table}</details>"
    )


def _render_cells(machine: MachineState) -> tuple[str, ...]:
    state = f"{machine.state}: {machine.detail}" if machine.detail else machine.state
    after = machine.seconds(machine.state)
    return (
        machine.name,
        state,
        f"{machine.since:%H:%M:%S}",
        "" if after is None else render_time(after),
        machine.zone,
        machine.machine_type,
        "Spot" if machine.spot else "",
    )
