"""What a check has found, and how a check ends that cannot look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal

from dask_gce.errors import CredentialsError, GCEError, PermissionDenied, SettingsError

__all__ = ["Finding", "Status", "failed", "ok", "settle", "unknown"]

Status = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Parameters
    ----------
    check : str
        The check's name.
    status : {"ok", "failed", "unknown"}
        How it is; ``"unknown"`` if that could not be found out.
    detail : str
        What was seen, in a sentence.
    repair : tuple of str
        Lines for a shell, each of which repairs it or a part of it.
    """

    check: str
    status: Status
    detail: str
    repair: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON data.

        Returns
        -------
        dict
            Its fields.
        """
        return {
            "check": self.check,
            "status": self.status,
            "detail": self.detail,
            "repair": list(self.repair),
        }


def ok(check: str, detail: str) -> Finding:
    """Return the finding that all is well.

    Parameters
    ----------
    check : str
        The check's name.
    detail : str
        What was seen.

    Returns
    -------
    Finding
        The finding.
    """
    return Finding(check, "ok", detail)


def failed(check: str, detail: str, *repair: str) -> Finding:
    """Return the finding that something keeps a cluster from working.

    Parameters
    ----------
    check : str
        The check's name.
    detail : str
        What was seen.
    *repair : str
        Lines for a shell that repair it.

    Returns
    -------
    Finding
        The finding, with each line once.
    """
    return Finding(check, "failed", detail, tuple(dict.fromkeys(repair)))


def unknown(check: str, detail: str, *repair: str) -> Finding:
    """Return the finding that something could not be found out.

    Parameters
    ----------
    check : str
        The check's name.
    detail : str
        Why not.
    *repair : str
        Lines for a shell with which it can be found out.

    Returns
    -------
    Finding
        The finding, with each line once.
    """
    return Finding(check, "unknown", detail, tuple(dict.fromkeys(repair)))


async def settle(check: str, work: Awaitable[Finding], seconds: float) -> Finding:
    """Wait for a check, whatever becomes of it.

    Parameters
    ----------
    check : str
        The check's name.
    work : awaitable
        The check.
    seconds : float
        How long it may take.

    Returns
    -------
    Finding
        What it found. A setting that cannot be is a failure; whatever else keeps a check from
        looking leaves it unknown.
    """
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return unknown(check, f"There was no answer within {seconds:g} seconds.")
    except (SettingsError, CredentialsError) as error:
        return failed(check, str(error))
    except PermissionDenied as error:
        return unknown(check, f"It may not be looked at: {error}")
    except GCEError as error:
        return unknown(check, f"It could not be looked at: {error}")
