"""One instance of a cluster: what was asked for, what was seen of it, and why it failed.

Owns the record and the words of its failure. When an instance has failed, and what is done about
it, is decided in `fleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, InstanceError, InstanceLost, StartTimeout
from dask_gce.instance import Instance, InstanceSpec
from dask_gce.operation import Operation
from dask_gce.startup import PHASE_KEY, PHASE_NAMESPACE

#: Lines of the serial console that an error carries.
TAIL_LINES = 25


@dataclass
class Member:
    """One instance of the fleet, from the moment it is decided until it is gone.

    Parameters
    ----------
    spec : InstanceSpec
        What was asked for.
    timeout : float
        Seconds it may take until it is ready.
    request_id : str
        Makes the insert safe to repeat.
    inserted : float
        When it was asked for, on the monotonic clock.
    call : asyncio.Task or None
        The insert's call. It is never cancelled: it may create something all the same.
    operation : Operation or None
        The insert's operation, once accepted.
    instance : Instance or None
        What the last look saw of it.
    phase : str
        The last boot phase it reported.
    missed : int
        How many looks in a row did not find it.
    asked : int
        How often its boot phase was asked for.
    ready : bool
        Whether it has been ready once.
    """

    spec: InstanceSpec
    timeout: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    inserted: float = field(default_factory=time.monotonic)
    call: asyncio.Task[Operation] | None = None
    operation: Operation | None = None
    instance: Instance | None = None
    phase: str = ""
    missed: int = 0
    asked: int = 0
    ready: bool = False

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.spec.name

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
                self.spec.zone, self.name, f"{PHASE_NAMESPACE}/"
            )
            self.phase = attributes.get(PHASE_KEY, self.phase)

    async def failure(self, cls: type[InstanceError], what: str, compute: Compute) -> InstanceError:
        """Make an error that tells all there is to know of the instance.

        Parameters
        ----------
        cls : type
            The error's class.
        what : str
            What happened, the end of a sentence.
        compute : Compute
            The Compute API, which is asked for the boot phase and the serial console.

        Returns
        -------
        InstanceError
            The error, to be raised or kept.
        """
        tail = ""
        if self.instance is not None:
            await self.read_phase(compute)
            with contextlib.suppress(GCEError):
                text, _ = await compute.get_serial_port_output(self.spec.zone, self.name)
                tail = "\n".join(text.splitlines()[-TAIL_LINES:])
        spec = self.spec
        role = spec.labels.get(names.ROLE_LABEL, "instance")
        lines = [
            f"The {role} {self.name} (project {spec.project}, zone {spec.zone}) failed: {what}.",
            f"Last boot phase: {self.phase or 'none reported'}.",
            f"Next step: {self._next_step(cls)}",
        ]
        if tail:
            lines.append(f"Its serial console ends with:\n{tail}")
        return cls(
            "\n".join(lines), name=self.name, zone=spec.zone, phase=self.phase, serial_tail=tail
        )

    def _next_step(self, cls: type[InstanceError]) -> str:
        phase = self.phase
        if phase.startswith("failed: docker"):
            return "check container_image, and that the instance may reach and read its registry."
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
