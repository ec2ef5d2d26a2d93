"""Install on this machine what the user wants beside what there is. Nothing but standard library.

In a container the packages are added to those of the image, in an environment of their own on top
of it. Without one, vm.sh has built the whole environment already. What is left for both are the
wheels that no index has: the scheduler hands them out, and `wheelhouse.py` fetches them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Where the startup script has put this program, and those that go with it.
HERE = Path(__file__).parent
#: Written into an environment when all that an index has is in it.
COMPLETE = "dask-gce-complete"
#: Lines and characters of an installer's output that a failure repeats.
TAIL, LENGTH = 8, 600

#: Seconds that stand for no limit: whoever waits so long ends with the scheduler.
FOR_EVER = 1e9

PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!-]+)")


def explain(output: str) -> str:
    """Return the end of an installer's output in a form that a phase can hold."""
    end = " ".join(output.strip().splitlines()[-TAIL:])
    return " ".join(end.encode("ascii", "ignore").decode().split())[:LENGTH]


def is_there(line: str) -> bool:
    """Tell whether an exact requirement is met by what is installed."""
    found = PIN.fullmatch(line.strip())
    if found is None:
        return False
    try:
        version = importlib.metadata.version(found[1])
    except importlib.metadata.PackageNotFoundError:
        return False
    return version == found[2] or version.startswith(found[2] + "+")


