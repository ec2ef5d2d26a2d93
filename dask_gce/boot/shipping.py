"""Wheels on their way from the client to the machines.

They go through the scheduler, over the cluster's own TLS: that needs no bucket and no rights
beside those that make machines, and knows no such limit as the metadata's. The scheduler keeps them
for machines that come later, also when this process is gone. Its side, and the machines', is
``dask_gce/guest/wheelhouse.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from dask_gce.boot.wheels import Wheel
from dask_gce.errors import GCEError

__all__ = ["ship"]

#: Bytes of a wheel in one message. Several clients, or a slow line, keep the scheduler no longer.
CHUNK: Final = 4 * 2**20
#: Seconds until a scheduler that did not answer is asked again.
AGAIN: Final = 0.5


async def ship(
    scheduler: Any,
    wheels: Iterable[Wheel],
    *,
    timeout: float,
    tell: Callable[[str], object] = lambda text: None,
) -> None:
    """Send wheels to the scheduler, and wait until it has installed them for itself.

    Parameters
    ----------
    scheduler : distributed.core.rpc
        The connection to the scheduler.
    wheels : iterable of Wheel
        The wheels of the cluster's environment.
    timeout : float
        Seconds that this may take.
    tell : callable
        Told of what takes time, in a sentence.

    Raises
    ------
    GCEError
        If it took longer, if a wheel is no longer what it was, or if the scheduler cannot install
        it.
    """
    known = {wheel.name: wheel for wheel in wheels}
    if not known:
        return
    reasons = ["the scheduler does not answer"]
    try:
        # Also an answer that never comes is waited for no longer.
        await asyncio.wait_for(_ship(scheduler, known, tell, reasons), timeout)
    except asyncio.TimeoutError:
        raise GCEError(
            f"Local packages could not be sent to the scheduler within {timeout:g} s "
            f"(start_timeout): {reasons[-1]}."
        ) from None


async def _ship(
    scheduler: Any,
    known: Mapping[str, Wheel],
    tell: Callable[[str], object],
    reasons: list[str],
) -> None:
    """Send what is missing until all is installed; add why it is not yet."""
    told = False
    while True:
        try:
            state = await scheduler.dask_gce_wheels(wait=0)
            if state is None:
                # It listens already, and starts its preloads only then.
                reasons.append("the scheduler does not take any; its console may say why")
                await asyncio.sleep(AGAIN)
                continue
            missing = state["missing"]
            if missing and not told:
                told = True
                size = sum(known[name].size for name in missing) / 1e6
                tell(f"Sending {len(missing)} local packages to the scheduler ({size:.1f} MB)")
            for name, offset in missing.items():
                await _send(scheduler, known[name], offset)
            reasons.append("the scheduler has not installed them")
            state = await scheduler.dask_gce_wheels(wait=AGAIN)
            if state["error"]:
                raise GCEError(f"Local packages {', '.join(sorted(known))} {state['error']}")
            if state["ready"]:
                return
        except OSError as error:
            # It goes on where it was.
            reasons.append(f"the scheduler does not answer: {error}")
            await asyncio.sleep(AGAIN)


async def _send(scheduler: Any, wheel: Wheel, have: int) -> None:
    if wheel.path is None:
        raise GCEError(
            f"{wheel.name} is missing on the scheduler, and the process that made the cluster did "
            "not send it. Make the cluster anew."
        )
    while have < wheel.size:
        data = await asyncio.to_thread(_read, wheel.path, have)
        try:
            have = await scheduler.dask_gce_put_wheel(name=wheel.name, offset=have, data=data)
        except ValueError as error:
            raise GCEError(
                f"{wheel.path} has changed while the cluster started: {error}"
            ) from error


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)
