"""``dask gce``: this package from a shell.

Owns the list of commands, and the exit status that each kind of error ends with. A command is
imported when it is asked for, and what it does when it runs: ``dask --help`` loads this module of
every installation, and has to stay quick.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

__all__ = ["NO_SUCH_CLUSTER", "WRONG_USAGE", "gce"]

#: Exit statuses beside 0 and click's 1 for whatever fails. 2 is what click has for wrong usage; a
#: command that a signal has ended has 128 and the signal's number, as in a shell.
WRONG_USAGE: Final = 2
NO_SUCH_CLUSTER: Final = 3

#: The module of each command, in which the command has the name of the second word.
_COMMANDS: Final[Mapping[str, str]] = {
    "check": "check.check",
    "plan": "planning.plan",
    "create": "create.create",
    "list": "listing.list_all",
    "show": "listing.show",
    "cost": "cost.cost",
    "join": "joining.join",
    "scale": "scale.scale",
    "logs": "logs.logs",
    "dashboard": "dashboard.dashboard",
    "ssh": "access.ssh",
    "delete": "removal.delete",
    "sweep": "removal.sweep",
    "image": "image.image",
    "export": "export.export",
    "config": "configuration.config",
    "demo": "local.demo",
    "emulator": "local.emulator",
}


class _WrongSetting(click.ClickException):
    exit_code = WRONG_USAGE


class _NoSuchCluster(click.ClickException):
    exit_code = NO_SUCH_CLUSTER


class _Commands(click.Group):
    """The commands, imported one by one, and what becomes of their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"dask_gce.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from dask_gce.cli.output import note
        from dask_gce.errors import ClusterNotFound, GCEError, SettingsError
        from dask_gce.terminal import harmless

        try:
            return super().invoke(ctx)
        except ClusterNotFound as error:
            raise _NoSuchCluster(harmless(str(error))) from error
        except SettingsError as error:
            raise _WrongSetting(harmless(str(error))) from error
        except GCEError as error:
            # It may quote the serial console of a machine, which writes there what it likes.
            raise click.ClickException(harmless(str(error))) from error
        except (KeyboardInterrupt, click.Abort) as interrupt:
            # With a number if it was another signal than that of Ctrl-C.
            number = next(iter(interrupt.args), signal.SIGINT)
            note("Interrupted.")
            raise click.exceptions.Exit(128 + int(number)) from None


@click.group(cls=_Commands)
def gce() -> None:
    """Dask clusters on Google Compute Engine.

    Clusters are found by the labels of their machines, so that all commands work from any computer
    with credentials for the project. Only create, scale and logs connect to a cluster's scheduler,
    which takes the file that create leaves on the computer where it ran.

    \b
      dask gce create grid --n-workers 4 --machine-type e2-standard-8
      dask gce list
      dask gce scale grid 20
      dask gce delete grid

    Settings come from the Dask configuration (gce: in YAML, or DASK_GCE__...), as in Python.
    Results go to standard output, as JSON with --json; progress and errors go to standard error.

    \b
    Exit status:
      0    done
      1    it failed
      2    wrong usage, or a wrong setting
      3    no cluster of that name
      129, 130, 143  interrupted: the terminal was closed, Ctrl-C, SIGTERM
    """
