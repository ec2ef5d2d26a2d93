"""Versions of the API: which one a request asks for, and whether it exists.

Source: https://cloud.google.com/compute/docs/api-versions.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from dask_gce.emulator.errors import bad_request

#: The first dated version of the API.
FIRST_VERSION = "2026-09-01"


def check_version(header: str | None, parameter: str | None) -> str | None:
    """Return the API version that a request asks for.

    Compute Engine's versions are dates, neither header nor parameter means the undated v1, for ever
    (https://cloud.google.com/compute/docs/api-versions). The emulator knows every version whose
    date has come, so that clients newer than the emulator work.

    Parameters
    ----------
    header : str or None
        The header ``X-Goog-Api-Version``.
    parameter : str or None
        The query parameter ``$apiVersion``.

    Returns
    -------
    str or None
        The version.

    Raises
    ------
    APIError
        Both are given, or there is no such version.

    Examples
    --------
    >>> check_version("2026-09-01", None)
    '2026-09-01'
    """
    if header is not None and parameter is not None:
        raise bad_request(
            "The API version must be given by the X-Goog-Api-Version header or by the"
            " $apiVersion query parameter, not by both."
        )
    version = header if header is not None else parameter
    if version is None:
        return None
    today = datetime.now(timezone.utc).date().isoformat()
    known = re.fullmatch(r"\d{4}-(?:0[1-9]|1[0-2])-01(?:-preview)?", version)
    if not known or not FIRST_VERSION <= version[:10] <= today:
        raise bad_request(f"Invalid API version: '{version}' is not a version of this API.")
    return version
