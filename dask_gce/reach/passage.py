"""One local connection's passage through IAP, from beginning to end.

Owns: the order of things - connecting again while a machine boots, carrying bytes both ways, going
on after a cut, hanging up when both sides are through - and the times in it. Leaves windows
to `relay`, websockets to `far_end`, the local socket to `local_end`.

A websocket has one end for both directions. So when the local side ends, what it sent is confirmed
first, and what still comes from the instance is waited for, until that falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dask_gce.errors import TunnelError
from dask_gce.reach.far_end import FarEnd
from dask_gce.reach.frames import Confirmed, Data, LongClose
from dask_gce.reach.local_end import LocalEnd
from dask_gce.reach.refusals import CUT, Meaning, explain, meaning_of
from dask_gce.reach.relay import Relay
from dask_gce.reach.websocket import Closed, drop, hang_up, read_close

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse

__all__ = ["Passage"]

#: Seconds until an attempt that failed is repeated, their growth, and their most. The first attempt
#: after a cut is made at once (gcloud, ``iap_tunnel_websocket.py``).
FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 1.5, 1.1, 20.0
#: Seconds for which a session that is cut is tried to be resumed (``MAX_RECONNECT_WAIT_TIME_MS``
#: there).
RESUME_FOR = 15 * 60.0
#: Seconds for which a connection that is refused as while a machine boots is tried again: as long
#: as gcloud waits for one. Whoever connects gives up before (Dask after 30 s), and asks again.
CONNECT_FOR = 60.0
#: Seconds for which received bytes may wait for others to be acknowledged together with them.
ACK_DELAY = 0.05
#: Seconds of silence after which the instance has said all that it had to say to a local side that
#: has ended, and confirmed what it is going to. Nobody can tell whether the local side still
#: listens: nearly all close both directions at once.
LAST_WORDS = 5.0
#: Seconds between pings, which keep proxies and routers from forgetting the connection; one that
#: leaves one unanswered until the next is cut.
KEEP_ALIVE = 30.0


class _Patience:
    """How long to wait before the next attempt, and whether there is to be one."""

    def __init__(self, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._pause = FIRST_PAUSE

    def next_pause(self) -> float | None:
        """Return the seconds to wait; None if that is too long."""
        pause, self._pause = self._pause, min(self._pause * GROWTH, LONGEST_PAUSE)
        ends = asyncio.get_running_loop().time() + pause
        return pause if ends < self._deadline else None


class Passage:
    """One local connection's passage.

    Parameters
    ----------
    local : LocalEnd
        The connection.
    far_end : FarEnd
        Where its other end is.
    tell : callable
        Called with a word and an error, or None where there is none: ``"waiting"`` when it is to be
        tried again, ``"connected"``, ``"cut"``, ``"resumed"`` and ``"failed"``.
    """

    def __init__(
        self, local: LocalEnd, far_end: FarEnd, tell: Callable[[str, TunnelError | None], None]
    ) -> None:
        self._local = local
        self._far_end = far_end
        self._tell = tell
        self._relay = Relay()
        self._leaving = False
        self._heard_at = 0.0
        self._is_reading = True
        self._ack_timer: asyncio.TimerHandle | None = None
        self._ack_is_due = False

    def leave(self) -> None:
        """Hang up as soon as all that has come from the local side is confirmed."""
        self._leaving = True
        self._local.stop_reading()
        self._local.stirred.set()

    async def run(self) -> None:
        """Carry the connection to its end; to be cancelled if it takes too long."""
        try:
            await self._pass()
            if self._leaving:
                self._local.abort()
            else:
                await self._local.finish()
        except TunnelError as error:
            self._tell("failed", error)
            self._local.reset()
        finally:
            self._local.abort()

    async def _pass(self) -> None:
        relay = self._relay
        patience = _Patience(CONNECT_FOR)
        moved_before = -1
        while (websocket := await self._open(patience)) is not None:
            try:
                closed = await self._carry(websocket)
            finally:
                await hang_up(websocket)
            if closed is None or meaning_of(closed.code) is Meaning.ENDED:
                return
            error = explain(self._far_end.to, closed.code, closed.reason, has_begun=True)
            if meaning_of(closed.code) is not Meaning.CUT:
                raise error
            self._tell("cut", error)
            moved = relay.received + relay.confirmed
            if moved > moved_before:
                patience, moved_before = _Patience(RESUME_FOR), moved
            elif not await self._wait(patience, error):
                # Of an end that connects and breaks at once nothing is gained by asking faster.
                return

    async def _open(self, patience: _Patience) -> ClientWebSocketResponse | None:
        """Open a websocket, however often it takes; None when nobody wants it any more."""
        resuming = bool(self._relay.sid)
        while True:
            try:
                websocket = await self._unless_abandoned(self._far_end.open(self._relay))
            except TunnelError as error:
                refusal = error
            else:
                if websocket is not None:
                    self._tell("resumed" if resuming else "connected", None)
                return websocket
            meaning = meaning_of(refusal.code)
            if meaning is not Meaning.CUT and (resuming or meaning is not Meaning.BOOTING):
                raise refusal
            self._tell("waiting", refusal)
            if not await self._wait(patience, refusal):
                return None

    async def _wait(self, patience: _Patience, refusal: TunnelError) -> bool:
        """Pause before the next attempt; return whether anybody still wants it."""
        pause = patience.next_pause()
        if pause is None:
            raise refusal
        until = asyncio.get_running_loop().time() + pause
        while not self._is_abandoned() and asyncio.get_running_loop().time() < until:
            await self._stir(until)
        return not self._is_abandoned()

    def _is_abandoned(self) -> bool:
        """Tell whether there is no more reason to connect."""
        local = self._local
        idle = not local.pending and not self._relay.unconfirmed
        if self._relay.sid:
            return idle and (local.lost or self._leaving)
        return local.lost or self._leaving or (local.ended and idle)

    async def _unless_abandoned(
        self, attempt: Coroutine[None, None, ClientWebSocketResponse]
    ) -> ClientWebSocketResponse | None:
        opening = asyncio.ensure_future(attempt)
        try:
            while not opening.done() and not self._is_abandoned():
                stirring = asyncio.ensure_future(self._stir(None))
                try:
                    await asyncio.wait({opening, stirring}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _end(stirring)
            return opening.result() if opening.done() else None
        finally:
            await _end(opening)

    async def _stir(self, when: float | None) -> None:
        """Wait until something has changed, but no longer than until a time of the loop's."""
        stirred = self._local.stirred
        if when is None:
            await stirred.wait()
        else:
            timer = asyncio.get_running_loop().call_at(when, stirred.set)
            try:
                await stirred.wait()
            finally:
                timer.cancel()
        stirred.clear()

    async def _carry(self, websocket: ClientWebSocketResponse) -> Closed | None:
        """Carry bytes both ways; None when this side is through, else how the websocket ended."""
        self._heard_at = asyncio.get_running_loop().time()
        self._is_reading = True
        receiving = asyncio.ensure_future(self._receive(websocket))
        sending = asyncio.ensure_future(self._send(websocket))
        keeping = asyncio.ensure_future(self._keep_alive(websocket))
        tasks = {receiving, sending, keeping}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            if sending.done():
                return sending.result()
            return keeping.result()
        finally:
            if self._ack_timer is not None:
                self._ack_timer.cancel()
                self._ack_timer = None
            await _end(*tasks)

    async def _receive(self, websocket: ClientWebSocketResponse) -> Closed:
        from aiohttp import WSMsgType

        binary, ping, pong = WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG
        local, relay, loop = self._local, self._relay, asyncio.get_running_loop()
        announced: LongClose | None = None
        while True:
            message = await websocket.receive()
            self._heard_at = loop.time()
            if message.type is not binary:
                if message.type is ping:
                    with contextlib.suppress(*_broken()):
                        await websocket.pong(message.data)
                elif message.type is not pong:
                    return read_close(message, announced)
                continue
            event = relay.receive(message.data)
            if isinstance(event, Data):
                local.write(event.content)
                if local.full:
                    self._is_reading = False
                    await local.drained()
                    self._is_reading = True
                    self._heard_at = loop.time()
                if relay.ack_due:
                    await self._acknowledge(websocket)
                elif self._ack_timer is None:
                    self._ack_timer = loop.call_later(ACK_DELAY, self._make_ack_due)
            elif isinstance(event, Confirmed):
                local.stirred.set()
            elif isinstance(event, LongClose):
                announced = event

    def _make_ack_due(self) -> None:
        self._ack_timer = None
        self._ack_is_due = True
        self._local.stirred.set()

    async def _acknowledge(self, websocket: ClientWebSocketResponse) -> None:
        self._ack_is_due = False
        frame = self._relay.acknowledge()
        if frame is not None:
            # Of a connection that is broken there may be more to read, and why it was.
            with contextlib.suppress(*_broken()):
                await websocket.send_bytes(frame)

    async def _send(self, websocket: ClientWebSocketResponse) -> None:
        """Send until this side is through."""
        local, relay, loop = self._local, self._relay, asyncio.get_running_loop()
        try:
            for frame in relay.resend():
                await websocket.send_bytes(frame)
            while True:
                while (room := relay.room) and (content := local.take(room)) is not None:
                    for frame in relay.send(content):
                        await websocket.send_bytes(frame)
                if self._ack_is_due:
                    await self._acknowledge(websocket)
                ends = self._ends_at()
                if ends is not None and ends <= loop.time():
                    return
                await self._stir(ends)
        except _broken():
            # The receiver knows more: it reads what came before, and why it ended.
            await asyncio.get_running_loop().create_future()

    def _ends_at(self) -> float | None:
        """Return when this side is through, in the loop's time; None while it is not."""
        local = self._local
        if not (local.ended or self._leaving) or local.pending:
            return None
        since = max(self._heard_at, local.ended_at)
        if (local.lost or self._leaving) and not self._relay.unconfirmed:
            return since
        return since + LAST_WORDS if self._is_reading else None

    async def _keep_alive(self, websocket: ClientWebSocketResponse) -> Closed:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEP_ALIVE)
            asked = loop.time()
            with contextlib.suppress(*_broken()):
                await websocket.ping()
            await asyncio.sleep(KEEP_ALIVE)
            # While the local side takes nothing, answers are not read.
            if self._is_reading and self._heard_at < asked:
                drop(websocket)
                return Closed(CUT, f"it was silent for {KEEP_ALIVE:g} s")


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _broken() -> tuple[type[Exception], ...]:
    """Return what aiohttp raises of a connection that is gone, which differs with its versions."""
    from aiohttp import ClientError

    return (ClientError, ConnectionError)
