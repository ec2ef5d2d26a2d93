"""How often Compute Engine takes Spot machines away, and from where it has done so too often.

Pure: it counts, and is told what time it is. Which other place there is, and that a block is kept
to, is the business of `placement`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Preemptions", "Rate"]

#: Seconds for which a preemption tells something of a place. Compute Engine takes machines in
#: bursts, when others want them; a burst is over in minutes.
SEEN_FOR = 600.0

#: How many there must be, and which share of the machines there: one is bad luck, and of a hundred
#: machines some are always taken.
LEAST, SHARE = 2, 0.25

#: Seconds for which a place is left alone at first, and at most; and how the one grows into the
#: other as it repeats. Short at first, since a burst ends. An hour at most, since Spot capacity
#: follows the time of day.
FIRST_BLOCK, LONGEST_BLOCK, GROWTH = 600.0, 3600.0, 2.0


@dataclass(frozen=True)
class Rate:
    """How many machines a place has lost, and what follows.

    Parameters
    ----------
    taken : int
        Machines that were preempted there lately.
    machines : int
        All that were there in that time.
    block : float
        Seconds for which it is better left alone; 0 if it is none of the bad ones.
    """

    taken: int
    machines: int
    block: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.taken} of {self.machines} Spot machines were preempted within "
            f"{SEEN_FOR / 60:g} minutes"
        )


class Preemptions:
    """The preemptions that one cluster has seen, by place.

    Examples
    --------
    >>> preemptions = Preemptions()
    >>> preemptions.note("us-central1-a", there=3, now=0.0).block
    0.0
    >>> rate = preemptions.note("us-central1-a", there=2, now=60.0)
    >>> print(rate)
    2 of 4 Spot machines were preempted within 10 minutes
    >>> rate.block
    600.0
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, deque[float]] = {}
        # Until when each place is blocked, and for how long that is.
        self._blocks: dict[Hashable, tuple[float, float]] = {}

    def note(self, place: Hashable, *, there: int, now: float) -> Rate:
        """Take note of a machine that is taken away.

        Parameters
        ----------
        place : hashable
            Where it was.
        there : int
            How many others are there still.
        now : float
            The present, in seconds of a clock that never goes back.

        Returns
        -------
        Rate
            What is known of the place now.
        """
        seen = self._seen.setdefault(place, deque())
        seen.append(now)
        while seen[0] < now - SEEN_FOR:
            seen.popleft()
        rate = Rate(len(seen), len(seen) + there)
        if rate.taken < LEAST or rate.taken < SHARE * rate.machines:
            return rate
        until, length = self._blocks.get(place, (-float("inf"), 0.0))
        if now >= until:
            # One that ended long ago tells nothing any more; else it was too short.
            repeats = now < until + length
            length = min(LONGEST_BLOCK, length * GROWTH) if repeats else FIRST_BLOCK
            self._blocks[place] = (now + length, length)
            return Rate(rate.taken, rate.machines, length)
        # More of the burst for which it is blocked already.
        return Rate(rate.taken, rate.machines, until - now)
