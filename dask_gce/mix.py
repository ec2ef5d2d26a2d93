"""Which of a cluster's machines are Spot and which on demand.

Pure: numbers in, numbers out. Which machines these are is known to `plan`, and where they are to be
had to `placement`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Mix"]

#: What is left of a share like 0.29 of a hundred, which in binary fractions is a little less.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Mix:
    """How many of the workers' machines are on demand.

    Parameters
    ----------
    spot : bool
        Whether there are Spot machines at all.
    fraction : float
        Share of the machines that are Spot, from 0 to 1. What it leaves of a machine is on demand.
    least : int
        Machines that are on demand before the first is Spot.

    Examples
    --------
    >>> mix = Mix(True, 0.7, least=2)
    >>> [mix.on_demand(machines) for machines in (0, 1, 2, 3, 10, 100)]
    [0, 1, 2, 2, 3, 30]
    >>> Mix(False, 1.0, least=0).on_demand(4)
    4
    """

    spot: bool
    fraction: float = 1.0
    least: int = 0

    def on_demand(self, machines: int) -> int:
        """Return how many are on demand.

        Parameters
        ----------
        machines : int
            How many there are.

        Returns
        -------
        int
            ``max(least, ceil((1 - fraction) * machines))``, but no more than there are.
        """
        if not self.spot:
            return machines
        spot = math.floor(self.fraction * machines + ROUNDING)
        return min(machines, max(self.least, machines - spot))

    def spare(self, on_demand: int, machines: int, *, leaving: int) -> int:
        """Return how many machines on demand may be among those that go.

        Parameters
        ----------
        on_demand : int
            How many are on demand.
        machines : int
            How many there are in all.
        leaving : int
            How many go.

        Returns
        -------
        int
            The most that can go without too few staying.

        Examples
        --------
        >>> Mix(True, 0.5, least=1).spare(3, 6, leaving=4)
        2
        >>> Mix(True, 0.5, least=1).spare(1, 6, leaving=4)
        0
        """
        stay = self.on_demand(max(0, machines - leaving))
        return min(leaving, max(0, on_demand - stay))
