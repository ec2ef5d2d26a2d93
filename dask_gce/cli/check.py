"""``check``: whether the project can bear a cluster, before one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import json_option
from dask_gce.cli.output import note, print_json
from dask_gce.cli.setting_options import SettingsCommand, parse_settings, setting_options
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.checks.examination import Examination

__all__ = ["check"]


@click.command(cls=SettingsCommand)
@json_option
@setting_options(without=["name"])
def check(as_json: bool, **typed: tuple[str, ...]) -> None:
    """Check that a cluster could be made, and name what is missing.

    Looks at credentials, APIs, permissions, network, firewall, boot image, machine types and
    quotas, for the settings of the configuration and for those given here. Nothing is changed. For
    what fails, the command is printed that repairs it; what may not be looked at is unknown.

    The exit status is 1 if a check has failed.

    \b
      dask gce check
      dask gce check --n-workers 100 --machine-type n2-standard-8 --external-ip false
    """
    from dask_gce.checks.examination import examine
    from dask_gce.settings import Settings

    examination = run_while_wanted(examine(Settings.load(**parse_settings(typed))))
    if as_json:
        print_json(examination.to_json())
    else:
        _print(examination)
    if not examination.passed:
        raise click.exceptions.Exit(1)


def _print(examination: Examination) -> None:
    width = max(len(finding.check) for finding in examination.findings)
    for finding in examination.findings:
        # It may quote what a server says.
        detail = harmless(finding.detail).replace("\n", " ")
        click.echo(f"{finding.status:<7}  {finding.check:<{width}}  {detail}")
        for line in finding.repair:
            click.echo(f"{'':<7}    $ {harmless(line)}")
    failures = sum(finding.status == "failed" for finding in examination.findings)
    if failures:
        note(f"{failures} of {len(examination.findings)} checks failed.")
