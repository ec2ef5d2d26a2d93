"""A page's blocks, run.

Owns: the page's local Compute Engine, its folders and its environment, the process of its Python
blocks (`page_python` is the program), its bash and what bash leaves running.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import platformdirs
import yaml
from pages import ROOT, Block, Page, find_difference, name_of

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.settings import Settings

#: A page does not wait for machines longer than it must.
TIMINGS = Timings(provisioning=0.01, staging=0.01, deleting=0.05, stopping=5)

#: Seconds for one block: a few machines boot in each of its commands, on a computer that is busy.
PATIENCE = 240.0

#: The project of who names none.
PROJECT = "local-project"

#: What a copy of the repository does not have.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "_build", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)

#: What bash does before and after each block, so that one finds what another has exported.
_BEGIN = 'if [ -e "$PAGE_STATE" ]; then . "$PAGE_STATE"; fi\n'
_END = '\n{ export -p; printf "cd %q\\n" "$PWD"; } > "$PAGE_STATE"\n'


class BlockError(Exception):
    """A block that did not do what its page says."""


def run_page(page: Page, say: Callable[[str], None]) -> list[str]:
    """Run a page from its first block to its last.

    Parameters
    ----------
    page : Page
        The page.
    say : callable
        Told of each block with its seconds.

    Returns
    -------
    list of str
        A text for each block that did not do what the page says.
    """
    failures = []
    with Session(page) as session:
        for block in page.blocks:
            if block.reason is not None:
                continue
            began = time.monotonic()
            try:
                session.run(block)
            except BlockError as error:
                failures.append(f"{block.place} ({block.language}): {error}")
            say(f"{time.monotonic() - began:5.1f} s  {block.place} {block.language}")
    return failures


class Session:
    """Where a page's blocks run, from its beginning to its end.

    Parameters
    ----------
    page : Page
        The page.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._ends = contextlib.ExitStack()
        self._printed = ""
        self._python: Python | None = None
        self._folder = Path()
        self._environment: dict[str, str] = {}
        self._emulator: ComputeEmulator | None = None

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as ends:
            self._folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="page-")))
            for name in ("home", "work", "tmp"):
                (self._folder / name).mkdir()
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def _open(self) -> ComputeEmulator:
        """Return the page's local Compute Engine, which begins with the first block that runs."""
        if self._emulator is None:
            self._emulator = self._ends.enter_context(
                ComputeEmulator(
                    self._page.machines, timings=TIMINGS, tls_port=0 if self._page.tls else None
                )
            )
            self._environment = self._make_environment(self._emulator.endpoint)
            if self._page.tls:
                port = self._emulator.tls_endpoint.rpartition(":")[2]
                self._environment["PAGE_TLS_PORT"] = port
            self._ends.callback(self._end_python)
        return self._emulator

    def _make_environment(self, endpoint: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DASK", "XDG_", "CLOUDSDK", "GOOGLE", "PYTEST"))
        }
        home = self._folder / "home"
        return {
            **kept,
            "HOME": str(home),
            "LOGNAME": "ada",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # Where machine images are kept from one run to the next.
            "XDG_CACHE_HOME": str(Path(platformdirs.user_cache_dir("dask-gce")).parent),
            "TMPDIR": str(self._folder / "tmp"),
            "PAGE_PORT": endpoint.rpartition(":")[2],
            "PAGE_PROJECT": PROJECT,
            "PAGE_STATE": str(self._folder / "exported"),
            "PYTHONWARNINGS": "ignore::FutureWarning",
            "DASK_GCE__API_ENDPOINT": endpoint,
            "CLOUDSDK_CONFIG": str(home / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{endpoint}/compute/v1/",
        }

    def run(self, block: Block) -> None:
        """Run a block.

        Raises
        ------
        BlockError
            It did not do what the page says.
        """
        emulator = self._open()
        if "new session" in block.markers:
            self._end_python()
        text = block.text.replace("/tmp/", f"{self._folder / 'tmp'}/")
        run = {
            "python": self._run_python,
            "pycon": self._run_pycon,
            "bash": self._run_bash,
            "yaml": self._check_yaml,
            "text": self._compare,
        }[block.language]
        expected = block.markers.get("fails")
        try:
            run(block, text)
        except BlockError as error:
            if expected is None or " ".join(expected.split()) not in " ".join(str(error).split()):
                raise
            self._printed += str(error)
        else:
            if expected is not None:
                raise BlockError(f"it should fail with: {expected}")
        del emulator

    def _run_python(self, block: Block, text: str) -> None:
        mode = "plan" if "plan" in block.markers else "exec"
        self._printed = self._ask(place=block.place, mode=mode, code=text)

    def _run_pycon(self, block: Block, text: str) -> None:
        self._printed = self._ask(place=block.place, mode="pycon", code=text)
        shown = "\n".join(
            line for line in text.splitlines() if not line.startswith((">>> ", "... "))
        )
        self._find(block, shown)

    def _ask(self, **request: str) -> str:
        if self._python is None:
            self._python = Python(self._exported(), self._folder / "work")
        return self._python.ask(request)

    def _end_python(self) -> None:
        if self._python is not None:
            python, self._python = self._python, None
            python.close()

    def _exported(self) -> dict[str, str]:
        """Return the environment, with what bash has exported."""
        command = [*_bash(), f"{_BEGIN} env -0"]
        done = subprocess.run(command, env=self._environment, capture_output=True, check=True)
        pairs = (pair.partition("=") for pair in done.stdout.decode().split("\0") if pair)
        return {key: value for key, _, value in pairs}

    def _run_bash(self, block: Block, text: str) -> None:
        if not block.hidden:
            for name, value in self._exported().items():
                word = name.removeprefix("PAGE_")
                if word not in (name, "STATE"):
                    text = re.sub(rf"(?<![\w$-]){word}(?![\w-])", value, text)
        folder = self._folder / "work"
        if "in checkout" in block.markers:
            folder = self._checkout()
            text = f"cd {folder}\n{text}\ncd {self._folder / 'work'}"
        if "keeps running" in block.markers:
            self._start(text, block.markers["keeps running"])
            return
        if "answers" in block.markers:
            text = _BEGIN + text + _END
            self._printed = _run_at_terminal(
                text, self._environment, self._folder / "work", block.markers["answers"]
            )
            return
        self._printed = self._shell(text)

    def _shell(self, text: str) -> str:
        return _run(_BEGIN + text + _END, self._environment, self._folder / "work")

    def _checkout(self) -> Path:
        folder = self._folder / "checkout"
        if not folder.exists():
            shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        return folder

    def _start(self, text: str, sign: str) -> None:
        """Start what runs until the page ends; return when it has said something."""
        said = self._folder / f"said-{time.monotonic_ns()}"
        with said.open("w") as output:
            running = subprocess.Popen(
                [*_bash(), _BEGIN + text],
                cwd=self._folder / "work",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ends.callback(_interrupt, running)
        deadline = time.monotonic() + PATIENCE
        while sign not in said.read_text():
            if running.poll() is not None or time.monotonic() > deadline:
                raise BlockError(f"it has not said {sign!r}, but:\n{said.read_text()}")
            time.sleep(0.05)
        self._printed = said.read_text()

    def _check_yaml(self, block: Block, text: str) -> None:
        try:
            loaded = yaml.safe_load(text)
            if "gce" in loaded:
                with dask.config.set(dask.config.merge({}, loaded)):
                    Settings.load(project=PROJECT)
        except Exception as error:
            raise BlockError(f"{type(error).__name__}: {error}") from error

    def _compare(self, block: Block, text: str) -> None:
        if command := block.markers.get("output of"):
            self._printed = self._shell(command)
        elif code := block.markers.get("value of"):
            self._printed = self._ask(place=block.place, mode="exec", code=f"print({code})")
        self._find(block, text)

    def _find(self, block: Block, shown: str) -> None:
        line = find_difference(
            shown,
            self._printed,
            other_numbers="other numbers" in block.markers,
            any_order="any order" in block.markers,
        )
        if line is not None:
            raise BlockError(f"this is not there:\n  {line}\nbut:\n{self._printed}")


class Python:
    """The process in which a page's Python blocks run.

    Parameters
    ----------
    environment : dict
        Its environment.
    folder : Path
        Its working folder.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("page_python.py"))],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ask(self, request: dict[str, str]) -> str:
        """Run code; return what it has printed.

        Raises
        ------
        BlockError
            It raised, ended the process, or did not end.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._read()
        if answer["error"] is not None:
            raise BlockError(f"{answer['error']}\n{answer['printed']}")
        return str(answer["printed"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = b""
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    # The blocks behind it are not to wait as long, each of them.
                    _kill(self._process)
                    raise BlockError(f"it has not ended after {PATIENCE:.0f} s")
                piece = os.read(self._process.stdout.fileno(), 2**16)
                if not piece:
                    raise BlockError("the process has ended")
                line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process as an interpreter ends that has nothing more to do."""
        with self._process:
            try:
                self._process.communicate(timeout=PATIENCE)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                pass
            finally:
                _kill(self._process)


def _bash() -> list[str]:
    return ["bash", "-euo", "pipefail", "-c"]


def _run(text: str, environment: dict[str, str], folder: Path) -> str:
    """Run text in bash; return what it printed."""
    with subprocess.Popen(
        [*_bash(), text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            output, errors = running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise BlockError(f"it has not ended after {PATIENCE:.0f} s") from error
        finally:
            _kill(running)
    if running.returncode:
        raise BlockError(f"exit status {running.returncode}\n{output}\n{errors}")
    return output + errors


def _run_at_terminal(text: str, environment: dict[str, str], folder: Path, answer: str) -> str:
    """Run text in bash at a terminal at which something is typed; return what it showed."""
    ours, theirs = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(
            [*_bash(), text],
            cwd=folder,
            env={**environment, "TERM": "xterm", "COLUMNS": "120"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as running:
            os.close(theirs)
            os.write(ours, f"{answer}\n".encode())
            deadline = time.monotonic() + PATIENCE
            try:
                while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    piece = os.read(ours, 2**16)
                    if not piece:
                        break
                    shown += piece
            except OSError:
                pass  # so Linux says that nobody has the terminal any more
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(max(1.0, deadline - time.monotonic()))
                _kill(running)
    finally:
        os.close(ours)
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
    if running.returncode:
        raise BlockError(f"exit status {running.returncode}\n{output}")
    return output


def _interrupt(running: subprocess.Popen[Any]) -> None:
    with running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGINT)
        try:
            running.wait(PATIENCE)
        finally:
            _kill(running)


def _kill(running: subprocess.Popen[Any]) -> None:
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)


def check_unrun(block: Block) -> str | None:
    """Tell what is wrong with a block that is not run here; None if nothing is."""
    if "excerpt of" in block.markers:
        path = ROOT / block.markers["excerpt of"]
        if not path.is_file():
            return f"there is no {path}"
        line = find_difference(block.text, path.read_text("utf-8"))
        return None if line is None else f"this is not in {name_of(path)}: {line}"
    if "run by" in block.markers:
        path = ROOT / block.markers["run by"]
        if not path.is_file():
            return f"there is no {path}"
        text = path.read_text("utf-8")
        page = block.place.partition(":")[0]
        wanted = (
            ".*".join(rf"(?<![\w-]){re.escape(w)}(?![\w-])" for w in one.split())
            for one in commands_of(block)
        )
        if Path(page).name in text or all(re.search(one, text) for one in wanted):
            return None
        return f"{name_of(path)} does neither name {page} nor have its commands"
    if block.language == "python":
        try:
            compile(block.text, block.place, "exec", flags=0x2000)  # with await at the top level
        except SyntaxError as error:
            return str(error)
    if block.language == "bash":
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        return done.stderr or None
    return None


def commands_of(block: Block) -> Iterator[str]:
    """Yield the commands of a block of bash, each on a line of its own, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s)#.*$", "", line).strip()
        if command:
            yield " ".join(command.split())
