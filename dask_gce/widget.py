"""How a cluster shows itself in a notebook: its machines, its limits, its cost and the way to it.

Owns what is shown, and that it costs the same however many workers there are: it is made anew twice
a second, on the event loop that also keeps the connection to the scheduler. Dask would list all
workers, and compiles its templates each time. The controls beside it, which scale the cluster, are
Dask's own. A table of machines has a tab of its own, which stays open while its content changes.
"""

from __future__ import annotations

import html
import importlib
import itertools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dask
from dask.utils import format_bytes, parse_timedelta
from tornado.ioloop import PeriodicCallback

from dask_gce.html_tables import render_link, render_row, render_table
from dask_gce.machine_logs import LoggedCluster
from dask_gce.machine_tables import MachineList, render_counts, render_machines, render_picked

__all__ = ["WidgetCluster"]

#: Workers and machines that are listed one by one.
SHOWN = 20

_HEADINGS = ("worker", "address", "threads", "memory")

#: Looks as other clusters of Dask do.
_PAGE = """
<div class="jp-RenderedHTMLCommon jp-RenderedHTML jp-mod-trusted jp-OutputArea-output">
  <div style="width: 24px; height: 24px; background-color: #e1e1e1; border: 3px solid #9D9D9D; \
border-radius: 5px; position: absolute;"></div>
  <div style="margin-left: 48px;">
    <h3 style="margin-bottom: 0px; margin-top: 0px;">{type}</h3>
    <p style="color: #9D9D9D; margin-bottom: 0px;">{name}</p>
    <table style="width: 100%; text-align: left;">
      <tr>
        <td style="text-align: left;"><strong>Dashboard:</strong> {dashboard}</td>
        <td style="text-align: left;"><strong>Workers:</strong> {workers}</td>
      </tr>
      <tr>
        <td style="text-align: left;"><strong>Total threads:</strong> {threads}</td>
        <td style="text-align: left;"><strong>Total memory:</strong> {memory}</td>
      </tr>
      {rows}
    </table>
    <details>
      <summary style="margin-bottom: 20px;"><h3 style="display: inline;">Scheduler Info</h3>\
</summary>
      {listed}
    </details>
  </div>
</div>
"""


class WidgetCluster(LoggedCluster):
    """A cluster that shows itself in a notebook."""

    @property
    def machines(self) -> MachineList:
        """The cluster's machines with their states, in the order in which they were asked for.

        Of those that failed, were lost or deleted, the last ones are among them.
        """
        return MachineList(self._board.machines())

    def _repr_html_(self, cluster_status: Any = None) -> Any:
        # A copy: workers come and go in the loop's thread.
        workers = dict(self.scheduler_info["workers"])
        threads = sum(each["nthreads"] for each in workers.values())
        memory = sum(each["memory_limit"] or 0 for each in workers.values())
        return _PAGE.format(
            type=html.escape(type(self).__name__),
            name=html.escape(self.name),
            dashboard=render_link(self.dashboard_link),
            workers=len(workers),
            threads=threads,
            memory=format_bytes(memory),
            rows=f"{cluster_status or ''}{self._render_rows()}",
            listed=_render_workers(str(self.scheduler_address), workers),
        )

    def _widget(self) -> Any:
        """Add a table of machines to the widget that Dask makes; None without ipywidgets."""
        known = "_cached_widget" in vars(self)
        tab = super()._widget()
        if known or tab is None:
            return tab
        machines = importlib.import_module("ipywidgets").HTML(self._render_machines())
        tab.children = (*tab.children, machines)
        tab.set_title(len(tab.children) - 1, "Machines")

        def update() -> None:
            # Sent to the browser only if it is another one.
            machines.value = self._render_machines()

        def install() -> None:
            interval = dask.config.get("distributed.deploy.cluster-repr-interval", default="500ms")
            callback = PeriodicCallback(update, parse_timedelta(interval) * 1000)
            self.periodic_callbacks["machines-repr"] = callback
            callback.start()

        if self.loop is not None:
            self.loop.add_callback(install)
        return tab

    def _render_machines(self) -> str:
        counts = html.escape(render_counts(self._board)) or "none yet"
        return f"<p>{counts}</p>{render_picked(self._board, SHOWN)}"

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
        return urlunsplit(urlsplit(self.jupyter_link)._replace(query="", fragment=""))


def _render_workers(scheduler: str, workers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scheduler's address and the first workers, as HTML."""
    rows = [
        (
            str(each["name"]),
            address,
            str(each["nthreads"]),
            format_bytes(each["memory_limit"]) if each["memory_limit"] else "",
        )
        for address, each in itertools.islice(workers.items(), SHOWN)
    ]
    more = len(workers) - len(rows)
    table = render_table(_HEADINGS, rows, f"and {more} more" if more else "")
    return f"<p>{html.escape(scheduler)}</p>{table}"
