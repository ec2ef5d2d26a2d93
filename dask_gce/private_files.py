"""Files that hold a secret: nobody but their owner ever reads, exchanges or sees half of one.

Owns how such a file is written, read and deleted, in two folders of its own (mode 0700) below a
folder of the user. What is in it is left to `connections`. Everything here blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from dask_gce.errors import CredentialsError

__all__ = ["delete_private", "hold_folder", "read_private", "write_private"]

# Seconds after which a file that was begun is nobody's any more: its writer was killed.
_STALE: Final = 60.0


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, in place of one that may be there.

    At no moment does it hold half of the content, or let others read it. When two processes write
    at once, the last one wins.

    Parameters
    ----------
    path : pathlib.Path
        The file, whose name begins with no dot. Its folder and the one above are made, and closed
        to others; neither may be a symbolic link.
    content : bytes
        What to write.

    Raises
    ------
    CredentialsError
        If it cannot be written.
    """
    try:
        with _open_folder(path.parent, make=True) as folder:
            _remove_stale(folder, path)
            _write(folder, path, content)
    except OSError as error:
        raise CredentialsError(
            f"The file {path} cannot be written: {error.strerror}. Give way to it, or set "
            "XDG_DATA_HOME to a folder of your own."
        ) from error


def read_private(path: Path, limit: int) -> bytes:
    """Read a file that only its owner can read or change.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    limit : int
        The most it may hold, in bytes.

    Returns
    -------
    bytes
        Its content.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CredentialsError
        If it cannot be read, is no regular file, is not the user's, is open to others or too large.
    """
    try:
        return _read(path, limit)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise CredentialsError(
            f"The file {path} cannot be read: {reason}. It must be a file of your own, in folders "
            "of your own."
        ) from error


def delete_private(path: Path) -> bool:
    """Delete a file.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    CredentialsError
        If it cannot be deleted.
    """
    try:
        with _open_folder(path.parent) as folder:
            _remove_stale(folder, path)
            os.unlink(path.name, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CredentialsError(
            f"The file {path} cannot be deleted: {error.strerror}. It holds a secret; delete it "
            f"by hand: rm -r {shlex.quote(str(path))}"
        ) from error
    return True


def hold_folder(folder: Path) -> int | None:
    """Hold a folder against all others who ask the same, until the descriptor is closed.

    Parameters
    ----------
    folder : pathlib.Path
        A folder for files of this kind, which is made if there is none.

    Returns
    -------
    int or None
        A descriptor to be closed; None while somebody else holds it.

    Raises
    ------
    CredentialsError
        If the folder cannot be made or held.
    """
    try:
        with _open_folder(folder, make=True) as opened:
            # Open anew: the lock belongs to the open file, not to the folder.
            held = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(held)
            raise
    except BlockingIOError:
        return None
    except OSError as error:
        raise CredentialsError(
            f"The folder {folder} cannot be held: {error.strerror}. Set XDG_DATA_HOME to a folder "
            "of your own on a local disk."
        ) from error
    return held


@contextmanager
def _open_folder(folder: Path, *, make: bool = False) -> Iterator[int]:
    """Open a folder; it and the one above are no symbolic links, and nobody else's."""
    ours = folder.parents[1]
    if make:
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with ExitStack() as stack:
        descriptor = os.open(ours, flags)
        stack.callback(os.close, descriptor)
        for part in folder.parts[-2:]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                    # The process's umask may have left even less.
                    os.chmod(part, 0o700, dir_fd=descriptor)
            descriptor = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise CredentialsError(
                    f"The folder {part} in {ours} belongs to another user (uid {status.st_uid}). "
                    "Work as that user, or set XDG_DATA_HOME to a folder of your own."
                )
            if make and status.st_mode & 0o077:
                os.fchmod(descriptor, 0o700)
        yield descriptor


def _write(folder: int, path: Path, content: bytes) -> None:
    temporary = f".{path.stem}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The process's umask may have left even less.
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _remove_stale(folder: int, path: Path) -> None:
    """Remove what a killed process had begun to write; names have no dots, so it is this one's."""
    for name in os.listdir(folder):
        if name.startswith(f".{path.stem}.") and name.endswith(".tmp"):
            with suppress(FileNotFoundError):
                if time.time() - os.lstat(name, dir_fd=folder).st_mtime > _STALE:
                    os.unlink(name, dir_fd=folder)


def _read(path: Path, limit: int) -> bytes:
    # Without O_NONBLOCK opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with _open_folder(path.parent) as folder, ExitStack() as stack:
        descriptor = os.open(path.name, flags, dir_fd=folder)
        stack.callback(os.close, descriptor)
        # Asked of the open file, so that nobody can exchange it between look and read.
        _check(path, os.fstat(descriptor), limit)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)


def _check(path: Path, status: os.stat_result, limit: int) -> None:
    quoted = shlex.quote(str(path))
    if not stat.S_ISREG(status.st_mode):
        raise CredentialsError(f"The file {path} is no regular file; delete it: rm -r {quoted}")
    if status.st_uid != os.geteuid():
        # Also for root: the file tells where Google's credentials are sent.
        raise CredentialsError(
            f"The file {path} belongs to another user (uid {status.st_uid}). If you "
            f"trust what is in it, run: sudo chown {os.geteuid()} {quoted}"
        )
    if status.st_mode & 0o077:
        raise CredentialsError(
            f"The file {path} can be read or changed by others (mode "
            f"{stat.S_IMODE(status.st_mode):04o}), and it holds private keys; run: "
            f"chmod 600 {quoted}"
        )
    if status.st_size > limit:
        raise CredentialsError(
            f"The file {path} has {status.st_size} bytes, and {limit} are the most; delete it: "
            f"rm {quoted}"
        )
