"""The containers of one machine: what is known of each, and what can be asked of it.

Owns their files below ``docker`` on the machine's disk, which outlive a boot. They are made in
:mod:`new_containers` and run by :mod:`container_runs`; the command line is :mod:`docker`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from typing import Any

from . import machine_files as machine

__all__ = [
    "Container",
    "ContainerError",
    "digest",
    "end_all",
    "everything",
    "find",
    "keepers",
]


class ContainerError(Exception):
    """A container cannot be made or removed."""


def digest(text: str) -> str:
    """Return 64 hexadecimal digits that stand for a text.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    str
        The digits.
    """
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


@dataclass
class Container:
    """A container, as its file describes it.

    Parameters
    ----------
    id : str
        64 hexadecimal digits.
    name : str
        The name.
    image : str
        The image's reference.
    command : list of str
        What runs.
    environment : dict of str
        Its whole environment.
    folder : str
        Its working directory.
    restart : str
        The restart policy.
    transient : bool
        Whether it is removed when it ends.
    """

    id: str
    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    folder: str
    restart: str
    transient: bool

    @property
    def path(self) -> str:
        """Its folder."""
        return f"{_root()}/{self.id}"

    def _read(self, name: str) -> str | None:
        try:
            with open(f"{self.path}/{name}", encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, value: int | str) -> None:
        """Note something about the container in one step.

        Parameters
        ----------
        name : str
            What.
        value : int or str
            The value.
        """
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            with open(f"{self.path}/{name}.new", "w", encoding="ascii") as file:
                file.write(str(value))
            os.replace(f"{self.path}/{name}.new", f"{self.path}/{name}")

    def running(self) -> bool:
        """Tell whether it runs."""
        keeper = self._read("keeper")
        if keeper is None or self._read("status") is not None:
            return False
        try:
            os.kill(int(keeper), 0)
        except ProcessLookupError:
            return False  # killed: it could not write a status
        return True

    def status(self) -> int:
        """Return its exit status, 0 as long as there is none."""
        return int(self._read("status") or 0)

    def pid(self) -> int | None:
        """Return the process of its command."""
        text = self._read("pid")
        return int(text) if text and self.running() else None

    def stopped(self) -> bool:
        """Tell whether somebody asked it to end, so that no policy restarts it."""
        return self._read("stopped") is not None

    def log(self) -> bytes | None:
        """Return its output; None for an attached container, whose output is not kept."""
        try:
            with open(f"{self.path}/log", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def send(self, name: str) -> None:
        """Send a signal to the command.

        Parameters
        ----------
        name : str
            ``"TERM"``, ``"SIGTERM"`` or a number.
        """
        if name.isdecimal():
            number = int(name)
        else:
            number = signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        if number == signal.SIGKILL:
            self.write("stopped", 1)
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, grace: float) -> None:
        """End it in order, and by force after a while.

        Parameters
        ----------
        grace : float
            Seconds.
        """
        self.write("stopped", 1)
        self.send("TERM")
        deadline = time.monotonic() + grace
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.running():
            self.send("KILL")
            self.wait()

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        while self.running():
            time.sleep(0.01)
        return self.status()

    def remove(self, *, force: bool) -> None:
        """Forget it.

        Parameters
        ----------
        force : bool
            Also if it runs.

        Raises
        ------
        ContainerError
            It runs.
        """
        if self.running():
            if not force:
                raise ContainerError(
                    f'cannot remove container "{self.name}": container is running: '
                    "stop the container before removing or force remove"
                )
            self.send("KILL")
            self.wait()
        shutil.rmtree(self.path, ignore_errors=True)

    def details(self) -> dict[str, Any]:
        """Describe it as ``docker inspect`` does."""
        running = self.running()
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": f"sha256:{digest(self.image)}",
            "Config": {
                "Image": self.image,
                "Cmd": self.command,
                "Entrypoint": None,
                "Env": [f"{name}={value}" for name, value in self.environment.items()],
                "WorkingDir": self.folder,
            },
            "State": {
                "Status": "running" if running else "exited",
                "Running": running,
                "ExitCode": self.status(),
                "OOMKilled": False,
                "Pid": self.pid() or 0,
            },
            "RestartCount": int(self._read("restarts") or 0),
        }


def _root() -> str:
    return f"{machine.disk()}/docker"


def everything() -> list[Container]:
    """Return the machine's containers, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(_root()):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"{entry.path}/config", encoding="ascii") as file,
            ):
                found.append((entry.stat().st_mtime, Container(**json.load(file))))
    return [container for _, container in sorted(found, key=lambda pair: pair[0])]


def keepers(disk: str) -> list[int]:
    """Return the processes that keep the containers of a machine.

    Parameters
    ----------
    disk : str
        The machine's disk.

    Returns
    -------
    list of int
        Process IDs; some may be gone, if something killed them.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(f"{disk}/docker"):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"{entry.path}/keeper", encoding="ascii") as file,
            ):
                if not os.path.exists(f"{entry.path}/status"):  # it has not ended
                    found.append(int(file.read()))
    return found


def end_all(disk: str) -> None:
    """Note of a machine's containers, when it boots, that whatever still ran was killed.

    Parameters
    ----------
    disk : str
        The machine's disk.
    """
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(f"{disk}/docker"):
            if not os.path.exists(f"{entry.path}/status"):
                with open(f"{entry.path}/status", "w", encoding="ascii") as file:
                    file.write(str(128 + signal.SIGKILL))


def find(name: str) -> Container | None:
    """Return the container of a name or the beginning of an ID.

    Parameters
    ----------
    name : str
        Name or ID.

    Returns
    -------
    Container or None
        The container.
    """
    for container in everything():
        if container.name == name.removeprefix("/") or container.id.startswith(name):
            return container
    return None
