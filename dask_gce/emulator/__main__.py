"""``python -m dask_gce.emulator``: the local Compute Engine as a program of its own.

Owns: the command line, the address and token files, the program that is run as a client, the ending
on SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines import KINDS
from dask_gce.emulator.timings import read_timings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dask_gce.emulator",
        usage="%(prog)s [options] [-- COMMAND ...]",
        description="Run a local Compute Engine on 127.0.0.1 until it is interrupted, or as long as"
        " COMMAND runs: where clients reach the machines, with DASK_GCE__API_ENDPOINT set.",
    )
    parser.add_argument("--port", type=int, default=0, help="the port; 0 takes a free one")
    parser.add_argument(
        "--tls-port",
        type=int,
        metavar="PORT",
        help="a port on which the same is answered over TLS, as gcloud's tunnels want it",
    )
    parser.add_argument(
        "--machines", choices=KINDS, default=KINDS[0], help="what the instances are made of"
    )
    parser.add_argument(
        "--address-file", type=Path, metavar="FILE", help="write the address here, once it answers"
    )
    parser.add_argument(
        "--project",
        action="append",
        metavar="ID",
        help="a project that exists; may be repeated; without it every well-formed ID does",
    )
    parser.add_argument(
        "--container-image",
        action="append",
        metavar="PATTERN",
        help="a pattern of images that machines can pull; may be repeated; without it all",
    )
    parser.add_argument(
        "--timing",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="how long something takes, for example provisioning=10, booting=15 or, as the latency"
        " of one method, compute.instances.insert=1; may be repeated",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        action="store_true",
        help="demand a bearer token: make one and write it beside the address file, as FILE.token,"
        " readable by you alone",
    )
    token.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="demand the bearer token in this file, which only you may read",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _read_token(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise ValueError(f"{path} can be read by others: chmod 600 {path}")
        token = file.read().strip()
    if not token:
        raise ValueError(f"{path} holds no token")
    return token


def _write(path: Path, text: str) -> None:
    """Write a file that is complete as soon as it exists, and readable by its owner alone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


@contextmanager
def _published(files: Sequence[tuple[Path, str]]) -> Iterator[None]:
    """Hold files that exist as long as the emulator answers."""
    written: list[Path] = []
    try:
        for path, text in files:
            _write(path, text)
            written.append(path)
        yield
    finally:
        for path in written:
            with suppress(FileNotFoundError):
                path.unlink()


async def _serve(
    emulator: ComputeEmulator, files: list[tuple[Path, str]], to: Path | None, command: list[str]
) -> int:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with emulator:
        if to is not None:
            # Last, so that whoever finds the address finds the token as well.
            files.append((to, f"{emulator.endpoint}\n"))
        with _published(files):
            if command:
                return await _run(command, emulator, ending)
            print(emulator.endpoint, flush=True)
            await ending.wait()
    return 0


async def _run(command: list[str], emulator: ComputeEmulator, ending: asyncio.Event) -> int:
    """Run a program as a client and return its exit status, as a shell would say it."""
    if ending.is_set():
        return 128 + signal.SIGTERM
    process = await asyncio.create_subprocess_exec(
        *emulator.client_command(command),
        env={**os.environ, "DASK_GCE__API_ENDPOINT": emulator.endpoint},
    )
    loop = asyncio.get_running_loop()
    # A terminal sends Ctrl-C to the program as well, which knows best what it means.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, _terminate, process)
    if ending.is_set():  # it was asked to end while the program was started
        _terminate(process)
    status = await process.wait()
    return status if status >= 0 else 128 - status


def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    arguments : sequence of str or None
        The command line; None takes that of the process.

    Returns
    -------
    int
        The exit status: 0 when it ended on request and left nothing; with a command its own.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    token = None
    files: list[tuple[Path, str]] = []
    if options.token:
        if options.address_file is None:
            parser.error("--token needs --address-file, beside which the token is written")
        token = secrets.token_urlsafe(32)
        path = options.address_file.with_name(f"{options.address_file.name}.token")
        files.append((path, f"{token}\n"))
    elif options.token_file is not None:
        try:
            token = _read_token(options.token_file)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    try:
        emulator = ComputeEmulator(
            options.machines,
            port=options.port,
            token=token,
            timings=read_timings(options.timing),
            projects=options.project,
            container_images=options.container_image or ("*",),
            client_inside=bool(command),
            tls_port=options.tls_port,
        )
    except ValueError as error:
        parser.error(f"argument --timing: {error}")
    # What takes long at a start, as the making of a machine image, says so.
    logging.basicConfig(format=f"{parser.prog}: %(message)s")
    logging.getLogger("dask_gce.emulator.machines").setLevel(logging.INFO)
    try:
        status = asyncio.run(_serve(emulator, files, options.address_file, command))
    except (OSError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    leftovers = emulator.leftovers()
    for one in leftovers:
        print(f"{parser.prog}: left behind: {one}", file=sys.stderr)
    return status or (1 if leftovers else 0)


if __name__ == "__main__":
    sys.exit(main())
