"""Methods of images: Google's public ones are only looked at, those of a project come and go."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.catalog import images as public
from dask_gce.emulator.catalog.places import ZONES, region_of
from dask_gce.emulator.errors import (
    OperationFailed,
    already_exists,
    bad_request,
    condition_not_met,
    in_use,
    invalid,
    not_found,
    not_ready,
    required,
)
from dask_gce.emulator.images import (
    OwnImage,
    SourceImage,
    from_family,
    from_link,
    get,
    make_image,
    read_disk,
)
from dask_gce.emulator.links import NAME, check_name, fingerprint, last_segment, now, path_of
from dask_gce.emulator.operations import Operation, Work
from dask_gce.emulator.query import listing
from dask_gce.emulator.routing import LIST, MUTATION, Call, Route

Resource = dict[str, Any]


def _owner(call: Call) -> str:
    # Google's image projects exist for everyone, also when the emulator's projects are a closed
    # set.
    project = call.params["project"]
    return project if project in public.IMAGES else call.project.id


def _get(call: Call) -> Resource:
    return get(call.cloud, _owner(call), call.params["image"]).resource(call.cloud.base_url)


def _get_from_family(call: Call) -> Resource:
    found = from_family(call.cloud, _owner(call), call.params["family"])
    return found.resource(call.cloud.base_url)


def _list(call: Call) -> Resource:
    owner = _owner(call)
    found: list[SourceImage] = [*public.IMAGES.get(owner, {}).values()]
    if owner not in public.IMAGES:
        found += call.project.images.values()
    return listing(call, "imageList", [one.resource(call.cloud.base_url) for one in found])


def _get_family_view(call: Call) -> Resource:
    family = call.params["family"]
    if not NAME.fullmatch(family):
        raise invalid("family", family, f"Must be a match of regex '{NAME.pattern}'")
    if call.params["zone"] != "-" and call.zone not in ZONES:
        raise not_found(call.path)
    found = from_family(call.cloud, _owner(call), family)
    return {"image": found.resource(call.cloud.base_url)}


def _insert(call: Call) -> Operation:
    if not call.body:
        raise required("resource")
    body, project = call.body, call.project
    if project.id in public.IMAGES:
        raise bad_request("Google's own images cannot be added to.")
    name = check_name(body.get("name", ""))
    if body.get("family"):
        check_name(body["family"], "resource.family")
    labels = check_labels(body.get("labels", {}), "resource.labels")
    if ("sourceDisk" in body) == ("sourceImage" in body):
        raise invalid("resource", "", "Exactly one of sourceDisk and sourceImage is needed.")
    if "sourceDisk" in body:
        facts, zone = _of_disk(call, body["sourceDisk"]), _zone_of(call, body["sourceDisk"])
    else:
        facts, zone = _of_image(call, body["sourceImage"]), ""
    if name in project.images:
        raise already_exists(f"{project.path}/global/images/{name}")
    image = make_image(call.cloud, project, name, body, labels)
    image.shown.update(facts)
    where = region_of(project.id, zone) if zone else "us"
    image.shown["storageLocations"] = body.get("storageLocations") or [_multi_region(where)]
    return _begin(call, image, "insert", _making(call, image, zone))


def _zone_of(call: Call, link: str) -> str:
    match = re.fullmatch(
        rf"(?:{re.escape(call.project.path)}/)?zones/([^/]+)/disks/[^/]+", path_of(link)
    )
    if match is None or match[1] not in ZONES:
        raise invalid("resource.sourceDisk", link, "The URL is malformed.")
    return match[1]


def _of_disk(call: Call, link: str) -> Resource:
    project, zone, name = call.project, _zone_of(call, link), last_segment(link)
    disk = project.disks.get(zone, {}).get(name)
    if disk is None:
        raise not_found(f"{project.path}/zones/{zone}/disks/{name}")
    if disk["status"] != "READY":
        raise not_ready(path_of(disk["selfLink"]))
    if call.query.get("forceCreate", "false").lower() != "true":
        # An image of a disk that is being written to may not boot:
        # https://docs.cloud.google.com/compute/docs/images/create-custom
        for user in disk.get("users", ()):
            instance = project.instances.get(zone, {}).get(last_segment(user))
            if instance is not None and instance.status != "TERMINATED":
                raise in_use(path_of(disk["selfLink"]), path_of(user))
    copied: Resource = {
        field: disk[field]
        for field in ("guestOsFeatures", "licenses", "sourceImage", "sourceImageId")
        if field in disk
    }
    return {
        "diskSizeGb": disk["sizeGb"],
        "architecture": disk.get("architecture", "X86_64"),
        "sourceDisk": disk["selfLink"],
        "sourceDiskId": disk["id"],
        **copied,
    }


def _of_image(call: Call, link: str) -> Resource:
    source = from_link(call.cloud, call.project.id, link, "resource.sourceImage")
    return {
        "diskSizeGb": str(source.size_gb),
        "architecture": source.architecture,
        "guestOsFeatures": source.guest_features,
        "licenses": source.licenses(call.cloud.base_url),
        "sourceImage": call.cloud.url(source.path),
        "sourceImageId": source.resource(call.cloud.base_url)["id"],
    }


def _multi_region(region: str) -> str:
    """Return the storage location that an image gets by itself: the nearest multi-region."""
    return {"europe": "eu", "asia": "asia"}.get(region.partition("-")[0], "us")


def _making(call: Call, image: OwnImage, zone: str) -> Work:
    """Return what makes an image complete; by a fault it fails, and the image never was."""
    cloud, project, shown = call.cloud, call.project, image.shown
    fault = cloud.conditions.faults.take(call.route.method_id, shown["name"], operation=True)

    async def work(operation: Operation) -> None:
        done = False
        try:
            if fault is not None:
                await asyncio.sleep(fault.delay)
                raise OperationFailed([dict(error) for error in fault.operation_errors])
            await asyncio.sleep(cloud.timings.imaging)
            if zone:
                disk = project.disks.get(zone, {}).get(last_segment(shown["sourceDisk"]))
                if disk is None or disk["id"] != shown["sourceDiskId"]:
                    path = path_of(shown["sourceDisk"])
                    message = f"The resource '{path}' was not found"
                    raise OperationFailed([{"code": "RESOURCE_NOT_FOUND", "message": message}])
                contents = await read_disk(cloud, project, zone, disk)
            else:
                contents = cloud.shelf.get(shown["sourceImageId"])
            await cloud.shelf.put(image.id, contents)
            # Compressed, a system takes about a gibibyte.
            shown.update(status="READY", archiveSizeBytes=str(2**30))
            done = True
        finally:
            if not done:
                del project.images[shown["name"]]

    return work


def _begin(call: Call, image: OwnImage, operation_type: str, work: Work) -> Operation:
    return call.begin(
        operation_type, f"images/{image.shown['name']}", work, target_id=image.shown["id"]
    )


def _own(call: Call) -> OwnImage:
    # The path of setLabels has a word of its own for it.
    name = call.params.get("image") or call.params["resource"]
    image = call.project.images.get(name)
    if image is None:
        raise not_found(f"{call.project.path}/global/images/{name}")
    return image


def _delete(call: Call) -> Operation:
    image, images = _own(call), call.project.images
    if image.shown["status"] != "READY":
        raise not_ready(image.path)
    image.shown["status"] = "DELETING"

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        del images[image.shown["name"]]
        await call.cloud.shelf.drop(image.id)

    return _begin(call, image, "delete", work)


async def _nothing_more(operation: Operation) -> None:
    """Do nothing: the change was made when the call was accepted."""


def _deprecate(call: Call) -> Operation:
    image, body = _own(call), call.body
    state = body.get("state", "ACTIVE")
    image.shown.pop("deprecated", None)
    if state != "ACTIVE":
        image.shown["deprecated"] = {**body, "state": state, state.lower(): now()}
    return _begin(call, image, "deprecate", _nothing_more)


def _set_labels(call: Call) -> Operation:
    image = _own(call)
    if call.body.get("labelFingerprint") != image.shown["labelFingerprint"]:
        raise condition_not_met("Labels fingerprint either invalid or resource labels have changed")
    labels = check_labels(call.body.get("labels", {}), "resource.labels")
    image.shown.pop("labels", None)
    if labels:
        image.shown["labels"] = labels
    image.shown["labelFingerprint"] = fingerprint(labels)
    return _begin(call, image, "setLabels", _nothing_more)


_PROJECT = "projects/{project}"
_IMAGES = f"{_PROJECT}/global/images"
_ONE = f"{_IMAGES}/{{image}}"

ROUTES = [
    Route("compute.images.get", "GET", _ONE, _get),
    Route("compute.images.getFromFamily", "GET", f"{_IMAGES}/family/{{family}}", _get_from_family),
    Route("compute.images.list", "GET", _IMAGES, _list, LIST),
    Route(
        "compute.imageFamilyViews.get",
        "GET",
        f"{_PROJECT}/zones/{{zone}}/imageFamilyViews/{{family}}",
        _get_family_view,
    ),
    Route("compute.images.insert", "POST", _IMAGES, _insert, MUTATION | {"forceCreate"}, "Image"),
    Route("compute.images.delete", "DELETE", _ONE, _delete, MUTATION),
    Route(
        "compute.images.deprecate",
        "POST",
        f"{_ONE}/deprecate",
        _deprecate,
        MUTATION,
        "DeprecationStatus",
    ),
    Route(
        "compute.images.setLabels",
        "POST",
        f"{_IMAGES}/{{resource}}/setLabels",
        _set_labels,
        body="GlobalSetLabelsRequest",
    ),
]
