"""How a cluster shows itself in a notebook: its machines, its limits, its cost and the way to it.

Owns what is shown, and that it costs the same however many workers there are: it is made anew twice
a second, on the event loop that also keeps the connection to the scheduler. The controls beside it,
which scale the cluster, are Dask's own.
"""

from __future__ import annotations

import html
import itertools
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dask.widgets.widgets import get_template
from distributed.objects import SchedulerInfo

from dask_gce.html_tables import render_link, render_row
from dask_gce.machine_logs import LoggedCluster
from dask_gce.machine_tables import MachineList, render_machines

__all__ = ["WidgetCluster"]

#: Workers that are listed one by one.
SHOWN = 20


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
