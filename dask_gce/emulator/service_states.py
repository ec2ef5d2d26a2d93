"""Which of Google's APIs are enabled in a project.

Owns: the APIs there are, their state, and the answer of one that is disabled. Source:
https://cloud.google.com/service-usage/docs/reference/rest/v1/services.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from dask_gce.emulator.errors import APIError, error_info

#: The APIs, as a part of those that Google has, by name.
TITLES: Mapping[str, str] = {
    "artifactregistry.googleapis.com": "Artifact Registry API",
    "bigquery.googleapis.com": "BigQuery API",
    "cloudbilling.googleapis.com": "Cloud Billing API",
    "cloudquotas.googleapis.com": "Cloud Quotas API",
    "cloudresourcemanager.googleapis.com": "Cloud Resource Manager API",
    "compute.googleapis.com": "Compute Engine API",
    "container.googleapis.com": "Kubernetes Engine API",
    "iam.googleapis.com": "Identity and Access Management (IAM) API",
    "iamcredentials.googleapis.com": "IAM Service Account Credentials API",
    "iap.googleapis.com": "Cloud Identity-Aware Proxy API",
    "logging.googleapis.com": "Cloud Logging API",
    "monitoring.googleapis.com": "Cloud Monitoring API",
    "networkmanagement.googleapis.com": "Network Management API",
    "oslogin.googleapis.com": "Cloud OS Login API",
    "secretmanager.googleapis.com": "Secret Manager API",
    "serviceusage.googleapis.com": "Service Usage API",
    "storage.googleapis.com": "Cloud Storage API",
}

#: Those that nobody has enabled yet.
_DISABLED = frozenset({"bigquery.googleapis.com", "container.googleapis.com"})


class ServiceStates:
    """The APIs that are enabled; all but a few, where nothing is said.

    It may be changed at any time and from any thread.

    Examples
    --------
    >>> services = ServiceStates()
    >>> services.disable("secretmanager.googleapis.com", project="my-project")
    >>> services.enabled("secretmanager.googleapis.com", "my-project")
    False
    >>> services.enabled("secretmanager.googleapis.com", "another-project")
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By API and project, where None is every project that has no entry of its own.
        self._states: dict[tuple[str, str | None], bool] = {}

    def disable(self, service: str, *, project: str | None = None) -> None:
        """Disable an API, so that its methods are refused.

        Parameters
        ----------
        service : str
            Its name, for example ``compute.googleapis.com``.
        project : str or None
            The project; None means every project.

        Raises
        ------
        ValueError
            There is no such API.
        """
        self._set(service, project, False)

    def enable(self, service: str, *, project: str | None = None) -> None:
        """Enable an API.

        Parameters
        ----------
        service : str
            Its name, for example ``compute.googleapis.com``.
        project : str or None
            The project; None means every project.

        Raises
        ------
        ValueError
            There is no such API.
        """
        self._set(service, project, True)

    def _set(self, service: str, project: str | None, enabled: bool) -> None:
        if service not in TITLES:
            raise ValueError(f"there is no API {service!r}: the APIs are {', '.join(TITLES)}")
        with self._lock:
            if project is None:
                for key in [key for key in self._states if key[0] == service]:
                    del self._states[key]
            self._states[service, project] = enabled

    def clear(self) -> None:
        """Forget what was enabled and disabled."""
        with self._lock:
            self._states.clear()

    def enabled(self, service: str, project: str) -> bool:
        """Tell whether an API is enabled.

        Parameters
        ----------
        service : str
            Its name.
        project : str
            The ID of the project.

        Returns
        -------
        bool
            Whether it is.
        """
        with self._lock:
            everywhere = self._states.get((service, None), service not in _DISABLED)
            return self._states.get((service, project), everywhere)

    def check(self, service: str, project: str, number: int) -> None:
        """Refuse a call of an API that is disabled.

        Parameters
        ----------
        service : str
            Its name.
        project : str
            The ID of the project.
        number : int
            The number of the project.

        Raises
        ------
        APIError
            It is disabled.
        """
        if self.enabled(service, project):
            return
        title = TITLES[service]
        url = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
        raise APIError(
            403,
            "accessNotConfigured",
            f"{title} has not been used in project {number} before or it is disabled. Enable it by"
            f" visiting {url} then retry. If you enabled this API recently, wait a few minutes for"
            " the action to propagate to our systems and retry.",
            domain="usageLimits",
            details=[
                {
                    "@type": "type.googleapis.com/google.rpc.Help",
                    "links": [
                        {"description": "Google developers console API activation", "url": url}
                    ],
                },
                error_info(
                    "SERVICE_DISABLED",
                    service=service,
                    serviceTitle=title,
                    consumer=f"projects/{number}",
                    containerInfo=str(number),
                    activationUrl=url,
                ),
            ],
        )
