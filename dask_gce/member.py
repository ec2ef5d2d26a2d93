"""One instance of a cluster: what was asked for, what was seen of it, and why it failed.

Owns the record and the words of its failure. When an instance has failed, and what is done about
it, is decided in `fleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from dask_gce import names
from dask_gce.batch import Batch
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, InstanceError, InstanceLost, OperationError, StartTimeout
from dask_gce.images import OFFICIAL_IMAGE
from dask_gce.instance import Instance, InstanceSpec
from dask_gce.startup import PHASE_KEY, PHASE_NAMESPACE
from dask_gce.terminal import harmless

#: Lines of the serial console that an error carries, and characters that are kept for the logs.
TAIL_LINES, KEPT_CONSOLE = 25, 64 * 1024


@dataclass(slots=True, eq=False)
class Member:
    """One instance of the fleet, from the moment it is decided until it is gone.

    Parameters
    ----------
    spec : InstanceSpec
        What was asked for.
    timeout : float
        Seconds it may take until it is ready.
    inserted : float
        When it was asked for, on the monotonic clock.
    accepted : asyncio.Future or None
        Done when Compute Engine has accepted the request, or refused it; None after that.
    batch : Batch or None
        The request that it went out with.
    failure : GCEError or None
        Why it was refused, or why its operation failed.
    instance : Instance or None
        What the last look saw of it.
    running_since : float or None
        When it was first seen RUNNING.
    ready_since : float or None
        When it first did what it was made for.
    phase : str
        The last boot phase it reported.
    missed : int
        How many looks in a row did not find it.
    asked : int
        How often it was asked about by itself.
    console : str
        The end of its serial console, once read.
    tail : str
        The last lines of that.
    """

    spec: InstanceSpec
    timeout: float
    inserted: float = field(default_factory=time.monotonic)
    accepted: asyncio.Future[None] | None = None
    batch: Batch | None = None
    failure: GCEError | None = None
    instance: Instance | None = None
    running_since: float | None = None
    ready_since: float | None = None
    phase: str = ""
    missed: int = 0
    asked: int = 0
    console: str = ""
    tail: str = ""

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.spec.name

    @property
    def zone(self) -> str:
        """The instance's zone."""
        return self.spec.zone

    @property
    def ready(self) -> bool:
        """Whether it has been ready once."""
        return self.ready_since is not None

    @property
    def never_was(self) -> bool:
        """Whether it is certain that the instance was not created."""
        if self.instance is not None:
            return False
        return isinstance(self.failure, OperationError) or self.batch is None or not self.batch.sent

    def withdraw(self) -> None:
        """Tell whoever waits for Compute Engine to accept the request that it will not be told."""
        if self.accepted is not None:
            self.accepted.cancel()

    def see(self, instance: Instance | None) -> None:
        """Take note of what a look found.

        Parameters
        ----------
        instance : Instance or None
            The instance, or None when it was not there.
        """
        if instance is None:
            self.missed += 1
            return
        self.missed = 0
        self.instance = instance
        if self.running_since is None and instance.status == "RUNNING":
            self.running_since = time.monotonic()

    async def read_phase(self, compute: Compute) -> None:
        """Ask the instance how far its boot has come; no answer changes nothing.

        Parameters
        ----------
        compute : Compute
            The Compute API.
        """
        self.asked += 1
        with contextlib.suppress(GCEError):
            attributes = await compute.get_guest_attributes(
                self.zone, self.name, f"{PHASE_NAMESPACE}/"
            )
            self.phase = attributes.get(PHASE_KEY, self.phase)

    async def inspect(self, compute: Compute) -> None:
        """Ask for the boot phase and the serial console; no answer changes nothing.

        Parameters
        ----------
        compute : Compute
            The Compute API.
        """
        if self.instance is None or self.missed:
            return
        await self.read_phase(compute)
        with contextlib.suppress(GCEError):
            text, _ = await compute.get_serial_port_output(self.zone, self.name)
            self.console = harmless(text)[-KEPT_CONSOLE:]
            self.tail = "\n".join(self.console.splitlines()[-TAIL_LINES:])

    def failed(self, cls: type[InstanceError], what: str) -> InstanceError:
        """Make an error that tells all that is known of the instance.

        Parameters
        ----------
        cls : type
            The error's class.
        what : str
            What happened, the end of a sentence.

        Returns
        -------
        InstanceError
            The error, to be raised or kept.
        """
        spec = self.spec
        role = spec.labels.get(names.ROLE_LABEL, "instance")
        lines = [
            f"The {role} {self.name} (project {spec.project}, zone {spec.zone}) failed: {what}.",
            f"Last boot phase: {self.phase or 'none reported'}.",
            f"Next step: {self._next_step(cls)}",
        ]
        if self.tail:
            lines.append(f"Its serial console ends with:\n{self.tail}")
        error = cls(
            "\n".join(lines),
            name=self.name,
            zone=spec.zone,
            phase=self.phase,
            serial_tail=self.tail,
        )
        error.__cause__ = self.failure
        return error

    def _next_step(self, cls: type[InstanceError]) -> str:
        phase = self.phase
        if phase.startswith("failed: versions"):
            return "change what it says above, or start all the same with version_check=False."
        if phase.startswith("failed: container_image"):
            advice = "check container_image, and that the instance may reach and read its registry"
            if OFFICIAL_IMAGE in phase:
                # https://github.com/dask/dask-docker/pkgs/container/dask
                return (
                    f"{advice}. Dask publishes images for some versions of Python only: set "
                    "container_image, or runtime='vm'."
                )
            return f"{advice}."
        if phase.startswith(
            ("failed: the environment", "failed: the packages", "failed: no Python")
        ):
            return "check environment; the reason above is what the installer said last."
        if phase.startswith("failed: docker run"):
            return "read the end of the serial console below for what docker said of the options."
        if phase.startswith("failed"):
            return "read the end of the serial console below for what Dask said."
        if cls is InstanceLost:
            return (
                "see who ended it: gcloud compute operations list "
                f"--filter=targetLink:{self.name} --project {self.spec.project}"
            )
        if cls is not StartTimeout:
            return "see the reason above; another zone or machine type may help."
        if phase == "running":
            return (
                "Dask runs but cannot be reached: check the firewall rules of the network, and "
                "whether this computer reaches the address (see external_ip)."
            )
        if phase == "":
            return (
                "the startup script has not reported: check that the source_image has Google's "
                "guest agent, curl and docker, and that guest attributes are allowed."
            )
        return "read the serial console, or give it more time: start_timeout, worker_start_timeout."
