"""The verbs for disk images, on the event loop.

API JSON in, API JSON out. What an image is made of, and which images are ours, is left to
`disk_images`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from dask_gce.errors import NotFound
from dask_gce.failures import Place
from dask_gce.library import Call
from dask_gce.operation import Operation, parse_operation
from dask_gce.verbs import Verbs

__all__ = ["ImageVerbs"]


class ImageVerbs(Verbs):
    """The verbs of `Compute` for disk images.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    async def insert_image(
        self, body: Mapping[str, Any], request_id: str | None = None
    ) -> Operation:
        """Begin to make an image of a disk.

        Parameters
        ----------
        body : mapping
            A ``compute#image`` resource as API JSON.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started, a global one; it can still fail.
        """
        name = str(body.get("name", ""))
        call = Call(
            "Images",
            "insert_unary",
            "InsertImageRequest",
            Place(f"make image {name}", self.project, name=name),
            {"project": self.project, "request_id": request_id or str(uuid.uuid4())},
            body,
            "image_resource",
            group="write",
        )
        return parse_operation(await self._caller.answer(call, creates=[_key(name)]))

    async def get_image(self, name: str, project: str | None = None) -> dict[str, Any]:
        """Return an image.

        Parameters
        ----------
        name : str
            The image.
        project : str or None
            The project that owns it, for example ``"cos-cloud"``; None for that of the client.

        Returns
        -------
        dict
            A ``compute#image`` resource.
        """
        call = Call(
            "Images",
            "get",
            "GetImageRequest",
            Place(f"get image {name}", project or self.project, name=name),
            {"project": project or self.project, "image": name},
        )
        return await self._caller.answer(call)

    async def get_image_from_family(self, project: str, family: str) -> dict[str, Any]:
        """Return the newest image of a family that is not deprecated.

        Parameters
        ----------
        project : str
            The project that owns the image, for example ``"cos-cloud"``.
        family : str
            For example ``"cos-stable"``.

        Returns
        -------
        dict
            A ``compute#image`` resource.
        """
        call = Call(
            "Images",
            "get_from_family",
            "GetFromFamilyImageRequest",
            Place(f"get the image of family {family}", project, name=family),
            {"project": project, "family": family},
        )
        return await self._caller.answer(call)

    async def list_images(self, filter: str = "") -> list[dict[str, Any]]:
        """Return the images of the project.

        Parameters
        ----------
        filter : str
            An AIP-160 filter; empty for all.

        Returns
        -------
        list of dict
            ``compute#image`` resources, from all pages.
        """
        fields = {"project": self.project}
        if filter:
            fields["filter"] = filter
        place = Place("list images", self.project)
        pages = self._pages(Call("Images", "list", "ListImagesRequest", place, fields))
        return [item async for page in pages for item in page.get("items", ())]

    async def delete_image(self, name: str, request_id: str | None = None) -> Operation | None:
        """Begin to delete an image.

        Waits first for an exchange that may be making it; see `calls` on cancelling.

        Parameters
        ----------
        name : str
            The image.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation or None
            The operation that was started, a global one; None when there is no such image.
        """
        await self._caller.settled(_key(name))
        call = Call(
            "Images",
            "delete_unary",
            "DeleteImageRequest",
            Place(f"delete image {name}", self.project, name=name),
            {
                "project": self.project,
                "image": name,
                "request_id": request_id or str(uuid.uuid4()),
            },
            group="write",
        )
        try:
            return parse_operation(await self._caller.answer(call))
        except NotFound:
            return None

    async def image_settled(self, name: str) -> None:
        """Wait until no exchange is under way that may begin to make an image.

        Parameters
        ----------
        name : str
            The image.
        """
        await self._caller.settled(_key(name))


def _key(name: str) -> str:
    """Return the key by which `calls` knows what a call may create; no zone is called images."""
    return f"images/{name}"
