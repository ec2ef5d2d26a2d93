"""``image``: disk images with what Dask needs on them, so that machines boot faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from dask_gce.cli.cloud import open_compute
from dask_gce.cli.interruption import run_to_the_end, run_while_wanted
from dask_gce.cli.options import json_option, project_option
from dask_gce.cli.output import note, print_json, print_table, render_age, render_size
from dask_gce.cli.removal import ask_whether_to_delete
from dask_gce.cli.setting_options import SettingsCommand, parse_settings, setting_options

if TYPE_CHECKING:
    from dask_gce.disk_images import DiskImage

__all__ = ["image"]

#: The settings that say what is on an image, and where it is built.
_SETTINGS = (
    *("project", "zone", "machine_type", "source_image", "boot_disk_size", "boot_disk_type"),
    *("runtime", "environment", "container_image", "network", "subnetwork", "external_ip"),
    *("network_tags", "labels", "service_account", "scopes", "instance_overrides"),
)


@click.group()
def image() -> None:
    """Make disk images that clusters boot from, and list and delete them.

    An image has on its disk what machines would else fetch at each boot: the container image, or
    with the runtime vm the Python environment.

    \b
      dask gce image build --container-image ghcr.io/dask/dask
      dask gce image list
      dask gce image delete dask-gce-20261121-130812
    """


@image.command(cls=SettingsCommand)
@click.option("--name", metavar="NAME", help="Name of the image, instead of family and time.")
@click.option("--family", metavar="NAME", help="Family of the image.  [default: dask-gce]")
@click.option(
    "--timeout",
    metavar="TIME",
    default="1 hour",
    show_default=True,
    help="How long the machine may take to build.",
)
@json_option
@setting_options(only=_SETTINGS)
def build(
    name: str | None,
    family: str | None,
    timeout: str,
    as_json: bool,
    **typed: tuple[str, ...],
) -> None:
    """Make a disk image in the project.

    Boots a machine as a cluster would, with the container image or the environment that the
    settings name, makes an image of its disk, and deletes the machine. If it fails or is
    interrupted, nothing is left behind. Prints the source-image to use.

    The other settings come from the configuration, as for a cluster.

    \b
      dask gce image build --container-image ghcr.io/dask/dask --boot-disk-size 20
      dask gce image build --runtime vm --environment requirements.txt --family ours
    """
    keywords = parse_settings(typed)
    began = time.monotonic()
    made = run_to_the_end(_build(keywords, name, family, timeout))
    if as_json:
        print_json(made.to_json())
    else:
        _print_made(made, timedelta(seconds=time.monotonic() - began))


async def _build(
    keywords: dict[str, Any], name: str | None, family: str | None, timeout: str
) -> DiskImage:
    from dask.utils import parse_timedelta

    from dask_gce.cli.progress import Progress
    from dask_gce.image_build import DEFAULT_FAMILY, build_image
    from dask_gce.preparation import open_compute as open_for
    from dask_gce.settings import Settings

    try:
        seconds = float(parse_timedelta(timeout))
    except (KeyError, ValueError):
        raise click.BadParameter(
            "is no time, such as 30 minutes.", param_hint="--timeout"
        ) from None
    # No machine is ready sooner, and one that is forgotten is paid for all that time.
    if not 60 <= seconds <= 86400:
        raise click.BadParameter("is not from a minute to a day.", param_hint="--timeout")
    settings = Settings.load(**keywords)
    progress = Progress("Making a disk image")
    try:
        async with await open_for(settings) as compute:
            return await build_image(
                compute,
                settings,
                name=name,
                family=family or DEFAULT_FAMILY,
                timeout=seconds,
                tell=progress.tell,
            )
    finally:
        progress.close()


def _print_made(made: DiskImage, took: timedelta) -> None:
    click.echo(
        f"Made image {made.name} in project {made.project}, in {render_age(took)}: "
        f"{render_size(made.stored)}, for disks of {made.disk_size} GB or more.\n"
        f"It holds:       {made.description}\n"
        f"Boot from it:   source-image: {made.source_family}\n"
        f"or, this one:   source-image: {made.source_image}\n"
        f"Delete:         dask gce image delete {made.name}\n"
        "It costs money until it is deleted."
    )


@image.command("list")
@project_option
@json_option
def list_all(project: str | None, as_json: bool) -> None:
    """List the disk images that were made for clusters, the newest first.

    STORED is what they take, and what is paid for.

    \b
      dask gce image list
    """
    found, where = run_while_wanted(_list(project))
    if as_json:
        print_json({"project": where, "images": [each.to_json() for each in found]})
    elif found:
        now = datetime.now(timezone.utc)
        print_table(
            ["NAME", "FAMILY", "RUNTIME", "OWNER", "AGE", "STATUS", "DISK", "STORED"],
            [
                [
                    each.name,
                    each.family,
                    each.runtime,
                    each.owner,
                    render_age(now - each.created),
                    each.status,
                    f"{each.disk_size} GB",
                    render_size(each.stored),
                ]
                for each in found
            ],
        )
    else:
        note(f"No images for clusters in project {where}.")


async def _list(project: str | None) -> tuple[list[DiskImage], str]:
    from dask_gce.disk_images import list_images

    async with open_compute(project) as compute:
        return await list_images(compute), compute.project


@image.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@project_option
@json_option
def delete(names: Sequence[str], yes: bool, project: str | None, as_json: bool) -> None:
    """Delete disk images that were made for clusters.

    Clusters that run go on; new machines cannot boot from an image that is gone.

    \b
      dask gce image delete dask-gce-20261121-130812
    """
    run_while_wanted(_delete(tuple(dict.fromkeys(names)), yes, project, as_json))


async def _delete(names: Sequence[str], yes: bool, project: str | None, as_json: bool) -> None:
    from dask_gce.disk_images import delete_image, find_image

    async with open_compute(project) as compute:
        # Whether all of them exist is found out before the first is deleted.
        found = [await find_image(compute, name) for name in names]
        if not yes:
            _ask(found)
        for each in found:
            await delete_image(compute, each)
            if not as_json:
                click.echo(f"Deleted {each.name}.")
    if as_json:
        print_json({"project": compute.project, "deleted": [each.name for each in found]})


def _ask(found: Sequence[DiskImage]) -> None:
    now = datetime.now(timezone.utc)
    ask_whether_to_delete(
        ", ".join(
            f"{each.name} ({render_age(now - each.created)} old, "
            f"of {each.owner or 'an unknown owner'})"
            for each in found
        )
    )
