"""Options that several commands share, and how they complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

__all__ = ["cluster_argument", "identity_option", "json_option", "project_option"]

F = TypeVar("F", bound=Callable[..., object])


def complete_cluster(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the clusters that this computer can connect to.

    Completion has to be quick, so Google is not asked.
    """
    from dask_gce.connections import list_connections

    wanted = ctx.params.get("project")
    return sorted(
        {
            name
            for project, name in list_connections()
            if name.startswith(incomplete) and wanted in (None, project)
        }
    )


project_option = click.option(
    "--project",
    metavar="ID",
    help="Project to work in, instead of that of the configuration or your credentials.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

identity_option = click.option(
    "--id",
    "identity",
    metavar="ID",
    help="Beginning of the cluster's id, where several have its name.",
)


def cluster_argument(function: F) -> F:
    """Add the argument NAME.

    Parameters
    ----------
    function : callable
        The command's function.

    Returns
    -------
    callable
        The same, with the argument.
    """
    return click.argument("name", shell_complete=complete_cluster)(function)
