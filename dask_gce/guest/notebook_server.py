"""A Jupyter server beside the scheduler, for who knows its token: a preload.

Owns the server's life in the scheduler's process, on the dashboard's port below ``/jupyter/``; its
token, made here and known to nobody but who asks for it over the cluster's own connections; and how
notebooks find the scheduler. Dask can do this too (``Scheduler(jupyter=True)``), but its server
lets everybody in who reaches the port, and opens another one without TLS.

Runs with Dask but without the package that sent it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import sys
import urllib.request
from datetime import datetime
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import Scheduler

#: Exit status after the reason was published; start.py and startup.sh know it too.
PHASE_IS_TOLD = 113

PREFIX = "/jupyter/"

REASON = (
    "failed: jupyter: jupyterlab is not installed. Name it in environment, or use a "
    "container_image that has it, or set jupyter to false"
)


def give_up() -> None:
    """End, with the reason on the serial console and as a guest attribute."""
    print("dask-gce phase:", REASON, flush=True)
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/guest-attributes/dask-gce/phase",
        data=REASON.encode(),
        method="PUT",
        headers={"Metadata-Flavor": "Google"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    # They can be forbidden by an organization's policy; the console has it too.
    with contextlib.suppress(OSError):
        opener.open(request, timeout=10).close()
    # No exception of a preload's ends a scheduler in one way for all versions of Dask.
    sys.stdout.flush()
    os._exit(PHASE_IS_TOLD)


# Before the scheduler listens: whoever waits for its port is told the reason instead.
if any(importlib.util.find_spec(name) is None for name in ("jupyter_server", "jupyterlab")):
    give_up()


class NotebookServer(SchedulerPlugin):
    """The Jupyter server of a scheduler."""

    name = "dask-gce-notebook-server"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._token = secrets.token_urlsafe(32)
        self._server: Any = None

    def open(self) -> None:
        """Put it on the dashboard's port."""
        import tornado.web
        from jupyter_server.base.handlers import JupyterHandler
        from jupyter_server.serverapp import ServerApp
        from traitlets.config import Config

        class Stays(JupyterHandler):
            """Refuses to end the server, for Jupyter's way would stop the scheduler's loop."""

            @tornado.web.authenticated
            def post(self) -> None:
                """Say what ends it."""
                raise tornado.web.HTTPError(403, "It ends with its cluster: cluster.close()")

        class Server(ServerApp):
            """Leaves the process's signals to Dask: Jupyter's way stops its loop in the midst.

            And at SIGUSR1 it would log the token.
            """

            def init_signal(self) -> None:
                """Do nothing."""

        self._tell_notebooks()
        self._server = Server.instance(
            config=Config(
                {
                    "ServerApp": {
                        "base_url": PREFIX,
                        "default_url": f"{PREFIX}lab",
                        # Jupyter does not find it by itself where it belongs to the image and
                        # Dask runs in an environment on top of that.
                        "jpserver_extensions": {"jupyterlab": True},
                        # It is reached at addresses and through tunnels that it knows nothing of.
                        # Whoever has a page send requests here lacks the token.
                        "allow_remote_access": True,
                        "quit_button": False,
                        "open_browser": False,
                        "allow_root": True,
                    },
                    "IdentityProvider": {"token": self._token},
                    "LabApp": {
                        # It asks nobody on the network for news.
                        "news_url": None,
                        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
                    },
                }
            )
        )
        self._server.initialize(argv=[], new_httpserver=False)
        # An argument of the user's Jupyter configuration must not have taken its place.
        self._server.identity_provider.token = self._token
        ending = tornado.web.Application([(rf"{PREFIX}api/shutdown", Stays)])
        ending.settings = self._server.web_app.settings
        self._scheduler.http_application.add_application(ending)
        self._scheduler.http_application.add_application(self._server.web_app)

    def _tell_notebooks(self) -> None:
        """Have kernels, which inherit it, connect by ``Client()``: with the scheduler's own keys.

        They run as the user that can read these files.
        """
        scheduler = self._scheduler
        variables = {"DASK_SCHEDULER_ADDRESS": scheduler.address}
        security: Any = scheduler.security
        if scheduler.address.startswith("tls://"):
            prefix = "DASK_DISTRIBUTED__COMM__"
            variables |= {
                f"{prefix}REQUIRE_ENCRYPTION": "True",
                f"{prefix}TLS__CA_FILE": security.tls_ca_file,
                f"{prefix}TLS__CLIENT__CERT": security.tls_scheduler_cert,
                f"{prefix}TLS__CLIENT__KEY": security.tls_scheduler_key,
            }
        os.environ.update(variables)

    async def start(self, scheduler: Scheduler) -> None:
        """Have Dask count work in notebooks as work, and end them with the scheduler.

        From here on, and not earlier: a scheduler that knows while it starts would open a port
        without TLS for notebooks.
        """
        scheduler._jupyter_server_application = self._server
        scheduler.jupyter = True

    def last_activity(self) -> datetime:
        """Tell when somebody last did something in it, by this machine's clock."""
        found: datetime = self._server.web_app.last_activity()
        return found

    async def tell(self) -> dict[str, str]:
        """Tell who may ask a scheduler how to get in."""
        return {"path": f"{PREFIX}lab", "token": self._token}


async def dask_setup(scheduler: Scheduler) -> None:
    """Open the server, and let clusters ask for its token."""
    server = NotebookServer(scheduler)
    server.open()
    scheduler.add_plugin(server)
    scheduler.handlers["dask_gce_jupyter"] = server.tell
    # For the guard, to which work in notebooks is work.
    scheduler.extensions["dask-gce-notebook-server"] = server
