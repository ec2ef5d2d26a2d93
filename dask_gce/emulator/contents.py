"""What disks and images hold, where it is more than their names say.

Owns: which contents belong to which disk or image, and their end when the last of these is gone.
What contents are made of is the business of the kind of machines, see `machine`.
"""

from __future__ import annotations

from dask_gce.emulator.machine import Contents


class Shelf:
    """The contents of disks and images, by the IDs of these."""

    def __init__(self) -> None:
        self._held: dict[str, Contents] = {}

    def get(self, holder: str) -> Contents | None:
        """Return what a disk or an image holds.

        Parameters
        ----------
        holder : str
            Its ID.

        Returns
        -------
        Contents or None
            The contents; None where nothing is known of them.
        """
        return self._held.get(holder)

    def share(self, owner: str, holder: str) -> None:
        """Let a disk or an image hold what another one holds.

        Parameters
        ----------
        owner : str
            The ID of the one that it is made from.
        holder : str
            The ID of the new one.
        """
        if owner in self._held:
            self._held[holder] = self._held[owner]

    async def put(self, holder: str, contents: Contents | None) -> None:
        """Let a disk or an image hold contents, instead of those that it held.

        Parameters
        ----------
        holder : str
            Its ID.
        contents : Contents or None
            The contents; None for no particular ones.
        """
        before = self._held.pop(holder, None)
        if contents is not None:
            self._held[holder] = contents
        if before is not None and before not in self._held.values():
            await before.discard()

    async def drop(self, holder: str) -> None:
        """Forget what a disk or an image held, because it is gone.

        Parameters
        ----------
        holder : str
            Its ID.
        """
        await self.put(holder, None)
