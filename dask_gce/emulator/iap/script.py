"""What a test does to tunnels while they are in use, and what it can see of them.

Owns: the script of cuts and closes, the counts. What a cut does to a session is the business of
`session`, when the script is asked that of `far_end`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from typing import Protocol


class Cuttable(Protocol):
    """One websocket of a tunnel."""

    def cut(self) -> None:
        """Break the connection off, without a word."""

    def close(self, code: int) -> None:
        """Close the websocket in order.

        Parameters
        ----------
        code : int
            Why.
        """


class Tunnels:
    """What goes wrong with tunnels through Identity-Aware Proxy, and how often it did.

    It may be changed at any time and from any thread.

    Examples
    --------
    >>> tunnels = Tunnels()
    >>> tunnels.close_next(4003, times=2)
    >>> tunnels.unused()
    [4003, 4003]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closes: deque[int] = deque()
        self._cut_after: int | None = None
        self._fresh_after: int | None = None
        self._counts: Counter[str] = Counter()
        self._open: dict[Cuttable, asyncio.AbstractEventLoop] = {}

    @property
    def connects(self) -> int:
        """How many connections to machines were made."""
        return self._counts["connects"]

    @property
    def reconnects(self) -> int:
        """How often one of them was taken up again."""
        return self._counts["reconnects"]

    @property
    def cuts(self) -> int:
        """How many websockets were cut, by whatever part of the script."""
        return self._counts["cuts"]

    @property
    def open(self) -> int:
        """How many websockets lead to machines at the moment."""
        with self._lock:
            return len(self._open)

    def closes(self, code: int) -> int:
        """Return how often a websocket was closed with a code, by the script or without it.

        Parameters
        ----------
        code : int
            The code.

        Returns
        -------
        int
            How often.
        """
        return self._counts[f"close {code}"]

    def cut_every(self, size: int | None) -> None:
        """Cut every websocket that has carried so much.

        The connection is broken off without a word, and what was on its way is lost. A client may
        take the session up again.

        Parameters
        ----------
        size : int or None
            Bytes of data, of both directions together; None cuts no more.

        Raises
        ------
        ValueError
            It is less than one byte.
        """
        self._cut_after = _positive(size)

    def require_fresh_token_after(self, size: int | None) -> None:
        """Close every websocket that has carried so much with 4004, as if its token had expired.

        The session can be taken up again with another bearer token than the one it had; with the
        same one it is closed with 4004 again. Who bears no token needs none.

        Parameters
        ----------
        size : int or None
            Bytes of data, of both directions together; None lets every token live for ever.

        Raises
        ------
        ValueError
            It is less than one byte.
        """
        self._fresh_after = _positive(size)

    def close_next(self, code: int, times: int = 1) -> None:
        """Close the next websockets as soon as they are open, new ones and those of reconnects.

        Nothing is connected, and a session that was to be taken up again is kept. What is added
        later happens later.

        Parameters
        ----------
        code : int
            Why: 1000, or one of 4000 to 4999, for example 4003 while a machine boots.
        times : int
            How often.

        Raises
        ------
        ValueError
            There can be no such code, or it is to happen less than once.
        """
        _check_code(code)
        if times < 1:
            raise ValueError(f"a websocket cannot be closed {times} times")
        with self._lock:
            self._closes.extend([code] * times)

    def unused(self) -> list[int]:
        """Return the codes of :meth:`close_next` that have not happened yet.

        Returns
        -------
        list of int
            The codes, in order.
        """
        with self._lock:
            return list(self._closes)

    def clear(self) -> None:
        """Forget the script. What was counted stays."""
        with self._lock:
            self._closes.clear()
        self._cut_after = self._fresh_after = None

    def cut(self) -> None:
        """Cut all websockets that are open now."""
        with self._lock:
            for one, loop in self._open.items():
                loop.call_soon_threadsafe(one.cut)

    def close(self, code: int) -> None:
        """Close all websockets that are open now.

        Parameters
        ----------
        code : int
            Why, as for :meth:`close_next`. Only what is closed with 4004 can be taken up again.

        Raises
        ------
        ValueError
            There can be no such code.
        """
        _check_code(code)
        with self._lock:
            for one, loop in self._open.items():
                loop.call_soon_threadsafe(one.close, code)

    # What the far end asks and tells

    def take_close(self) -> int | None:
        """Return with which code a new websocket is to be closed at once, and count it.

        Returns
        -------
        int or None
            The code; None lets it live.
        """
        with self._lock:
            return self._closes.popleft() if self._closes else None

    def is_cut_after(self, carried: int) -> bool:
        """Tell whether a websocket that has carried so much is cut.

        Parameters
        ----------
        carried : int
            Bytes.

        Returns
        -------
        bool
            Whether it is.
        """
        limit = self._cut_after
        return limit is not None and carried >= limit

    def has_expired_after(self, carried: int) -> bool:
        """Tell whether the token of a websocket that has carried so much has expired.

        Parameters
        ----------
        carried : int
            Bytes.

        Returns
        -------
        bool
            Whether it has.
        """
        limit = self._fresh_after
        return limit is not None and carried >= limit

    def count(self, event: str) -> None:
        """Count something that happened.

        Parameters
        ----------
        event : str
            ``connects``, ``reconnects``, ``cuts`` or ``close CODE``.
        """
        with self._lock:
            self._counts[event] += 1

    def begin(self, websocket: Cuttable) -> None:
        """Note a websocket that leads to a machine. To be called in its event loop.

        Parameters
        ----------
        websocket : Cuttable
            The websocket.
        """
        with self._lock:
            self._open[websocket] = asyncio.get_running_loop()

    def end(self, websocket: Cuttable) -> None:
        """Forget a websocket.

        Parameters
        ----------
        websocket : Cuttable
            The websocket; one that was not noted is ignored.
        """
        with self._lock:
            self._open.pop(websocket, None)


def _positive(size: int | None) -> int | None:
    if size is not None and size < 1:
        raise ValueError(f"a websocket cannot be ended after {size} bytes")
    return size


def _check_code(code: int) -> None:
    if code != 1000 and not 4000 <= code <= 4999:
        raise ValueError(f"no far end closes a websocket with {code}: use 1000, or 4000 to 4999")
