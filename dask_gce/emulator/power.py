"""The power of an instance's machine: on when its operating system has booted, off at once.

Owns: the seconds between RUNNING and the start of the machine's program, and their end when the
machine is switched off meanwhile. What the instance shows is the business of `lifecycle`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dask_gce.emulator.machine import Contents, Machine


class Power:
    """Switches one machine.

    Parameters
    ----------
    machine : Machine
        The machine, off.
    booting : float
        Seconds its operating system takes to boot.
    spawn : callable
        Runs a coroutine as a task that somebody owns.
    broke : callable
        Told when a machine that was said to run cannot boot.
    """

    def __init__(
        self,
        machine: Machine,
        booting: float,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        broke: Callable[[], None],
    ) -> None:
        self.machine = machine
        self._booting = booting
        self._spawn = spawn
        self._broke = broke
        self._timer: asyncio.TimerHandle | None = None
        # Held while the machine boots, so that it is switched off after, not meanwhile.
        self._switching = asyncio.Lock()

    async def on(self) -> None:
        """Switch it on; returns when Compute Engine would show it as RUNNING.

        Raises
        ------
        RuntimeError
            The machine cannot boot. Where booting takes time this is not known yet.
        """
        if self._booting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._booting, self._begin)
        else:
            await self.machine.boot()

    def _begin(self) -> None:
        self._spawn(self._boot(self._timer))

    async def _boot(self, timer: asyncio.TimerHandle | None) -> None:
        async with self._switching:
            if self._timer is not timer:
                # Switched off before it came to this.
                return
            try:
                await self.machine.boot()
            except asyncio.CancelledError:
                raise
            except BaseException:
                self._broke()
                raise

    def cancel(self) -> None:
        """Let a machine that has not booted yet not do so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def off(self, grace: float) -> None:
        """Press the power button.

        Parameters
        ----------
        grace : float
            Seconds the guest may take to end in order.
        """
        self.cancel()
        async with self._switching:
            await self.machine.stop(grace)

    async def cut(self) -> None:
        """Cut the power at once."""
        self.cancel()
        async with self._switching:
            await self.machine.kill()

    async def capture(self) -> Contents | None:
        """Copy what the machine's boot disk holds, with the power as it is.

        Returns
        -------
        Contents or None
            The copy; None where there is nothing to copy.
        """
        async with self._switching:
            return await self.machine.capture()

    async def discard(self) -> None:
        """Cut the power and remove the machine."""
        self.cancel()
        async with self._switching:
            await self.machine.discard()
