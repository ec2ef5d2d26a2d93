"""``config``: which settings count, and where each comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dask_gce.cli.options import json_option, project_option
from dask_gce.cli.output import print_json, print_table

if TYPE_CHECKING:
    from dask_gce.settings import Settings

__all__ = ["config"]

#: Stands for a value that may be a password.
HIDDEN = "..."


@click.command()
@project_option
@json_option
def config(project: str | None, as_json: bool) -> None:
    """Show the settings in effect, and where each comes from.

    Of settings that may hold a password, such as env-vars, only the keys are shown. A wrong
    setting is shown as the error that it is.

    \b
      dask gce config
      dask gce config --json | jq '.settings | map_values(select(.source != "default"))'
    """
    from dask_gce.settings import Settings
    from dask_gce.sources import place

    settings = Settings.load(project=project)
    values = _shown(settings)
    origins = {key: place(key, settings.sources[key]) for key in values}
    # A keyword argument here can only have been the option.
    if project is not None:
        origins["project"] = "--project"
    if as_json:
        print_json(
            {
                "settings": {
                    key: {"value": value, "source": origins[key]} for key, value in values.items()
                }
            }
        )
    else:
        print_table(
            ["SETTING", "VALUE", "FROM"],
            [
                [key.replace("_", "-"), json.dumps(value, ensure_ascii=False), origins[key]]
                for key, value in values.items()
            ],
        )


def _shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON data, without what may be secret."""
    from dask_gce.boot.docker_options import option_names
    from dask_gce.settings import KEYS_ONLY

    shown = {
        key: dict.fromkeys(value, HIDDEN) if key in KEYS_ONLY else value
        for key, value in settings.dump().items()
    }
    # Values of options can be environment variables.
    return {**shown, "docker_options": list(option_names(settings.docker_options))}
