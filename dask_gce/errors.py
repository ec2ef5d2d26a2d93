"""Every error this package raises, as one tree.

::

    GCEError
    +- SettingsError(ValueError)    .key
    +- CredentialsError
    +- TransportError               .method .url
    +- APIError                     .status .reason .method .url
    |  +- NotFound  AlreadyExists  PermissionDenied  QuotaExceeded  RateLimited  ServerFault
    +- OperationError               .operation .code .errors
    |  +- OutOfCapacity
    +- InstanceError                .name .zone .phase .serial_tail
    |  +- StartTimeout  InstanceLost .preempted
    +- WorkersFailed
    +- ClusterNotFound              .cluster
    +- ClusterEnded                 .cluster .limit
    +- CostLimitExceeded            .limit .fits
    +- TunnelError                  .code

Which class is raised follows from an HTTP status, a reason or an operation's error code, never from
the words of a message. Every error pickles, and every message stands alone: SpecCluster shows only
the text, so it names the project, zone, instance and the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "APIError",
    "AlreadyExists",
    "ClusterEnded",
    "ClusterNotFound",
    "CostLimitExceeded",
    "CredentialsError",
    "GCEError",
    "InstanceError",
    "InstanceLost",
    "NotFound",
    "OperationError",
    "OutOfCapacity",
    "PermissionDenied",
    "QuotaExceeded",
    "RateLimited",
    "ServerFault",
    "SettingsError",
    "StartTimeout",
    "TransportError",
    "TunnelError",
    "WorkersFailed",
]


class GCEError(Exception):
    """Base of every error raised by dask_gce.

    Parameters
    ----------
    message : str
        What happened, to what, and what to do next.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ would call the class with `args` alone and lose keyword-only fields.
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[GCEError], state: dict[str, Any]) -> GCEError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class SettingsError(GCEError, ValueError):
    """A setting is unknown, impossible or missing.

    Parameters
    ----------
    message : str
        The setting, its value, where it came from and the remedy.
    key : str
        The setting, in the spelling of the keyword argument.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class CredentialsError(GCEError):
    """No usable Google credentials, no project, or no usable connection file could be found."""


class TransportError(GCEError):
    """No answer came: the connection failed, broke or timed out.

    Parameters
    ----------
    message : str
        What was asked of whom, and what went wrong.
    method : str
        The HTTP method.
    url : str
        The address that was asked.
    """

    def __init__(self, message: str, *, method: str = "", url: str = "") -> None:
        super().__init__(message)
        self.method = method
        self.url = url


class APIError(GCEError):
    """Compute Engine refused a request.

    Parameters
    ----------
    message : str
        Google's sentence and the next step.
    status : int
        The HTTP status.
    reason : str
        Google's reason, for example ``"quotaExceeded"``; empty when the answer had none.
    method : str
        The HTTP method.
    url : str
        The address that was asked.
    """

    def __init__(
        self, message: str, *, status: int, reason: str = "", method: str = "", url: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.method = method
        self.url = url


class NotFound(APIError):
    """The resource does not exist (404)."""


class AlreadyExists(APIError):
    """A resource of that name exists already (409, reason ``alreadyExists``)."""


class PermissionDenied(APIError):
    """The caller may not do this, or the API is not enabled (401, 403)."""


class QuotaExceeded(APIError):
    """A quota of the project does not suffice (403, reason ``quotaExceeded``)."""

    #: The quota's name, for example ``"CPUS"``; empty if Compute Engine did not tell.
    metric: str = ""
    #: The region that it counts in, ``"global"`` for all together; empty if that is not told.
    region: str = ""
    #: How much the project may use, how much it uses, and how much more was asked for.
    limit: float | None = None
    usage: float | None = None
    wanted: float | None = None


class RateLimited(APIError):
    """Too many requests in this minute (403 ``rateLimitExceeded``, 429)."""


class ServerFault(APIError):
    """Compute Engine failed or is overloaded (5xx)."""


class OperationError(GCEError):
    """A request was accepted, but the operation it started failed.

    Parameters
    ----------
    message : str
        Google's sentence and the next step.
    operation : str
        The operation's name.
    code : str
        The first error code, for example ``"RESOURCE_ALREADY_EXISTS"``.
    errors : sequence of dict
        All of ``operation.error.errors`` as Google sent them.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        code: str = "",
        errors: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.code = code
        self.errors = tuple(errors)


class OutOfCapacity(OperationError):
    """The zone or region has no machine of that type to give at the moment."""


class InstanceError(GCEError):
    """An instance did not do what it was made for.

    Parameters
    ----------
    message : str
        What happened, with phase, serial tail and next step.
    name : str
        The instance.
    zone : str
        Its zone.
    phase : str
        The last boot phase it reported; empty when it reported none.
    serial_tail : str
        The last lines of its serial console.
    """

    def __init__(
        self, message: str, *, name: str, zone: str = "", phase: str = "", serial_tail: str = ""
    ) -> None:
        super().__init__(message)
        self.name = name
        self.zone = zone
        self.phase = phase
        self.serial_tail = serial_tail


class StartTimeout(InstanceError):
    """An instance was not ready before its deadline."""


class InstanceLost(InstanceError):
    """An instance is gone that should be there, or about to go."""

    #: Whether Compute Engine has taken it away, as it may with a Spot machine.
    preempted: bool = False


class WorkersFailed(GCEError):
    """Workers failed to start so many times in a row that no more are started."""


class ClusterNotFound(GCEError):
    """No cluster of that name runs.

    Parameters
    ----------
    message : str
        Where it was looked for, and the next step.
    cluster : str
        The name that was looked for.
    """

    def __init__(self, message: str, *, cluster: str = "") -> None:
        super().__init__(message)
        self.cluster = cluster


class ClusterEnded(GCEError):
    """The cluster has ended by one of its limits.

    Parameters
    ----------
    message : str
        Which limit it was, and what to do.
    cluster : str
        The cluster's name.
    limit : str
        The limit's setting: ``"idle_timeout"``, ``"no_client_timeout"`` or ``"max_lifetime"``.
    """

    def __init__(self, message: str, *, cluster: str = "", limit: str = "") -> None:
        super().__init__(message)
        self.cluster = cluster
        self.limit = limit


class CostLimitExceeded(GCEError):
    """More machines were asked for than ``max_hourly_cost`` allows.

    Parameters
    ----------
    message : str
        What the machines would cost, what is allowed, how many that makes, and the remedy.
    limit : float
        What all machines together may cost, in US dollars an hour.
    fits : int or None
        How many workers fit in; None if that is not known, since prices are not.
    """

    def __init__(self, message: str, *, limit: float = 0.0, fits: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.fits = fits


class TunnelError(GCEError):
    """An IAP tunnel could not be opened or broke.

    Parameters
    ----------
    message : str
        What happened and the next step.
    code : int
        The WebSocket close code.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
