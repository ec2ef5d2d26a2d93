"""The commands that need no Google: the demonstration and the local Compute Engine."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import click

from dask_gce.cli.interruption import terminable

__all__ = ["demo", "emulator"]


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Workers to scale up to.",
)
@click.option("--keep", is_flag=True, help="Keep the cluster for a look around, until Ctrl-C.")
def demo(workers: int, keep: bool) -> None:
    """Run a grid search on a cluster of local machines.

    Needs no account and no network. Boots a local Compute Engine, a scheduler and workers, tunes a
    classifier of handwritten digits, and checks that nothing is left behind. The exit status is not
    zero if anything fell short.

    \b
      dask gce demo --workers 4 --keep
    """
    missing = [name for name in ("bokeh", "joblib", "sklearn") if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"The demo needs {', '.join(missing)}. In its checkout: python -m pip install '.[demo]'"
        )
    from dask_gce import demo as demonstration

    # Ended by a signal, Python would leave the local machines to themselves.
    with terminable():
        outcome = demonstration.run(workers, keep=keep)
    sys.exit(1 if outcome.shortcomings() else 0)


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def emulator(arguments: tuple[str, ...]) -> None:
    """Run a local Compute Engine until it is interrupted.

    The same as ``python -m dask_gce.emulator``, with the same options: see --help.
    """
    from dask_gce.emulator.__main__ import main

    sys.exit(main(arguments))
