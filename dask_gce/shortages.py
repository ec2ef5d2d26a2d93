"""A quota that does not suffice, in the same words wherever it is met.

Owns: what Compute Engine says of a quota, in a refusal or in an operation's error, and the sentence
and the next step that follow. Which machines count for which quota is left to `quota`.

Sources: `Allocation quotas <https://docs.cloud.google.com/compute/resource-usage>`_, the schema
``QuotaExceededInfo`` of the discovery document, and `quota preferences
<https://docs.cloud.google.com/sdk/gcloud/reference/beta/quotas/preferences/create>`_.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["EVERYWHERE", "FIREWALLS", "GLOBAL", "Shortage", "raise_command"]

#: Where the metrics of all regions together belong.
GLOBAL: Final = "global"

#: How many firewall rules there may be.
FIREWALLS: Final = "FIREWALLS"

#: Of all regions together; shown with the project.
EVERYWHERE: Final = frozenset({"CPUS_ALL_REGIONS", FIREWALLS, "GPUS_ALL_REGIONS"})

#: Compute Engine's sentence, for example "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-west1."
_SAID: Final = re.compile(
    r"Quota '(?P<metric>[\w-]+)' exceeded\."
    r"(?:\s+Limit: (?P<limit>[0-9.]*[0-9]))?(?: in region (?P<region>[a-z0-9-]+))?"
)


@dataclass(frozen=True)
class Shortage:
    """What there is not enough of.

    Parameters
    ----------
    metric : str
        The quota's name, for example ``"CPUS"``.
    region : str
        The region it counts in, or ``"global"``; empty if that is not told.
    limit : float or None
        How much the project may use; None if that is not told.
    usage : float or None
        How much it uses; None if that is not known.
    wanted : float or None
        How much more was asked for; None if that is not known.

    Examples
    --------
    >>> print(Shortage("CPUS", "us-central1", 100.0, 40.0, 400.0))
    quota CPUS in region us-central1: limit 100, used 40, wanted 400
    """

    metric: str
    region: str = ""
    limit: float | None = None
    usage: float | None = None
    wanted: float | None = None

    @classmethod
    def of_sentence(cls, text: str) -> Shortage | None:
        """Read what a refusal says.

        Parameters
        ----------
        text : str
            Compute Engine's sentence.

        Returns
        -------
        Shortage or None
            What it tells; None if it names no quota.

        Examples
        --------
        >>> Shortage.of_sentence("Quota 'CPUS_ALL_REGIONS' exceeded.  Limit: 32.0 globally.")
        Shortage(metric='CPUS_ALL_REGIONS', region='global', limit=32.0, usage=None, wanted=None)
        """
        said = _SAID.search(text)
        if said is None:
            return None
        metric = said["metric"].upper().replace("-", "_")
        limit = None if said["limit"] is None else float(said["limit"])
        region = said["region"] or (GLOBAL if "globally" in text or metric in EVERYWHERE else "")
        return cls(metric, region, limit)

    @classmethod
    def of_errors(cls, errors: Iterable[Mapping[str, Any]]) -> Shortage | None:
        """Read what the errors of an operation say.

        Parameters
        ----------
        errors : iterable of mapping
            ``operation.error.errors``.

        Returns
        -------
        Shortage or None
            What they tell; None if they name no quota.

        Examples
        --------
        >>> Shortage.of_errors([{"code": "QUOTA_EXCEEDED", "errorDetails": [{"quotaInfo": {
        ...     "metricName": "compute.googleapis.com/cpus", "limit": 8.0,
        ...     "limitName": "CPUS-per-project-region",
        ...     "dimensions": {"region": "us-central1"}}}]}])
        Shortage(metric='CPUS', region='us-central1', limit=8.0, usage=None, wanted=None)
        """
        for error in errors:
            for detail in error.get("errorDetails") or ():
                info = detail.get("quotaInfo") or {}
                # The limit's name is nearer to what the console and quotas[] call it.
                name = str(info.get("limitName") or info.get("metricName") or "")
                metric = re.sub(r"-per-project.*", "", name.rpartition("/")[2])
                metric = metric.upper().replace("-", "_")
                if metric:
                    region = str((info.get("dimensions") or {}).get("region", ""))
                    region = region or (GLOBAL if metric in EVERYWHERE else "")
                    return cls(metric, region, _number(info.get("limit")))
            if (said := cls.of_sentence(str(error.get("message", "")))) is not None:
                return said
        return None

    def __str__(self) -> str:
        numbers = (("limit", self.limit), ("used", self.usage), ("wanted", self.wanted))
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers if value is not None)
        where = {GLOBAL: " in all regions together", "": ""}.get(
            self.region, f" in region {self.region}"
        )
        return f"quota {self.metric}{where}" + (f": {shown}" if shown else "")

    def next_step(self, project: str) -> str:
        """Tell what to do about it.

        Parameters
        ----------
        project : str
            Project ID.

        Returns
        -------
        str
            Where to ask for more, and the command that does, as far as it is known how much.

        Examples
        --------
        >>> print(Shortage("CPUS", "us-central1", 100.0, 40.0, 400.0).next_step("mine"))
        ... # doctest: +NORMALIZE_WHITESPACE
        Use another region or machine type, or ask for more at
        https://console.cloud.google.com/iam-admin/quotas?project=mine or by: gcloud beta quotas
        preferences create --service=compute.googleapis.com --quota-id=CPUS-per-project-region
        --preferred-value=440 --dimensions=region=us-central1 --project=mine
        """
        step = (
            "Use another region or machine type, or ask for more at "
            f"https://console.cloud.google.com/iam-admin/quotas?project={project}"
        )
        if self.wanted is None or not self.region:
            return step
        needed = math.ceil((self.usage or 0.0) + self.wanted)
        return f"{step} or by: {raise_command(project, self.region, self.metric, needed)}"


def raise_command(project: str, region: str, metric: str, wanted: int) -> str:
    """Return the command that asks Google for more of a quota.

    Parameters
    ----------
    project : str
        Project ID.
    region : str
        The region, which does not matter for a quota of all regions together.
    metric : str
        The quota's name.
    wanted : int
        How much there should be.

    Returns
    -------
    str
        A shell command.
    """
    name = metric.replace("_", "-")
    everywhere = metric in EVERYWHERE or region == GLOBAL
    return shlex.join(
        [
            *("gcloud", "beta", "quotas", "preferences", "create"),
            "--service=compute.googleapis.com",
            f"--quota-id={name}-per-project" + ("" if everywhere else "-region"),
            f"--preferred-value={wanted}",
            *(() if everywhere else (f"--dimensions=region={region}",)),
            f"--project={project}",
        ]
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
