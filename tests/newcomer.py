"""A terminal with a person at it, who types and waits.

Owns the pseudo-terminal, and how it is known that what was typed is done: a line is typed behind it
whose output differs from the line itself, so that an echo is not taken for an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Terminal", "TerminalError"]


class TerminalError(Exception):
    """What was typed was not done in time, or its program ended."""


class Terminal:
    """A shell on a terminal of its own.

    Parameters
    ----------
    folder : Path
        Where it starts.
    environment : dict of str to str
        Its environment. Without line editing: ``TERM`` is ``dumb``.
    patience : float
        Seconds that one thing that is typed may take.
    """

    def __init__(self, folder: Path, environment: dict[str, str], patience: float) -> None:
        self._patience = patience
        self._numbers = itertools.count(1)
        self._seen = ""
        self._ours, theirs = pty.openpty()
        try:
            self._shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile", "-i"],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=folder,
                env=environment | {"TERM": "dumb", "PS1": "$ ", "PYTHON_BASIC_REPL": "1"},
                start_new_session=True,
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # As when a window is closed: whoever is in the session is told.
        os.close(self._ours)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._shell.wait(self._patience)
        if self._shell.poll() is None:
            os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()

    def in_bash(self, typed: str) -> str:
        """Type something into bash, and wait until it is done.

        Parameters
        ----------
        typed : str
            One or more lines.

        Returns
        -------
        str
            What was printed meanwhile, with what was typed.

        Raises
        ------
        TerminalError
            If it took too long, or its last command failed.
        """
        number = next(self._numbers)
        printed = self._type(typed, f'echo "did-$?-{number}-it"', rf"did-(\d+)-{number}-it")
        if not re.search(rf"did-0-{number}-it", printed):
            raise TerminalError(f"It failed:\n{printed}")
        return printed

    def in_python(self, typed: str) -> str:
        """Type something into Python, and wait until it is done.

        Parameters
        ----------
        typed : str
            One or more statements; an empty line ends the last one.

        Returns
        -------
        str
            What was printed meanwhile, with what was typed.

        Raises
        ------
        TerminalError
            If it took too long, or raised.
        """
        number = next(self._numbers)
        answer = rf"did-{number}-it"
        printed = self._type(f"{typed.rstrip()}\n", f'print("did-%d-it" % {number})', answer)
        if "Traceback (most recent call last)" in printed or "SyntaxError" in printed:
            raise TerminalError(f"It raised:\n{printed}")
        return printed

    def enter(self, command: str, prompt: str) -> None:
        """Type a command that asks for more, and wait until it does.

        Parameters
        ----------
        command : str
            The command.
        prompt : str
            What it asks with, as a regular expression.
        """
        self._send(command)
        self._wait_for(prompt)

    def _type(self, typed: str, behind: str, answer: str) -> str:
        self._send(typed)
        self._send(behind)
        return self._wait_for(answer)

    def _send(self, line: str) -> None:
        # A terminal's line is 4096 bytes at most, and no more are kept that nobody has read.
        for each in line.split("\n"):
            os.write(self._ours, f"{each}\n".encode())

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + self._patience
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))
            try:
                more = os.read(self._ours, 65_536) if ready else b""
            except OSError:
                # Linux's word for a terminal that nobody has open any more.
                more = b""
            if not more:
                raise TerminalError(f"Waited for {pattern!r} and saw:\n{self._seen}")
            self._seen += more.decode("utf-8", "replace").replace("\r\n", "\n")
        before, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return before
