"""Making a disk image: a machine is prepared as a cluster's would be, and its disk is kept.

Owns the order of things, and that nothing but the image stays. The machine that is built on, the
builder, is labelled as a cluster of one, so that `inventory` and `sweeping` know it: whatever
becomes of this process, it has an end. What it does is told by the startup script of a cluster's
machine, which for this role stops before Dask and goes on with ``guest/seal.sh``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from dask_gce import names, startup
from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.disk_images import DELETE_TIMEOUT, DiskImage, delete_image, read_image
from dask_gce.errors import (
    GCEError,
    InstanceError,
    InstanceLost,
    NotFound,
    SettingsError,
    StartTimeout,
)
from dask_gce.exit import at_exit, not_at_exit
from dask_gce.failures import Cause, cause_of
from dask_gce.instance import InstanceSpec, build_insert, parse_instance
from dask_gce.member import Member
from dask_gce.placement import Location, Placement
from dask_gce.preparation import prepare
from dask_gce.removal import OFF, Removal
from dask_gce.settings import Settings

__all__ = ["DEFAULT_FAMILY", "build_image", "image_name"]

logger = logging.getLogger(__name__)

DEFAULT_FAMILY: Final = "dask-gce"

#: Seconds between looks at the builder, and at an image that is being made.
INTERVAL = 2.0
#: Seconds that the image may take once the builder is ready; a large disk takes minutes.
IMAGE_TIMEOUT = 1800.0
#: What the builder says when all is on its disk; `guest/seal.sh` knows it too.
SEALED: Final = "sealed"

#: Told how far it has come, in a few words.
Tell = Callable[[str], None]


def image_name(family: str) -> str:
    """Make the name of a new image of a family, which sorts by time.

    Parameters
    ----------
    family : str
        The family.

    Returns
    -------
    str
        The family and the time, for example ``dask-gce-20261121-130812``.

    Raises
    ------
    SettingsError
        If the family is no name, or too long to begin one.
    """
    stamp = time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
    names.check_name(family, key="family", limit=names.MAX_NAME - len(stamp))
    return family + stamp


async def build_image(
    compute: Compute,
    settings: Settings,
    *,
    family: str = DEFAULT_FAMILY,
    name: str | None = None,
    timeout: float = 3600.0,
    tell: Tell = lambda text: None,
) -> DiskImage:
    """Make a disk image in the project, for clusters of these settings to boot from.

    Boots a machine as the scheduler's would be, with what its runtime needs on it: the container
    image, or the environment. Then makes an image of its disk, and deletes machine and disk. Does
    that too if it fails or is cancelled, and deletes an image that is only half made.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.
    settings : Settings
        What clusters will run, and where to build: zone, machine type, network.
    family : str
        The family of the image. A cluster whose `source_image` is a family boots its newest image.
    name : str or None
        The image's name; None for the family and the time.
    timeout : float
        Seconds that the machine may take to build. Compute Engine itself deletes a machine that
        runs longer.
    tell : callable
        Told how far it has come.

    Returns
    -------
    DiskImage
        The image.

    Raises
    ------
    SettingsError
        If a name is wrong or taken, no zone offers the machine type, or the settings contradict
        each other.
    InstanceError
        If what was to be on the image could not be built; with the machine's serial console.
    GCEError
        If Compute Engine refuses or fails, or if it is not certain that nothing is left.

    Examples
    --------
    >>> from dask_gce.preparation import open_compute
    >>> async def build():
    ...     settings = Settings.load(project="my-project", container_image="ghcr.io/dask/dask")
    ...     async with await open_compute(settings) as compute:
    ...         return await build_image(compute, settings)
    """
    name = image_name(family) if name is None else names.check_name(name)
    names.check_name(family, key="family")
    await _check_that_name_is_free(compute, name)
    # Nobody connects to the builder, so it gets no certificates, and the firewall lets nobody in;
    # and it has an end in any case.
    settings = replace(
        settings,
        name=None,
        security=False,
        connect="internal",
        firewall=False,
        allow_ingress_from=None,
        max_lifetime=timeout + IMAGE_TIMEOUT,
    )
    cluster = names.new_cluster_name("dask-image")
    prepared = await prepare(compute, settings, cluster, tell=tell)
    build = _Build(compute, prepared.blueprint, name, family, timeout=timeout, tell=tell)
    # From here on something may be there to be deleted, whatever becomes of this process.
    at_exit(build, build.delete_now, compute.endpoint)
    try:
        image = await build.run(prepared.schedulers)
    except BaseException as error:
        try:
            await _to_the_end(build.undo())
        except GCEError as left:
            if isinstance(error, GCEError):
                raise GCEError(f"{error}\n{left}") from error
            logger.error("%s", left)
        raise
    else:
        there = f"Image {image.name} is made; boot from it with source-image: {image.source_image}"
        try:
            await _to_the_end(build.delete_builder())
        except GCEError as error:
            raise GCEError(f"{there}\nThe machine that made it may be left. {error}") from error
        except asyncio.CancelledError:
            logger.warning("%s", there)
            raise
    finally:
        not_at_exit(build)
    return image


async def _check_that_name_is_free(compute: Compute, name: str) -> None:
    try:
        await compute.get_image(name)
    except NotFound:
        return
    raise SettingsError(
        f"name = {name!r}: project {compute.project} has an image of this name. Choose another "
        f"one, or delete it: dask gce image delete {name} --project {compute.project}",
        key="name",
    )


def builder_spec(blueprint: Blueprint, location: Location) -> InstanceSpec:
    """Return the instance on which an image is built.

    Parameters
    ----------
    blueprint : Blueprint
        How the scheduler of a cluster would be made.
    location : Location
        Where to make it.

    Returns
    -------
    InstanceSpec
        What to insert.
    """
    spec = blueprint.scheduler(blueprint.cluster, location)
    metadata = {
        **spec.metadata,
        "startup-script": startup.startup_script(blueprint.settings.runtime, seals=True),
        "dask-gce-role": "builder",
    }
    # It takes as long as it takes; Compute Engine ends it.
    metadata.pop("dask-gce-boot-timeout", None)
    labels = {**spec.labels, names.ROLE_LABEL: "builder"}
    return replace(spec, metadata=metadata, labels=labels)


class _Build:
    """One image, from the first machine to the last delete."""

    def __init__(
        self,
        compute: Compute,
        blueprint: Blueprint,
        name: str,
        family: str,
        *,
        timeout: float,
        tell: Tell,
    ) -> None:
        self._compute = compute
        self._blueprint = blueprint
        self._name = name
        self._family = family
        self._timeout = timeout
        self._tell = tell
        self._zones: set[str] = set()
        self._image_is_asked_for = False
        label = names.label_filter(
            {names.CLUSTER_LABEL: blueprint.cluster, names.ID_LABEL: blueprint.identity}
        )
        self._removal = Removal(compute, blueprint.cluster, label, lambda: self._zones)

    async def run(self, places: Placement) -> DiskImage:
        member = await self._boot(places)
        disk = await self._wait_until_sealed(member)
        return await self._make_image(disk)

    async def _boot(self, places: Placement) -> Member:
        """Start the builder where there is a machine to give."""
        refusal = GCEError("There is no place to build in.")
        while (location := places.choose()) is not None:
            spec = builder_spec(self._blueprint, location)
            self._zones.add(location.zone)
            self._tell(f"starting {spec.name} in {location.zone}")
            try:
                operation = await self._compute.insert_instance(location.zone, build_insert(spec))
                start_timeout = self._blueprint.settings.start_timeout
                await self._compute.wait_operation(operation, start_timeout)
            except GCEError as error:
                if cause_of(error) not in (Cause.CAPACITY, Cause.QUOTA):
                    raise
                places.block(location, error)
                refusal = error
            else:
                return Member(spec, self._timeout)
        raise refusal

    async def _wait_until_sealed(self, member: Member) -> str:
        """Wait until the builder has done its work and is off; return the link of its disk."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                data = await self._compute.get_instance(
                    member.zone, member.name, "name,zone,status,disks(source,boot)"
                )
            except NotFound:
                raise member.failed(InstanceLost, "it no longer exists") from None
            member.see(parse_instance(data))
            before = member.phase
            # After the status, so that what was said last is known of a machine that is off.
            await member.read_phase(self._compute)
            if member.phase != before:
                self._tell(member.phase)
            off = data["status"] in OFF
            if off and await self._is_sealed(member):
                return next(str(each["source"]) for each in data["disks"] if each.get("boot"))
            if off or member.phase.startswith("failed"):
                await member.inspect(self._compute)
                raise member.failed(InstanceError, "what was to be on the image was not built")
            if time.monotonic() > deadline:
                await member.inspect(self._compute)
                what = f"what was to be on the image was not built in {self._timeout:g} s"
                raise member.failed(StartTimeout, what)
            await asyncio.sleep(INTERVAL)

    async def _is_sealed(self, member: Member) -> bool:
        if member.phase != SEALED:
            # It may have been off sooner than it was asked, and then only its console tells.
            await member.inspect(self._compute)
        return member.phase == SEALED or f"dask-gce phase: {SEALED}" in member.tail

    async def _make_image(self, disk: str) -> DiskImage:
        settings, blueprint = self._blueprint.settings, self._blueprint
        self._tell("making the image")
        self._image_is_asked_for = True
        operation = await self._compute.insert_image(
            {
                "name": self._name,
                "family": self._family,
                "sourceDisk": disk,
                "description": _describe(settings),
                "labels": {
                    **settings.labels,
                    names.IMAGE_LABEL: settings.runtime,
                    names.ID_LABEL: blueprint.identity,
                    **({names.OWNER_LABEL: blueprint.owner} if blueprint.owner else {}),
                },
            }
        )
        await self._compute.wait_operation(operation, IMAGE_TIMEOUT)
        return read_image(self._compute.project, await self._compute.get_image(self._name))

    async def delete_builder(self) -> None:
        self._tell("deleting the machine")
        await self._removal.delete_all(())

    async def undo(self) -> None:
        """Delete the builder, and the image if there is one."""
        if not self._zones:
            return
        self._tell("deleting what was made")
        outcomes = await asyncio.gather(
            self._delete_image(), self._delete_all_builders(), return_exceptions=True
        )
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        if failures:
            raise GCEError("\n".join(map(str, failures))) from failures[0]

    async def _delete_all_builders(self) -> None:
        # A list does not show what an insert that is still on its way is about to make.
        for zone in self._zones:
            await self._compute.insert_settled(zone, self._blueprint.cluster)
        await self._removal.delete_all(())

    async def _delete_image(self) -> None:
        if not self._image_is_asked_for:
            return
        await self._compute.image_settled(self._name)
        deadline = time.monotonic() + DELETE_TIMEOUT
        while True:
            try:
                data = await self._compute.get_image(self._name)
            except NotFound:
                return
            image = read_image(self._compute.project, data)
            if image.identity != self._blueprint.identity:
                return  # it was refused, because somebody else has one of this name
            # One that is being made cannot be deleted yet.
            if image.status != "PENDING" or time.monotonic() > deadline:
                await delete_image(self._compute, image)
                return
            await asyncio.sleep(INTERVAL)

    def delete_now(self) -> None:
        """Delete the builder at the interpreter's exit. A finished image is found by its label."""
        if self._zones:
            self._removal.delete_now(())


def _describe(settings: Settings) -> str:
    """Say what is on an image, for whoever looks at it in a year."""
    what: Mapping[str, Any] = {
        "runtime": settings.runtime,
        "container-image": settings.container_image,
        "source-image": settings.source_image,
    }
    return ", ".join(f"{key} {value}" for key, value in what.items() if value is not None)


async def _to_the_end(work: Awaitable[None]) -> None:
    """Bring something to an end, and only then let a cancellation through."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
