"""``terraform`` as tests run it: with the stand-in for the google provider, and with no network.

Owns the provider's process, and the environment of each command. Nothing of Terraform is installed
or kept outside the folder that a test gives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_provider
import plugin
import schema

#: Seconds that a command may take.
PATIENCE = 250.0


def find_obstacle() -> str | None:
    """Tell why Terraform cannot be run; None if it can."""
    if _program() is None:
        return "neither terraform nor tofu is installed"
    return schema.find_obstacle()


def _program() -> str | None:
    return shutil.which("terraform") or shutil.which("tofu")


class Terraform:
    """Terraform, in one folder.

    Parameters
    ----------
    folder : Path
        Where the configuration is, and the state will be.
    providers : str
        Where a provider listens, as Terraform is told.
    """

    def __init__(self, folder: Path, providers: str) -> None:
        self.folder = folder
        self._providers = providers

    def environment(self) -> dict[str, str]:
        """Return the environment of a command, but for its workspace."""
        settings = self.folder / "terraform.rc"
        # One that is empty, so that nobody's own has a say.
        settings.touch()
        return {
            "CHECKPOINT_DISABLE": "1",
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "TF_CLI_ARGS": "-no-color",
            "TF_CLI_CONFIG_FILE": str(settings),
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "TF_REATTACH_PROVIDERS": self._providers,
            "TMPDIR": tempfile.gettempdir(),
            # Whatever would be asked outside is asked of nobody, and fails.
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
        }

    def start(self, *arguments: str, workspace: str = "default") -> subprocess.Popen[str]:
        """Start a command."""
        program = _program()
        assert program is not None
        return subprocess.Popen(
            [program, *arguments],
            cwd=self.folder,
            env={**self.environment(), "TF_WORKSPACE": workspace},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0, workspace: str = "default") -> str:
        """Run a command; return what it printed."""
        with self.start(*arguments, workspace=workspace) as running:
            try:
                output, errors = running.communicate(timeout=PATIENCE)
            finally:
                if running.poll() is None:
                    running.kill()
        assert running.returncode == status, f"{running.returncode}\n{output}\n{errors}"
        return output

    def read(self, *arguments: str, workspace: str = "default") -> Any:
        """Run a command; return the JSON that it printed."""
        command, *rest = arguments
        return json.loads(self.run(command, "-json", *rest, workspace=workspace))

    def write(self, document: Mapping[str, Any]) -> None:
        """Write a configuration."""
        text = json.dumps(document, indent=2)
        (self.folder / "main.tf.json").write_text(text, encoding="utf-8")


@contextmanager
def terraform_at(folder: Path, endpoint: str) -> Iterator[Terraform]:
    """Run Terraform with a provider that serves one API."""
    # A path of a socket has 107 characters at the most.
    with tempfile.TemporaryDirectory(prefix="tf-") as scratch:
        socket = Path(scratch, "s")
        with subprocess.Popen(
            [sys.executable, google_provider.__file__, str(socket), endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as provider:
            assert provider.stdout is not None
            try:
                assert provider.stdout.readline() == "ready\n"
                where = plugin.reattachment(google_provider.NAMES, socket, provider.pid)
                yield Terraform(folder, where)
            finally:
                # The end of its standard input is its end.
                provider.communicate(timeout=PATIENCE)
