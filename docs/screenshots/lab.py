"""A JupyterLab on this computer, for the pictures in the documentation and for tests.

Owns its life, and that it touches nothing of whoever runs it: its settings, its notebooks and the
configuration of Dask are in a folder of its own.

    with Lab(folder, {"labextension": {"factory": {...}}}) as lab:
        page = browser.open(lab.address("lab"))
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Lab"]

#: Seconds that it may take to start or to end, on a computer that has other things to do.
PATIENCE = 120.0


class Lab:
    """A JupyterLab at a free port of the loopback interface.

    Parameters
    ----------
    folder : Path
        A folder for all that it writes. Its notebooks are in ``work``.
    configuration : mapping
        The configuration of Dask that it, and its kernels, have.
    environment : mapping of str to str
        Variables that it has beside this process's.

    Raises
    ------
    RuntimeError
        If it does not start; the message has what it said.
    """

    def __init__(
        self,
        folder: Path,
        configuration: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = folder / "log"
        self.work = folder / "work"
        self._runtime = folder / "runtime"
        for each in (self.work, folder / "dask"):
            each.mkdir(parents=True)
        # JSON is YAML.
        (folder / "dask" / "labextension.yaml").write_text(json.dumps(configuration))
        quiet = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        variables = {
            **os.environ,
            "DASK_CONFIG": str(folder / "dask"),
            "HOME": str(folder),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self._runtime),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            # Kernels and extensions of the environment that this program runs in come first.
            "JUPYTER_PREFER_ENV_PATH": "1",
            # As in an environment that is activated.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **(environment or {}),
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.port=0",
            f"--ServerApp.root_dir={self.work}",
            # It asks nobody on the network for news.
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.extension_manager=readonly",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._server = self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> dict[str, Any]:
        """Return what it tells of itself when it listens."""
        told = self._runtime / f"jpserver-{self._process.pid}.json"
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            # It is written in one go, but not in one moment.
            with contextlib.suppress(OSError, ValueError):
                found: dict[str, Any] = json.loads(told.read_text())
                return found
            time.sleep(0.05)
        raise RuntimeError(f"JupyterLab did not start:\n{self.said()}")

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def address(self, path: str) -> str:
        """Return where something of it is, with the token that it asks for."""
        port, token = self._server["port"], self._server["token"]
        return f"http://127.0.0.1:{port}/{path}?token={token}"

    def said(self) -> str:
        """Return what it has written to its terminal."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End it as Ctrl-C in its terminal does, with its kernels and its clusters."""
        # The first one asks in a terminal, the second is not waited for.
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