class Packages:
    """The packages that the metadata names."""

    def __init__(
        self,
        metadata: Callable[..., str],
        phase: Callable[[str], object],
        refuse: Callable[[str], object],
    ) -> None:
        self._metadata, self._phase, self._refuse = metadata, phase, refuse
        self._summary = self._item("environment-summary")
        self._begun = time.monotonic()
        self._waiting: list[str] = []
        #: What the client has to send.
        self.wheels: list[dict[str, Any]] = json.loads(self._item("wheels", "[]"))
        #: What Dask's process needs in its environment.
        self.variables: dict[str, str] = {}
        #: The Python that Dask runs in, and the command line that is `dask`.
        self.python, self.dask = "python3", ["dask"]
        # Written into the environment when these very wheels are in it too.
        digest = hashlib.sha256(json.dumps(self.wheels).encode()).hexdigest()
        self._has_wheels = f"dask-gce-wheels-{digest[:32]}"
        self._uv = (HERE / "uv").read_text() if (HERE / "uv").exists() else None
        if self._uv is None:
            places = Path(tempfile.gettempdir()) / "dask-gce-environments"
            self._folder = places / self._item("environment")
        else:
            self._folder = Path(sys.prefix)

    def _item(self, name: str, *default: str) -> str:
        return self._metadata(f"attributes/dask-gce-{name}", *default)

    def _run(self, command: list[str], what: str) -> None:
        """Run an installer; if it fails, end with what it said last."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            print(done.stdout, flush=True)
            self._refuse(f"{what}: {explain(done.stdout)}")

    # -- what an index has ------------------------------------------------------------------------

    def build(self) -> None:
        """Add to a container's image what it does not have; vm.sh has built all the rest."""
        if self._uv is not None:
            self._take(Path(sys.executable))
        else:
            given = self._item("requirements")
            missing = [line for line in given.splitlines() if line and not is_there(line)]
            if missing or self.wheels:
                self._take(self._folder / "bin" / "python")
                self._add(given, missing)
            else:
                print("dask-gce: the image has all that environment names", flush=True)
        if not self.wheels:
            self._tell_ready()

    def _take(self, python: Path) -> None:
        self.python, self.dask = str(python), [str(python), "-m", "dask"]
        path = os.environ.get("PATH", os.defpath)
        self.variables["PATH"] = f"{python.parent}{os.pathsep}{path}"

    def _add(self, given: str, missing: list[str]) -> None:
        if (self._folder / COMPLETE).exists():
            return  # the container has been restarted
        self._phase("environment-building")
        self._make_folder()
        file = self._item("requirements-file")
        lock = file.endswith(".toml")
        if missing:
            path = self._folder / file
            path.write_text(given if lock else "\n".join(missing) + "\n")
            options = [*self._item("install-options").split(), "--requirement", str(path)]
            what = f"the environment ({self._summary}) cannot be added to the container image"
            here, client = "{}.{}".format(*sys.version_info), self._item("python")
            if here != client:
                # Versions of the client's need not exist for another Python.
                what += f", which has Python {here} (the client has {client})"
            self._run([*self._installer(lock), *options], what)
        (self._folder / COMPLETE).touch()

    def _make_folder(self) -> None:
        venv.create(self._folder, system_site_packages=True, clear=True)
        inner = sysconfig.get_path("purelib", "venv", {"base": str(self._folder)})
        # An image's Python may itself be an environment, on which another one does not build.
        folders = [each for each in site.getsitepackages() if each.startswith(sys.prefix)]
        lines = [f"import site; site.addsitedir({each!r})\n" for each in folders]
        Path(inner, "dask_gce_image.pth").write_text("".join(lines))

    def _installer(self, lock: bool = False, alone: bool = False) -> list[str]:
        """Return the command line of an installer, but for what to install."""
        uv = self._uv or shutil.which("uv")
        has_pip = not lock and importlib.util.find_spec("pip") is not None
        # pip leaves in place what the image has already, which uv would install again. For what
        # needs nothing else uv is quicker.
        if self._uv is None and has_pip and not (alone and uv):
            quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
            return [self.python, "-m", "pip", "install", *quiet]
        if uv is None:
            need = "no uv, which a lock file needs" if lock else "neither pip nor uv"
            self._refuse(f"container_image has {need}, to add the packages of environment")
        return [str(uv), "pip", "install", "--quiet", "--no-progress", "--python", self.python]

    def _tell_ready(self) -> None:
        if self._uv is None or self.wheels:  # else vm.sh has told
            took = time.monotonic() - self._begun
            print(
                f"dask-gce: the environment ({self._summary}) was ready after {took:.2f} s more",
                flush=True,
            )
        self._phase("environment-ready")

    # -- what only the client has -----------------------------------------------------------------

    def _plan(self, folder: Path, contact: str, security: Any, timeout: float) -> Path:
        """Write down for `wheelhouse.py` what there is to do."""
        path = folder / "wheels.json"
        plan = {
            "wheels": self.wheels,
            "folder": str(self._folder.parent / "dask-gce-wheels"),
            "install": [*self._installer(alone=True), "--no-deps", "--no-index"],
            "installed": str(self._folder / self._has_wheels),
            "contact": contact,
            # Paths of certificates, not what is in them.
            "security": security,
            "timeout": timeout,
        }
        path.write_text(json.dumps(plan))
        return path

    def serve(self, folder: Path) -> None:
        """Have the scheduler take wheels and hand them out."""
        self.variables["DASK_GCE_WHEELS"] = str(self._plan(folder, "", None, 0))
        self._tell_ready()

    def fetch(self, folder: Path, contact: str, security: Any, timeout: float) -> None:
        """Get the wheels from the scheduler and install them."""
        if not (self._folder / self._has_wheels).exists():
            self._phase("environment-building: packages of the client")
            plan = self._plan(folder, contact, security, timeout)
            self._run(
                [self.python, str(HERE / "wheelhouse.py"), "fetch", str(plan)],
                "the packages of the client cannot be had",
            )
        self._tell_ready()

    def await_here(self, folder: Path, contact: str, security: Any) -> None:
        """Have workers beside the scheduler wait until it has the wheels."""
        if self.wheels:
            plan = self._plan(folder, contact, security, FOR_EVER)
            self._waiting = [self.python, str(HERE / "wheelhouse.py"), "wait", str(plan)]

    def has_come(self) -> bool:
        """Wait until the scheduler of this machine has the wheels; tell whether it has."""
        return not self._waiting or subprocess.run(self._waiting, check=False).returncode == 0
