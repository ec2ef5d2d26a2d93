"""Which method of the API a request means, and what a handler is told.

Owns: routes, their matching, and `Call`, the one argument of every handler. Handlers live beside
their subject and return a value: a resource, or the operation they began.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_gce.emulator.catalog.places import ZONES, check_region
from dask_gce.emulator.cloud import Cloud, Project
from dask_gce.emulator.errors import APIError, bad_request, invalid
from dask_gce.emulator.identity import Identity
from dask_gce.emulator.operations import Operation, Work

#: Query parameters of every list method.
LIST = frozenset({"filter", "maxResults", "orderBy", "pageToken", "returnPartialSuccess"})
#: Query parameters of every aggregated list method.
AGGREGATED = LIST | {"includeAllScopes", "serviceProjectNumber"}
#: Query parameters of every method that begins an operation.
MUTATION = frozenset({"requestId"})

#: What a handler returns: JSON, or the operation it began, now or later; None is "204 No Content".
Reply = dict[str, Any] | Operation | None
Handler = Callable[["Call"], "Reply | Awaitable[Reply]"]

#: What the paths of an API begin with, where it is more than a version.
_BASES = {"compute": "/compute/v1/"}


@dataclass(frozen=True)
class Route:
    """One method of the API.

    Parameters
    ----------
    method_id : str
        Its ID in Google's discovery document, for example ``compute.instances.insert``.
    verb : str
        The HTTP method.
    template : str
        The path, parameters in braces: of the Compute API below ``/compute/v1/``, of any other
        from its version on.
    handler : callable
        What answers it.
    query : frozenset of str
        The query parameters it knows, besides those of every method.
    body : str or None
        The name of the schema of its request body.
    """

    method_id: str
    verb: str
    template: str
    handler: Handler
    query: frozenset[str] = frozenset()
    body: str | None = None

    @property
    def service(self) -> str:
        """The API it belongs to, for example ``compute``."""
        return self.method_id.partition(".")[0]

    @property
    def full_template(self) -> str:
        """The path from its first slash on, parameters in braces."""
        return f"{_BASES.get(self.service, '/')}{self.template}"


@dataclass
class Call:
    """One request, as a handler sees it.

    Parameters
    ----------
    cloud : Cloud
        The state.
    route : Route
        The method that is called.
    params : dict
        The parameters from the path.
    query : dict
        The parameters from the query.
    body : dict
        The request body; empty when there is none.
    version : str or None
        The API version that was asked for; None is the undated v1.
    repeated : mapping of str to sequence of str
        Every value of each parameter from the query.
    identity : Identity or None
        The service account in whose name a machine asks; None is the client.
    """

    cloud: Cloud
    route: Route
    params: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    identity: Identity | None = None

    @property
    def project(self) -> Project:
        """The project of the request."""
        return self.cloud.project(self.params["project"])

    @property
    def zone(self) -> str:
        """The zone of the request, which exists."""
        zone = self.params["zone"]
        if zone not in ZONES:
            # 404 only where the zone itself is asked for.
            raise invalid("zone", zone, "Unknown zone.")
        return zone

    @property
    def region(self) -> str:
        """The region of the request, which exists."""
        return check_region(self.params["project"], self.params["region"])

    @property
    def scope(self) -> str:
        """Where the request acts: ``zones/Z``, ``regions/R`` or ``global``."""
        if "zone" in self.params:
            return f"zones/{self.zone}"
        if "region" in self.params:
            return f"regions/{self.region}"
        return "global"

    @property
    def user(self) -> str:
        """Who asks."""
        return self.project.user if self.identity is None else self.identity.email

    @property
    def path(self) -> str:
        """The path of the request, as far as the route's template goes."""
        return self.route.template.format(**self.params)

    def begin(self, operation_type: str, target: str, work: Work, **extra: Any) -> Operation:
        """Begin an operation where the request acts.

        Parameters
        ----------
        operation_type : str
            Google's word for it, for example ``insert``.
        target : str
            The path of the resource it works on, below the scope.
        work : callable
            What it does.
        **extra
            As for :meth:`Cloud.begin`.

        Returns
        -------
        Operation
            The operation, still PENDING.
        """
        return self.cloud.begin(
            self.project, self.scope, operation_type, target, work, user=self.user, **extra
        )


class Router:
    """Finds the route of a request.

    Parameters
    ----------
    routes : iterable of Route
        Every method there is.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}
        for route in routes:
            segments = route.full_template.split("/")
            self._routes.setdefault((route.verb, len(segments)), []).append((segments, route))
        for candidates in self._routes.values():
            # Fixed words win over parameters: images/family/F is not images/NAME, and a verb after
            # a colon is no part of a name.
            candidates.sort(key=lambda one: (one[1].template.count("{"), ":" not in one[0][-1]))

    def match(self, verb: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return the route of a request and the parameters in its path.

        Parameters
        ----------
        verb : str
            The HTTP method.
        path : str
            The path.

        Returns
        -------
        Route
            The route.
        dict
            The parameters.

        Raises
        ------
        APIError
            There is no such method.
        """
        segments = path.split("/")
        for template, route in self._routes.get((verb, len(segments)), ()):
            params = {}
            for expected, given in zip(template, segments, strict=True):
                name, _, suffix = expected.removeprefix("{").partition("}")
                value = given.removesuffix(suffix)
                if expected.startswith("{") and value and given == value + suffix:
                    params[name] = value
                elif expected != given:
                    break
            else:
                return route, params
        raise APIError(404, "notFound", f"The requested URL {path} was not found.")


def number(call: Call, name: str, default: int, least: int, most: int) -> int:
    """Return an integer query parameter.

    Parameters
    ----------
    call : Call
        The request.
    name : str
        The parameter.
    default : int
        Its value when it is not given.
    least : int
        The smallest value it may have.
    most : int
        The largest value it may have.

    Returns
    -------
    int
        The value.

    Raises
    ------
    APIError
        It is no integer in that range.
    """
    text = call.query.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise bad_request(f"Invalid value for '{name}': '{text}'") from None
    if not least <= value <= most:
        raise APIError(
            400,
            "invalidParameter",
            f"Invalid value '{value}'. Values must be within the range: [{least}, {most}]",
        )
    return value
