"""``python -m dask_gce.emulator``: the local Compute Engine as a program of its own.

Owns: the command line, the address and token files, the ending on SIGINT and SIGTERM.
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
        description="Run a local Compute Engine on 127.0.0.1 until it is interrupted.",
    )
    parser.add_argument("--port", type=int, default=0, help="the port; 0 takes a free one")
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


async def _serve(emulator: ComputeEmulator, files: list[tuple[Path, str]], to: Path | None) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with emulator:
        if to is not None:
            # Last, so that whoever finds the address finds the token as well.
            files.append((to, f"{emulator.endpoint}\n"))
        with _published(files):
            print(emulator.endpoint, flush=True)
            await ending.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    arguments : sequence of str or None
        The command line; None takes that of the process.

    Returns
    -------
    int
        The exit status: 0 when it ended on request and left nothing.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
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
        )
    except ValueError as error:
        parser.error(f"argument --timing: {error}")
    # What takes long at a start, as the making of a machine image, says so.
    logging.basicConfig(format=f"{parser.prog}: %(message)s")
    logging.getLogger("dask_gce.emulator.machines").setLevel(logging.INFO)
    try:
        asyncio.run(_serve(emulator, files, options.address_file))
    except (OSError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    leftovers = emulator.leftovers()
    for one in leftovers:
        print(f"{parser.prog}: left behind: {one}", file=sys.stderr)
    return 1 if leftovers else 0


if __name__ == "__main__":
    sys.exit(main())
