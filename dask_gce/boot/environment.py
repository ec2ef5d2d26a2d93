"""The description of the Python environment of a cluster's machines, the same for all of them.

Owns the form in which it travels: as metadata of a machine, and as data for another process that
adds machines. What becomes of the setting ``environment`` is decided in `resolution`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_gce.boot.wheels import Wheel

__all__ = ["Environment"]


@dataclass(frozen=True)
class Environment:
    """What is installed on a machine before Dask starts.

    Parameters
    ----------
    python : str
        Major and minor version of Python, such as ``"3.11"``.
    file : str
        Name of the file that lists the packages: ``"requirements.txt"`` or ``"pylock.toml"``.
    text : str
        What is in it.
    options : tuple of str
        Options of the installer.
    wheels : tuple of Wheel
        Packages that machines get from here.
    summary : str
        What this is, for people.
    left_out : mapping of str to str
        What the client has and machines will not have, with the reason.
    """

    python: str
    file: str
    text: str = field(repr=False)
    options: tuple[str, ...] = ()
    wheels: tuple[Wheel, ...] = ()
    summary: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        """What tells it from others, but for the wheels, by which a machine knows it again.

        A disk image that has it is of use also when one's own packages have changed.
        """
        parts = json.dumps([self.python, self.file, self.text, self.options])
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    def items(self) -> dict[str, str]:
        """Return the metadata items that tell a machine of it.

        Returns
        -------
        dict of str to str
            Items by key.
        """
        items = {
            "dask-gce-environment": self.digest,
            "dask-gce-environment-summary": self.summary,
            "dask-gce-python": self.python,
            "dask-gce-requirements": self.text,
            "dask-gce-requirements-file": self.file,
            "dask-gce-install-options": " ".join(self.options),
        }
        if self.wheels:
            items["dask-gce-wheels"] = json.dumps([wheel.dump() for wheel in self.wheels])
        return items

    def dump(self) -> dict[str, Any]:
        """Write it as JSON data.

        Returns
        -------
        dict of str to object
            All that another process needs to add machines with this environment.
        """
        return {
            "python": self.python,
            "file": self.file,
            "text": self.text,
            "options": list(self.options),
            "wheels": [wheel.dump() for wheel in self.wheels],
            "summary": self.summary,
        }

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Environment:
        """Make the environment again that `dump` wrote.

        Parameters
        ----------
        values : mapping
            What `dump` returned.

        Returns
        -------
        Environment
            The environment, its wheels without a place on this machine.

        Raises
        ------
        KeyError
            If something is missing.
        TypeError
            If something is of another type.

        Examples
        --------
        >>> environment = Environment("3.11", "requirements.txt", "dask", summary="dask")
        >>> Environment.restore(environment.dump()) == environment
        True
        """
        return cls(
            python=str(values["python"]),
            file=str(values["file"]),
            text=str(values["text"]),
            options=tuple(map(str, values["options"])),
            wheels=tuple(
                Wheel(str(each["name"]), int(each["size"]), str(each["sha256"]))
                for each in values["wheels"]
            ),
            summary=str(values["summary"]),
        )
