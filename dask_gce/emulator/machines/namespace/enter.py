"""Run a program in another network namespace; to be run with the namespace and the command line.

Owns the way in, and nothing else: the program is this process from then on, with its terminal, its
folder and its environment. Standard library only, because it runs isolated.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWNET = 0x40000000


def main(arguments: list[str]) -> None:
    """Enter the namespace and become the program.

    Parameters
    ----------
    arguments : list of str
        The path of the namespace, the program and its arguments.
    """
    namespace, *command = arguments
    descriptor = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        sys.exit(f"cannot enter the network: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)
    try:
        os.execvp(command[0], command)  # noqa: S606 # the user asked for it
    except OSError as error:
        # As shells do: 127 for a program that is not there, 126 for one that cannot be run.
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main(sys.argv[1:])
