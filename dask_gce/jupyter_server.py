"""The Jupyter server on the scheduler's machine, as its cluster sees it.

Owns the link to it: where it is by the way that leads to the scheduler, and the token, which the
scheduler tells over the cluster's own connections. The server is `guest/notebook_server.py`.
"""

from __future__ import annotations

import logging
from urllib.parse import urlencode, urlsplit, urlunsplit

from dask_gce import shared_plan
from dask_gce.attendance import AttendedCluster
from dask_gce.errors import GCEError
from dask_gce.probing import UNREACHABLE

__all__ = ["JupyterCluster", "link_to"]

logger = logging.getLogger(__name__)


def link_to(dashboard: str, path: str, token: str) -> str:
    """Return the address of a Jupyter server, for a browser.

    Parameters
    ----------
    dashboard : str
        The address of the dashboard, on whose port it is.
    path : str
        Its path there.
    token : str
        What it asks for.

    Returns
    -------
    str
        The address; empty if there is no dashboard to be reached.

    Examples
    --------
    >>> link_to("http://10.0.0.5:8787/status", "/jupyter/lab", "7f3a")
    'http://10.0.0.5:8787/jupyter/lab?token=7f3a'
    """
    found = urlsplit(dashboard)
    if not found.netloc:
        return ""
    return urlunsplit((found.scheme, found.netloc, path, urlencode({"token": token}), ""))


class JupyterCluster(AttendedCluster):
    """A cluster whose scheduler's machine may have a Jupyter server."""

    #: Path and token, as the scheduler told them; not for logs or representations.
    _jupyter: tuple[str, str] | None = None

    @property
    def jupyter_link(self) -> str:
        """The address of the Jupyter server beside the scheduler, with its token.

        Whoever has it runs code on the scheduler's machine. Empty without ``jupyter=True``, and
        where the dashboard cannot be reached.
        """
        if self._jupyter is None:
            return ""
        return link_to(self.dashboard_link, *self._jupyter)

    async def _learn_jupyter(self) -> None:
        """Ask the scheduler for the token, if there is a server."""
        if not self.settings.jupyter:
            return
        try:
            told = await shared_plan.answer(self.scheduler_comm.dask_gce_jupyter())
        except UNREACHABLE as error:
            raise GCEError(
                f"The scheduler of {self.name} does not tell the token of its Jupyter server: "
                f"{error}"
            ) from error
        self._jupyter = (str(told["path"]), str(told["token"]))

    async def _reconnect(self) -> None:
        await super()._reconnect()
        try:
            # A machine that has started anew has a new one.
            await self._learn_jupyter()
        except GCEError as error:
            logger.info("%s", error)
